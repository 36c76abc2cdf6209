"""Smooth clips in files, and what files hold: frames, arrays and latents."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_core.media import Latents, open_sink, open_source, write_latents

NTSC = Fraction(30_000, 1001)


def moving(frames: int, h: int = 24, w: int = 40) -> Tensor:
    """Smooth pixels `3 t h w` in [-1, 1], each frame another."""
    t, y, x = torch.meshgrid(
        torch.arange(frames) / 4, torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij"
    )
    return torch.stack([torch.sin(3 * x + t), torch.cos(2 * y - t), x * y * torch.cos(t)])


def clip_file(path: Path, frames: int, h: int = 24, w: int = 40, fps: Fraction = NTSC) -> Path:
    with open_sink(path, fps=fps, quality=100) as sink:
        sink.write(moving(frames, h, w))
    return path


def frames_of(path: Path, alpha: bool = False) -> Tensor:
    """All frames `c t h w`."""
    with open_source(path, alpha=alpha) as source:
        frames = source.read(10_000)
    assert frames is not None
    return frames


def in_npy(path: Path) -> Tensor:
    """`c t h w`."""
    return torch.from_numpy(np.load(path)).permute(3, 0, 1, 2)


def stored(folder: Path, latents: Tensor, name: str = "latents.safetensors", **facts: Any) -> Path:
    return write_latents(folder / name, Latents(latents, **facts))
