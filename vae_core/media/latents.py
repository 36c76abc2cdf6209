"""Latents in and out: our .safetensors, ComfyUI's .latent, and .npy.

Ours is a safetensors file with the one tensor `latents` and, as metadata, what a later decode needs to know:

    format      "exact-vae latents 1"
    variant     "sdxl": the VAE that they come from
    convention  "raw", as the VAE emits them, or "normalized", as a diffusion model takes them
    width       of the picture before padding, in pixels, with `height`; absent where nothing was padded
    frames      of the clip before padding; absent where nothing was padded
    fps         frames a second of the clip, exactly: "24" or "30000/1001"; absent where nobody said
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..whole_files import whole

SUFFIXES = (".safetensors", ".latent", ".npy")
FORMAT = "exact-vae latents 1"

# ComfyUI, LoadLatent in nodes.py: files without this marker were stored scaled for SD 1.x.
COMFYUI_RAW_MARKER = "latent_format_version_0"
COMFYUI_OLD_SCALE = 0.18215

POSITIVE = r"0*[1-9][0-9]*"
RATE = re.compile(rf"{POSITIVE}(/{POSITIVE})?")
"""As `str(Fraction)` writes a positive one."""


@dataclass(frozen=True)
class Latents:
    """Latents and what their file says of them."""

    tensor: Tensor
    """`b c h w`, or `b c t h w`, in the file's floating-point type."""
    variant: str | None = None
    """The variant whose VAE they belong to; None where the file does not say."""
    normalized: bool = False
    """True if they are scaled for a diffusion model; False if raw."""
    size: tuple[int, int] | None = None
    """(h, w) of the original picture in pixels, where it was padded to fit the VAE's grid."""
    frames: int | None = None
    """Of the original clip, where its last frame was repeated to fit the VAE's chunks."""
    fps: Fraction | None = None
    """Frames a second of the clip; None for pictures, and where the file does not say."""


def read_latents(path: str | Path) -> Latents:
    """Read latents from .safetensors, .latent or .npy; a single `c h w` gets its batch axis.

    ComfyUI's .latent and .npy hold raw latents as far as anyone can tell.

    Raises:
        CheckpointError: a broken file, or one that holds something else.
        InputError: no such file, another ending, or a tensor that no VAE could take.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: latents are read from {', '.join(SUFFIXES)}, not from {suffix or 'no ending'!r}")
    latents = _read_npy(path) if suffix == ".npy" else _read_safetensors(path)
    _check(latents.tensor, path)
    return latents


def _read_safetensors(path: Path) -> Latents:
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if "latents" in names:
                return _from_metadata(_batched(file.get_tensor("latents")), file.metadata() or {}, path)
            if "latent_tensor" in names:
                tensor = _batched(file.get_tensor("latent_tensor"))
                return Latents(tensor if COMFYUI_RAW_MARKER in names else tensor.float() / COMFYUI_OLD_SCALE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    found = ", ".join(sorted(names)[:3]) or "nothing"
    raise CheckpointError(f"{path}: holds no latents (a tensor 'latents' or 'latent_tensor'), but {found}")


def _from_metadata(tensor: Tensor, metadata: dict[str, str], path: Path) -> Latents:
    convention = metadata.get("convention", "raw")
    if convention not in ("raw", "normalized"):
        raise CheckpointError(f"{path}: its metadata names the convention {convention!r}, not raw or normalized")
    return Latents(
        tensor,
        metadata.get("variant"),
        convention == "normalized",
        _size(metadata, path),
        _frames(metadata, path),
        _fps(metadata, path),
    )


def _size(metadata: dict[str, str], path: Path) -> tuple[int, int] | None:
    height, width = metadata.get("height"), metadata.get("width")
    if height is None and width is None:
        return None
    if not (height and width and height.isdecimal() and width.isdecimal()):
        raise CheckpointError(
            f"{path}: its metadata gives a height of {height} and a width of {width}, not two numbers"
        )
    return int(height), int(width)


def _frames(metadata: dict[str, str], path: Path) -> int | None:
    frames = metadata.get("frames")
    if frames is None:
        return None
    if not re.fullmatch(POSITIVE, frames):
        raise CheckpointError(f"{path}: its metadata gives {frames!r} as the number of frames, not a number above 0")
    return int(frames)


def _fps(metadata: dict[str, str], path: Path) -> Fraction | None:
    fps = metadata.get("fps")
    if fps is None:
        return None
    if not RATE.fullmatch(fps):
        raise CheckpointError(
            f"{path}: its metadata gives {fps!r} frames a second, not a number or a fraction such as 30000/1001"
        )
    return Fraction(fps)


def _read_npy(path: Path) -> Latents:
    try:
        # Mapped, since a header that lies about the size is then refused instead of allocated. No pickle: it runs code.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        native = np.array(array, dtype=array.dtype.newbyteorder("="))
        return Latents(_batched(torch.from_numpy(native)))
    except (ValueError, TypeError, AttributeError, OSError, EOFError) as error:
        raise CheckpointError(f"{path}: not a readable array of numbers ({error})") from error


def _batched(tensor: Tensor) -> Tensor:
    return tensor[None] if tensor.ndim == 3 else tensor


def _check(tensor: Tensor, path: Path) -> None:
    if tensor.ndim not in (4, 5) or 0 in tensor.shape:
        raise InputError(f"{path}: latents are b c h w, or b c t h w for video; these are {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise InputError(f"{path}: latents are real numbers, these are {tensor.dtype}")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{path}: the latents hold NaN or infinity; the run that made them failed")


def write_latents(path: str | Path, latents: Latents, *, overwrite: bool = False) -> Path:
    """Write latents to a .safetensors, whole or not at all.

    Raises `InputError` for another ending, or a file that exists.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path}: latents are written as .safetensors")
    metadata = {"format": FORMAT, "convention": "normalized" if latents.normalized else "raw"}
    if latents.variant is not None:
        metadata["variant"] = latents.variant
    if latents.size is not None:
        metadata["height"], metadata["width"] = (str(side) for side in latents.size)
    if latents.frames is not None:
        metadata["frames"] = str(latents.frames)
    if latents.fps is not None:
        metadata["fps"] = str(latents.fps)
    with whole(path, overwrite=overwrite) as part:
        save_file({"latents": latents.tensor.detach().cpu().contiguous()}, part, metadata)
    return path
