"""Pictures in and out: files of any kind that Pillow reads ↔ pixels `b 3 h w` in [-1, 1].

A VAE of three channels cannot carry transparency, and dropping it unseen loses the user's work: it is read beside the
colours, as `alpha b 1 h w` in [0, 1], and can be written back.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError
from ..whole_files import whole

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Ending → Pillow's name, of the formats that are written."""

READABLE = (*FORMATS, ".bmp", ".gif", ".tif", ".tiff")
"""Endings that mean a picture in a folder; a file named outright may have any that Pillow knows."""

MAX_SIDE_PX = {"JPEG": 65_535, "WEBP": 16_383}
"""The formats store the sides in 16 and 14 bits; Pillow's own refusal names neither."""


class Picture(NamedTuple):
    """One picture as read."""

    pixels: Tensor
    """`1 3 h w`, float32 in [-1, 1]; transparent pixels have the colour that the file stores for them."""
    alpha: Tensor | None
    """`1 1 h w`, float32 in [0, 1], 1 is opaque; None where the file has no transparency."""


def read_image(path: str | Path) -> Picture:
    """Read a picture upright (EXIF orientation applied), whatever its mode: grey, palette, CMYK, 16-bit, with alpha.

    Of an animation, the first frame. Colour profiles are not applied. Raises `InputError` if it is no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
            return _to_picture(image)
    except Exception as error:  # Pillow's readers raise whatever their parsing trips over
        raise InputError(f"{path}: not a picture that can be read ({error})") from error


def _to_picture(image: Image.Image) -> Picture:
    if image.mode.startswith(("I", "F")):
        grey = torch.from_numpy(_deep_grey(image))
        return Picture((grey * 2 - 1).expand(1, 3, -1, -1).contiguous(), None)
    if image.has_transparency_data:
        levels = _levels(image.convert("RGBA"))
        return Picture(levels[:, :3] / 127.5 - 1, levels[:, 3:] / 255)
    return Picture(_levels(image.convert("RGB")) / 127.5 - 1, None)


def _levels(image: Image.Image) -> Tensor:
    """`1 c h w`, float32 in [0, 255]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def _deep_grey(image: Image.Image) -> np.ndarray:
    """`h w`, float32 in [0, 1], of a grey picture deeper than 8 bits.

    Pillow gives 16 bits as `I;16` or, in older releases, as 32-bit `I`. Real numbers and true 32 bits have no white
    point that one could know.
    """
    levels = np.array(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65_535:
        raise ValueError(f"mode {image.mode} with values {levels.min()} to {levels.max()}; convert it to 8 or 16 bits")
    return levels.astype(np.float32) / 65_535


def check_image(path: str | Path, *, height: int, width: int, alpha: bool = False) -> str:
    """Pillow's name of the format that the ending of `path` asks for.

    Raises `InputError` where a picture of this size in pixels, with or without alpha, cannot be written in it: a check
    worth making before the picture is computed.
    """
    suffix = Path(path).suffix.lower()
    kind = FORMATS.get(suffix)
    if kind is None:
        raise InputError(f"{path}: pictures are written as {', '.join(FORMATS)}, not as {suffix or 'no ending'!r}")
    if max(height, width) > MAX_SIDE_PX.get(kind, sys.maxsize):
        raise InputError(f"{path}: {kind} holds at most {MAX_SIDE_PX[kind]} pixels a side; write a .png")
    if alpha and kind == "JPEG":
        raise InputError(f"{path}: JPEG holds no transparency; write a .png or .webp")
    return kind


def numbered(path: str | Path, count: int) -> list[Path]:
    """The files that a batch of `count` pictures becomes: `path` itself, or `name_1.png`, `name_2.png`, … beside it."""
    path = Path(path)
    if count == 1:
        return [path]
    digits = len(str(count))
    return [path.with_stem(f"{path.stem}_{i:0{digits}}") for i in range(1, count + 1)]


def write_image(
    path: str | Path,
    pixels: Tensor,
    *,
    alpha: Tensor | None = None,
    quality: int = 95,
    overwrite: bool = False,
) -> list[Path]:
    """Write pixels `b 3 h w` in [-1, 1] (values beyond are clipped), each picture whole or not at all.

    Args:
        path: its ending gives the format: png, jpg or webp; where b > 1, the files are `numbered`.
        alpha: `b 1 h w` in [0, 1]; not for JPEG.
        quality: 1 to 100, of JPEG and WebP; a WebP of 100 is lossless.
        overwrite: replace files that exist.

    Raises:
        InputError: a format, shape or size that cannot be written, NaN, or a file that exists.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise InputError(f"{path}: pixels are b 3 h w, these are {tuple(pixels.shape)}")
    kind = check_image(path, height=pixels.shape[2], width=pixels.shape[3], alpha=alpha is not None)
    targets = numbered(path, len(pixels))
    for i, target in enumerate(targets):
        image = _to_image(pixels[i], None if alpha is None else alpha[i], target)
        with whole(target, overwrite=overwrite) as part:
            image.save(part, kind, quality=quality, **_options(kind, quality))
    return targets


def _options(kind: str, quality: int) -> dict[str, int | bool]:
    if kind == "JPEG":
        return {"subsampling": 0}  # colour at full resolution: a VAE's fine colour detail is what people look at
    return {"lossless": quality == 100} if kind == "WEBP" else {}


def _to_image(pixels: Tensor, alpha: Tensor | None, target: Path) -> Image.Image:
    """Pixels `3 h w` in [-1, 1] and alpha `1 h w` in [0, 1] → an RGB or RGBA image of 8 bits."""
    levels = (pixels.detach().float().cpu() + 1) * 127.5
    if alpha is not None:
        levels = torch.cat([levels, alpha.detach().float().cpu() * 255])
    if not torch.isfinite(levels).all():
        raise InputError(f"{target}: the pixels hold NaN or infinity; decode in fp32")
    rounded = levels.round_().clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(rounded.permute(1, 2, 0).contiguous().numpy())
