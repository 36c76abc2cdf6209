"""VAEs of tiny networks, inputs for them, and the ways to run them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import tiny_net
from torch import Tensor

import vae_core
from vae_core.spec import VARIANTS

HOWS: tuple[dict[str, Any], ...] = ({"mode": "whole"}, {"tile": 30}, {"tile": 64}, {"mode": "blend", "tile": 64})


def tiny_vae(name: str = "sdxl", dtype: torch.dtype = torch.float32) -> vae_core.VAE:
    return vae_core.VAE.of(tiny_net(name, dtype), VARIANTS[name])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_latents(vae: vae_core.VAE, h: int, w: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, vae.spec.latent_channels, h, w, generator=seeded())


def some_pixels(h: int, w: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, h, w, generator=seeded()) * 2 - 1


def run(vae: vae_core.VAE, direction: str, x: Tensor, **how: Any) -> Tensor:
    return vae.decode(x, **how) if direction == "decode" else vae.encode(x, **how)


DIRECTIONS = pytest.mark.parametrize(("direction", "x"), [("decode", (1, 4, 9, 14)), ("encode", (1, 3, 72, 112))])


def an_input(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=seeded()) * 2 - 1
