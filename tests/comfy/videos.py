"""A clip, small video VAEs, and the nodes around them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import random_checkpoints
import random_conditioners
import torch
from comfy_server import ComfyServer, Run
from graphs import Graph, Link
from PIL import Image
from skimage import data

from vae_core.media import open_sink

WIDTH, HEIGHT, FRAMES, FPS = 96, 80, 9, 12
SIZE = {"width": 32, "height": 32, "length": 9, "batch_size": 1}


def write_inputs(folder: Path) -> None:
    """clip.mp4, a window that moves over a cat, with a tone; small_cat.png."""
    cat = torch.from_numpy(data.chelsea().copy()).movedim(-1, 0) / 127.5 - 1
    sound = folder / "tone.wav"
    _write_tone(sound)
    with open_sink(folder / "clip.mp4", fps=FPS, crf=1, audio_from=sound) as sink:
        for i in range(FRAMES):
            sink.write(cat[:, None, 60 : 60 + HEIGHT, 100 + 4 * i : 100 + 4 * i + WIDTH])
    Image.fromarray(data.chelsea()).resize((64, 48)).save(folder / "small_cat.png")


def _write_tone(file: Path) -> None:
    levels = (np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * 440) * 16_000).astype("<i2")
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48_000)
        out.writeframes(levels.tobytes())


def write_models(folder: Path) -> None:
    """Video VAEs with random weights: a file of LTX-Video's, files and folders of ours."""
    random_conditioners.ltx_vae(folder / "random_ltx.pt")
    random_checkpoints.wan_vae(folder / "small_wan.safetensors", width=8)
    random_checkpoints.cogvideox_vae(folder / "small_cogvideox.safetensors")
    random_checkpoints.cogvideox_folder(folder / "small_cogvideox_folder")
    random_checkpoints.qwen_folder(folder / "small_qwen_layered", channels=4)


def video(graph: Graph) -> Link:
    return graph("LoadVideo", file="clip.mp4")


def frames(graph: Graph) -> Link:
    return graph("GetVideoComponents", video=video(graph))


def empty(graph: Graph) -> Link:
    return graph("EmptyHunyuanLatentVideo", **SIZE)


def film(graph: Graph, samples: Link, vae: Link, **inputs: Any) -> Link:
    return graph(
        "ExactVAEVideoDecode", **{"samples": samples, "vae": vae, "fps": 12.0, "format": "mp4 (h264)"} | inputs
    )


def save(graph: Graph, video: Link) -> str:
    return graph("SaveVideo", video=video, filename_prefix="video/exact", format="auto", codec="auto")[0]


def saved(comfy: ComfyServer, run: Run, node: str) -> Path:
    return comfy.output(run.outputs[node]["images"][0])
