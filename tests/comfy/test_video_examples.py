"""The example workflows of video VAEs, through the HTTP API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfy_server import ComfyServer
from graphs import said, told
from PIL import Image
from videos import FPS, FRAMES, HEIGHT, WIDTH, saved

from vae_core.media import open_source

pytestmark = pytest.mark.usefixtures("video_files")

ROOT = Path(__file__).resolve().parents[2]


def example(comfy: ComfyServer, name: str) -> dict[str, Any]:
    """A graph in API format, of nodes and inputs that this ComfyUI has."""
    graph = json.loads((ROOT / "examples" / "api_format" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph.values():
        kinds = comfy.object_info(node["class_type"])["input"]
        known = kinds.get("required", {}) | kinds.get("optional", {})
        assert kinds.get("required", {}).keys() <= node["inputs"].keys() <= known.keys(), node["class_type"]
    return graph


def from_noise(graph: dict[str, Any], latent: str, decode: str) -> dict[str, Any]:
    """Without the diffusion model, whose weights are not here: what it starts from is decoded."""
    graph[decode]["inputs"]["samples"] = [latent, 0]
    wanted: list[str] = [name for name, node in graph.items() if node["class_type"].startswith("Save")]
    for name in wanted:
        wanted += [v[0] for v in graph[name]["inputs"].values() if isinstance(v, list) and v[0] not in wanted]
    return {name: graph[name] for name in wanted}


def test_the_example_of_text_to_video(comfy):
    graph = example(comfy, "wan_text_to_video")
    assert "wan" in comfy.object_info("CLIPLoader")["input"]["required"]["type"][0]
    graph["7"]["inputs"] |= {"width": 48, "height": 32, "length": 5}
    run = comfy.run(from_noise(graph, "7", "9"), timeout_s=300)
    assert run.status == "success", said(run)
    with open_source(saved(comfy, run, "10")) as source:
        assert (source.width, source.height, source.frames, source.fps) == (48, 32, 5, 16)


def test_the_example_of_a_video_round_trip(comfy):
    run = comfy.run(example(comfy, "video_round_trip"), timeout_s=300)
    assert run.status == "success", said(run)
    with open_source(saved(comfy, run, "5")) as source:
        assert (source.width, source.height, source.frames, source.fps) == (WIDTH, HEIGHT, FRAMES, FPS)
        assert source.has_audio


def test_the_example_of_qwen_image(comfy):
    graph = example(comfy, "qwen_image")
    assert "qwen_image" in comfy.object_info("CLIPLoader")["input"]["required"]["type"][0]
    graph["7"]["inputs"] |= {"width": 48, "height": 32}
    run = comfy.run(from_noise(graph, "7", "9"), timeout_s=300)
    assert run.status == "success", said(run)
    assert Image.open(saved(comfy, run, "10")).size == (48, 32)
    assert told(run, ["9", 0])["title"] == "Qwen-Image"
