"""A variant's network twice, in diffusers and here, with the same random weights."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from tiny_nets import tiny_config, tiny_net

from vae_core.models import Model
from vae_core.nets.passes import Whole
from vae_core.spec import TINY, VARIANTS

KL_NAMES = ("sdxl", "flux1", "flux2", "x4-upscaler")
"""With the quantising convolutions and without, with another class, with three levels."""


def twins(name: str, dtype: torch.dtype = torch.float32, **fields: Any) -> tuple[Any, Any]:
    """(theirs, ours) at the widths of tiny_nets; `fields` change the configuration, not the weights."""
    network, config = VARIANTS[name].network, tiny_config(name) | fields
    ours: Any = type(tiny_net(name))(**config).eval()
    ours.load_state_dict(tiny_net(name).state_dict())
    if network != TINY:
        levels = len(config["block_out_channels"])
        config["down_block_types"] = ("DownEncoderBlock2D",) * levels
        config["up_block_types"] = ("UpDecoderBlock2D",) * levels
    theirs = getattr(diffusers, network)(**config).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return (theirs if dtype == torch.float32 else theirs.to(dtype)), ours.to(dtype)


def factor(net: Model) -> int:
    """Pixels per latent cell."""
    return 2 ** (len(net.config.get("block_out_channels") or net.config.num_decoder_blocks) - 1)


def picture(h: int, w: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> torch.Tensor:
    """Random pixels in [-1, 1], drawn anew the same way for the same size."""
    generator = torch.Generator().manual_seed(h * 10_000 + w)
    return (torch.rand(batch, 3, h, w, generator=generator) * 2 - 1).to(dtype)


def latents(net: Model, h: int, w: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> torch.Tensor:
    """Random latents of a picture of h × w pixels."""
    generator = torch.Generator().manual_seed(h * 10_000 + w)
    f = factor(net)
    return torch.randn(batch, net.config.latent_channels, h // f, w // f, generator=generator).to(dtype)


def encoded(model: Any, x: torch.Tensor) -> torch.Tensor:
    """What the encoder emits: moments, or latents."""
    out = model.encode(x)
    return out.latents if hasattr(out, "latents") else out.latent_dist.parameters


def literal(forward: Any, x: torch.Tensor) -> torch.Tensor:
    """`net.encode_field` or `net.decode_field`, step by step as the published code computes it."""
    return forward(Whole(x, literal=True)).data
