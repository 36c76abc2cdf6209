"""Latents from a file, held against the VAE that is to decode them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .. import VAE
from ..errors import InputError
from ..media import Latents
from ..spec import whose_latent
from .console import shape_text


def raw_latents(path: Path, vae: VAE, file: Latents, normalized: bool) -> Tensor:
    """The file's latents as the VAE emits them; `normalized` tells what a .latent or .npy cannot.

    Raises `InputError` where they are not of this VAE.
    """
    spec, channels = vae.spec, file.tensor.shape[1]
    # ComfyUI keeps FLUX.2's latents packed and normalized, and the number of channels gives that away.
    packed = channels == spec.packed_channels != spec.latent_channels
    normalized = normalized or file.normalized or packed
    expected = spec.packed_channels if normalized else spec.latent_channels
    rank = 5 if spec.clip else 4
    if file.tensor.ndim != rank or channels != expected:
        raise InputError(f"{path}: {_mismatch(vae, file.tensor, expected)}")
    return vae.denormalize(file.tensor) if normalized else file.tensor


def _mismatch(vae: VAE, latents: Tensor, channels: int) -> str:
    spec, found = vae.spec, f"holds {shape_text(latents.shape)} values"
    if spec.clip and latents.ndim == 4 and latents.shape[1] == channels:
        return (
            f"{found}, and {spec.title} decodes clips b×{channels}×t×h×w; give them their axis of time, 1 for a picture"
        )
    if latents.ndim == 5 and not spec.clip:
        return (
            f"{found}, a clip's, and {spec.title} decodes pictures b×{channels}×h×w; name the clip's own VAE with --vae"
        )
    whose = ", ".join(whose_latent(latents.shape[1]))
    shape = f"b×{channels}×{'t×' if spec.clip else ''}h×w"
    return f"{found}, and {spec.title} decodes {shape}" + (
        f"; load the VAE that they are of, by their channels {whose}" if whose else ""
    )
