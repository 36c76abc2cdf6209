"""A video model twice, in diffusers and here, with the same random weights, and clips for it."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from vae_core.models import CLASSES
from vae_core.nets.cogvideox import AutoencoderKLCogVideoXConfig
from vae_core.nets.wan import AutoencoderKLQwenImageConfig, AutoencoderKLWanConfig
from vae_core.spec import COGVIDEOX, QWEN, WAN

_WAN_SMALL = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": (0.0,) * 4,
    "latents_std": (1.0,) * 4,
}
SMALL: dict[str, dict[str, Any]] = {
    WAN: _WAN_SMALL,
    QWEN: _WAN_SMALL,
    COGVIDEOX: {
        "block_out_channels": (16, 16, 32, 32),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
}
"""Every level of the published networks, and widths small enough for a test."""

CONFIGS: dict[str, type] = {
    WAN: AutoencoderKLWanConfig,
    QWEN: AutoencoderKLQwenImageConfig,
    COGVIDEOX: AutoencoderKLCogVideoXConfig,
}
"""The class of each network's configuration."""


def clip_twins(network: str, dtype: torch.dtype = torch.float32, **fields: Any) -> tuple[Any, Any]:
    """(theirs, ours) at small widths; norms random too, so that scale and shift matter."""
    config = SMALL[network] | fields
    torch.manual_seed(0)
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    theirs = getattr(diffusers, network)(**lists).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "norm" in name or name.endswith("gamma"):
                value.add_(torch.randn_like(value) * 0.2)
    ours: Any = CLASSES[network](**config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return (theirs if dtype == torch.float32 else theirs.to(dtype)), ours.to(dtype)


def random_clip(
    frames: int, h: int, w: int, *, batch: int = 1, channels: int = 3, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pixels in [-1, 1], `b c t h w`."""
    generator = torch.Generator().manual_seed(frames * 10_000 + h * 100 + w)
    return (torch.rand(batch, channels, frames, h, w, generator=generator) * 2 - 1).to(dtype)


def random_latents(count: int, h: int, w: int, *, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of 4 channels, `b 4 t h w`."""
    generator = torch.Generator().manual_seed(count * 10_000 + h * 100 + w)
    return torch.randn(batch, 4, count, h, w, generator=generator).to(dtype)


def moments(model: Any, x: Tensor) -> Tensor:
    return model.encode(x).latent_dist.parameters
