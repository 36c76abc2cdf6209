"""The example workflows, through the HTTP API and through the example client."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_server import ComfyServer, Run
from graphs import said
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "api_format"

pytestmark = pytest.mark.usefixtures("taesd_weights")


@pytest.fixture(scope="module", autouse=True)
def files(comfy: ComfyServer, sd1_checkpoint: Path) -> None:
    comfy.add_model("checkpoints/v1-5-pruned-emaonly-fp16.safetensors", sd1_checkpoint)
    comfy.add_input("example.png", Path(os.environ["COMFYUI_PATH"]) / "input" / "example.png")


def prompt(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def made(comfy: ComfyServer, run: Run) -> list[np.ndarray]:
    """The pictures of a run, in [0, 1], in the order of its nodes."""
    assert run.status == "success", said(run)
    entries = [entry for node in sorted(run.outputs) for entry in run.outputs[node].get("images", [])]
    return [np.asarray(Image.open(comfy.output(entry)).convert("RGB")) / 255 for entry in entries]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def example(comfy: ComfyServer, size: tuple[int, int] | None = None) -> np.ndarray:
    picture = Image.open(Path(os.environ["COMFYUI_PATH"]) / "input" / "example.png").convert("RGB")
    return np.asarray(picture if size is None else picture.resize(size, Image.Resampling.LANCZOS)) / 255


def test_api(comfy):
    (picture,) = made(comfy, comfy.run(prompt("api")))
    assert psnr(picture, example(comfy)) > 20


def test_image_round_trip_keeps_an_odd_size(comfy):
    run = comfy.run(prompt("image_round_trip"))
    (picture,) = made(comfy, run)
    assert picture.shape == (523, 701, 3) and run.executed["4"]["exact_vae"][0]["notes"] == [
        "padded from 701×523 to 704×528"
    ]


def test_tiny_vae_preview_shows_exact_beside_blended(comfy):
    run = comfy.run(prompt("tiny_vae_preview"))
    exact, blended = made(comfy, run)
    assert run.executed["4"]["exact_vae"][0]["exact"] and not run.executed["5"]["exact_vae"][0]["exact"]
    assert exact.shape == blended.shape and psnr(exact, example(comfy)) > 20
    assert np.abs(exact - blended).max() > 1 / 255, "blending shows"


def test_big_picture_keeps_its_limit(comfy):
    run = comfy.run(prompt("big_picture"), timeout_s=300)
    (picture,) = made(comfy, run)
    assert picture.shape == (1536, 1536, 3) and psnr(picture, example(comfy, (1536, 1536))) > 20
    for node in ("4", "5"):
        told = run.executed[node]["exact_vae"][0]
        assert told["exact"] and told["device_bytes"] <= told["limit_bytes"] == 768 * 2**20


def test_text_to_image(comfy):
    graph = prompt("text_to_image")
    graph["5"]["inputs"]["steps"] = 2  # of 20, which take minutes on a CPU and are the sampler's affair
    run = comfy.run(graph, timeout_s=600)
    (picture,) = made(comfy, run)
    assert picture.shape == (512, 512, 3) and picture.std() > 0.01
    assert run.executed["6"]["exact_vae"][0]["by"] == "exact"


def test_the_client_fetches_the_picture_and_tells_errors(comfy, tmp_path):
    def client(graph: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        command = [comfy.python, ROOT / "examples" / "client.py", tmp_path / "graph.json"]
        url = f"http://127.0.0.1:{comfy.port}"
        return subprocess.run([*command, url, tmp_path], capture_output=True, text=True, timeout=300)

    graph = prompt("api")
    graph["4"]["inputs"]["tile_size"] = 320  # another graph than the tests above, whose result is cached
    done = client(graph)
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.glob("exact_vae_api*.png")
    assert "100 %" in done.stdout and psnr(np.asarray(Image.open(picture).convert("RGB")) / 255, example(comfy)) > 20
    graph["4"]["inputs"]["memory_limit"] = "lots"
    refused = client(graph)
    assert refused.returncode == 1 and "'lots' is not understood" in refused.stderr
    graph["4"]["inputs"]["memory_limit"] = "1MiB"
    failed = client(graph)
    assert failed.returncode == 1 and "The latents are saved as" in failed.stderr
