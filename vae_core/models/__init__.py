"""The public model classes: the networks of nets/ with the API that diffusers documents for them.

`vae_core.VAE` (vae.py) is the way to decode in bounded memory; these classes are for code written against diffusers, for training
and for compiling. `enable_tiling` here is diffusers' own overlap-and-blend, approximate and bit-compatible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import checkpoint
from .base import Model, checked
from .clip import ClipModel
from .cogvideox import AutoencoderKLCogVideoX
from .kl import AutoencoderKL, AutoencoderKLFlux2
from .tiny import AutoencoderTiny
from .wan import AutoencoderKLQwenImage, AutoencoderKLWan

__all__ = [
    "CLASSES",
    "AutoencoderKL",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLFlux2",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
    "AutoencoderTiny",
    "ClipModel",
    "Model",
    "build",
    "checked",
]

CLASSES: Mapping[str, type[Model]] = {
    cls.network: cls
    for cls in (
        AutoencoderKL,
        AutoencoderKLFlux2,
        AutoencoderTiny,
        AutoencoderKLWan,
        AutoencoderKLQwenImage,
        AutoencoderKLCogVideoX,
    )
}


def build(
    opened: checkpoint.Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """The model of an opened checkpoint with its weights, in evaluation mode. `dtype` None keeps the stored one."""
    return CLASSES[opened.variant.network].built(opened, dtype=dtype, device=device, overrides=overrides)
