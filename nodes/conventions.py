"""ComfyUI's IMAGE, MASK and LATENT on one side, vae_core's pixels and latents on the other.

IMAGE   `b h w c` in [0, 1], float32          pixels   `b c h w` in [-1, 1], or `b c t h w` of a video VAE,
        whose IMAGE is the frames of one clip, `t h w c`, or `b t h w c` between ComfyUI's VAE object and its nodes.
LATENT  a dict whose `samples` are raw, as the VAE emits them: `b c h w`, or `b c t h w` of a video model.
        FLUX.2's are packed and normalised; a tiny VAE's are those of the VAE that it stands in for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vae_core import VAE
from ..vae_core.spec import VARIANTS, Spec

SIZE_KEY = "exact_vae_size"
"""In a LATENT: (h, w) of the picture before it was padded, in pixels."""
FRAMES_KEY = "exact_vae_frames"
"""In a LATENT: how many frames the clip had before it was padded."""

FRAMES_AT_ONCE = 4
"""Of an IMAGE, turned into pixels at a time: a clip may be as large as the memory."""


def samples_of(latent: Mapping[str, Any]) -> Tensor:
    """The latents of a LATENT; of audio and video together, the video's."""
    samples = latent["samples"]
    return samples.unbind()[0] if getattr(samples, "is_nested", False) else samples


def with_the_axes_of(vae: VAE, samples: Tensor) -> Tensor:
    """A LATENT's samples with as many axes as the VAE takes, where their channels fit.

    Of a video's latents, a VAE for pictures gets the first, as ComfyUI's own do; pictures' latents are clips of one frame.
    """
    if samples.ndim not in (4, 5) or samples.shape[1] != latent_channels(vae):
        return samples
    if vae.spec.clip:
        return samples if samples.ndim == 5 else samples.unsqueeze(2)
    return samples if samples.ndim == 4 else samples[:, :, 0]


class Original(NamedTuple):
    """What a picture or clip was before it was padded, where that is known."""

    size: tuple[int, int] | None = None
    """(h, w) in pixels."""
    frames: int | None = None


def original_of(vae: VAE, latent: Mapping[str, Any]) -> Original:
    """What a padded encode has noted, as far as these latents are still of that size, and of as many frames."""
    samples, size, frames = samples_of(latent), latent.get(SIZE_KEY), latent.get(FRAMES_KEY)
    if size is not None:
        (mh, mw), cells = vae.spec.multiple, tuple(samples.shape[-2:])
        size = (size[0], size[1]) if (-(-size[0] // mh), -(-size[1] // mw)) == cells else None
    if frames is not None:
        latents = samples.shape[2] if samples.ndim == 5 and vae.spec.clip else 0
        frames = frames if frames_of(vae, latents - 1) < frames <= frames_of(vae, latents) else None
    return Original(size, frames)


def noted(vae: VAE, samples: Tensor, original: Original) -> dict[str, Any]:
    """A LATENT of samples that a padded encode has given, with what the picture or clip was before, where it was another."""
    latent: dict[str, Any] = {"samples": samples}
    size, frames = original
    if size is not None and (size[0] % vae.spec.multiple[0] or size[1] % vae.spec.multiple[1]):
        latent[SIZE_KEY] = size
    if frames is not None and vae.spec.clip and frames != vae.frames_of(samples.shape[2]):
        latent[FRAMES_KEY] = frames
    return latent


def frames_of(vae: VAE, latents: int) -> int:
    """How many frames so many latents become, which may be none: ComfyUI asks that too."""
    return vae.frames_of(latents) if latents > 0 else 0


def latents_of(vae: VAE, frames: int) -> int:
    """How many latents so many frames become, which may be none."""
    return vae.latents_of(frames) if frames > 0 else 0


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
    """IMAGE, `… h w c` → `b c … h w` in [-1, 1].

    An alpha channel is left out where the VAE has none; where it has one, what comes without is opaque. A grey picture becomes a
    coloured one.
    """
    if image.shape[-1] == 1:
        image = image.expand(*image.shape[:-1], 3)
    if image.shape[-1] < channels:
        image = F.pad(image, (0, channels - image.shape[-1]), value=1.0)
    return image[..., :channels].movedim(-1, 1).float() * 2 - 1


def pieces_of(clip: Tensor, channels: int) -> Iterator[Tensor]:
    """A clip's IMAGE `t h w c` → its frames as pixels `c t h w`, a few at a time."""
    for piece in clip.split(FRAMES_AT_ONCE):
        yield to_pixels(piece, channels).movedim(0, 1)


def to_image(pictures: Iterable[Tensor], count: int, where: torch.device) -> Tensor:
    """So many pictures in [-1, 1], pieces `c t h w` as they come → IMAGE `t h w c` on a device, and nothing else so large."""
    image, done = torch.empty(0), 0
    for piece in pictures:
        if not done:
            image = torch.empty(count, *piece.shape[-2:], piece.shape[0], dtype=torch.float32, device=where)
        image[done : done + piece.shape[1]].copy_(piece.movedim(0, -1))
        done += piece.shape[1]
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
