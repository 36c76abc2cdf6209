"""ComfyUI's IMAGE, MASK and LATENT on one side, vae_core's pixels and latents on the other.

IMAGE   `b h w c` in [0, 1], float32          pixels   `b c h w` in [-1, 1]
LATENT  a dict whose `samples` are raw, as the VAE emits them: `b c h w`, or `b c t h w` of a video model.
        FLUX.2's are packed and normalised; a tiny VAE's are those of the VAE that it stands in for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vae_core import VAE
from ..vae_core.spec import VARIANTS, Spec

SIZE_KEY = "exact_vae_size"
"""In a LATENT: (h, w) of the picture before it was padded, in pixels."""


def samples_of(latent: Mapping[str, Any]) -> Tensor:
    """The latents of a LATENT; of audio and video together, the video's."""
    samples = latent["samples"]
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def first_frame(vae: VAE, samples: Tensor) -> Tensor:
    """`b c t h w` → `b c h w`, its first frame, as ComfyUI's own image VAEs take a video's latents; others unchanged."""
    return samples[:, :, 0] if samples.ndim == 5 and samples.shape[1] == latent_channels(vae) else samples


def padded_from(vae: VAE, latent: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size (h, w) that a padded encode has noted, if these latents are still of that size; else None."""
    size = latent.get(SIZE_KEY)
    if size is None:
        return None
    (mh, mw), cells = vae.spec.multiple, tuple(samples_of(latent).shape[-2:])
    return (size[0], size[1]) if (-(-size[0] // mh), -(-size[1] // mw)) == cells else None


def latent_channels(vae: VAE) -> int:
    """Channels of the LATENT."""
    return vae.spec.packed_channels


def to_raw(vae: VAE, samples: Tensor) -> Tensor:
    """A LATENT's samples → what `vae.decode` takes. What does not fit is left for it to refuse."""
    spec = vae.spec
    if samples.ndim != 4 or samples.shape[1] != latent_channels(vae):
        return samples
    if spec.patch != (1, 1):
        return vae.denormalize(samples)
    scale, shift = tiny_scale(spec)
    return (samples - shift) * scale if spec.latent_of else samples


def from_raw(vae: VAE, latents: Tensor) -> Tensor:
    """What `vae.encode` gives → a LATENT's samples."""
    spec = vae.spec
    if spec.patch != (1, 1):
        return vae.normalize(latents)
    scale, shift = tiny_scale(spec)
    return latents / scale + shift if spec.latent_of else latents


def model_space(vae: VAE, raw: Tensor) -> Tensor:
    """Raw latents → those of the diffusion model, which a tiny VAE speaks already."""
    return vae.normalize(raw)


def tiny_scale(spec: Spec) -> tuple[float, float]:
    """Scale and shift between a tiny VAE's latents and the raw ones of the VAE that it stands in for: z = (raw - shift) · scale."""
    big = VARIANTS[spec.latent_of].config if spec.latent_of else {}
    return big.get("scaling_factor", 1.0), big.get("shift_factor", 0.0)


def to_pixels(image: Tensor, channels: int) -> Tensor:
    """IMAGE → `b c h w` in [-1, 1]: an alpha channel is left out, a grey picture becomes a coloured one."""
    if image.shape[-1] == 1:
        image = image.expand(*image.shape[:-1], channels)
    return image[..., :channels].movedim(-1, 1).float() * 2 - 1


def to_image(pixels: Tensor, where: torch.device) -> Tensor:
    """`b c h w` in [-1, 1] → IMAGE on a device. Copied picture by picture, since pixels may lie in a file."""
    b, c, h, w = pixels.shape
    image = torch.empty(b, h, w, c, dtype=torch.float32, device=where)
    for one, place in zip(pixels, image, strict=True):
        place.copy_(one.movedim(0, -1))
    return image.add_(1).div_(2)


def fitted_mask(mask: Tensor, size: tuple[int, int], multiple: tuple[int, int], fit: str) -> Tensor:
    """A MASK for a picture of `size` (h, w) → a LATENT's `noise_mask`, `b 1 h w`, cropped or padded as the picture is."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear")
    (h, w), (mh, mw) = size, multiple
    if fit == "pad":
        return F.pad(mask, (0, -w % mw, 0, -h % mh), mode="replicate")
    top, left = h % mh // 2, w % mw // 2
    return mask[..., top : top + h // mh * mh, left : left + w // mw * mw]
