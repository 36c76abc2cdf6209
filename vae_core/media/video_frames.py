"""What the video sinks and sources share: frames as 8-bit levels, frame rates, and the optional package PyAV."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, MissingPackageError

MAX_FPS = 1000
"""Animated WebP counts in milliseconds; no format here goes further."""

# swscale's own defaults are fast and up to 4 levels off; these leave rounding only. Values of SWS_BICUBIC,
# SWS_FULL_CHR_H_INT, SWS_FULL_CHR_H_INP and SWS_ACCURATE_RND in libswscale/swscale.h: PyAV has no names for all of them.
ACCURATE = 0x4 | 0x2000 | 0x4000 | 0x40000

# AVCOL_SPC_BT709 and AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG in libavutil/pixfmt.h.
BT709 = 1
LIMITED, FULL = 1, 2


def av_package(path: str | Path) -> Any:
    """The module `av`; raises `MissingPackageError` where it is not installed."""
    try:
        import av
    except ImportError:
        raise MissingPackageError(f'{path}: video files need the package av: pip install "exact-vae[video]"') from None
    return av


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frames a second as a fraction that containers can hold.

    The NTSC rates, whole numbers over 1.001, are known by their usual decimals: 23.976, 29.97 and 59.94 become
    24000/1001, 30000/1001 and 60000/1001. Raises `InputError` for a rate that is none.
    """
    if not (math.isfinite(fps) and 1 / MAX_FPS <= fps <= MAX_FPS):
        raise InputError(f"a clip has from 1/{MAX_FPS} to {MAX_FPS} frames a second, not {fps}")
    if isinstance(fps, float) and not fps.is_integer():
        whole = round(fps * 1.001)
        if whole and abs(fps * 1.001 - whole) < 0.005:
            return Fraction(whole * 1000, 1001)
    return Fraction(fps).limit_denominator(1001)


def spread(count: int, rate: Fraction, units_per_second: int) -> int:
    """How many units of time frame number `count`, from 0, lasts, where a format counts whole units.

    The ends are rounded, not the lengths: so the clip as a whole keeps its length.
    """
    return round((count + 1) / rate * units_per_second) - round(count / rate * units_per_second)


def to_levels(frame: Tensor) -> np.ndarray:
    """A frame `c h w` in [-1, 1] → `h w c`, uint8, rounded and clipped as `write_image` does."""
    levels = ((frame + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def to_pixels(levels: np.ndarray) -> Tensor:
    """Levels `h w c`, uint8 → a frame `c h w`, float32 in [-1, 1]."""
    return torch.from_numpy(levels).permute(2, 0, 1).float() / 127.5 - 1


def as_rgb(levels: np.ndarray) -> np.ndarray:
    """Levels `h w c` with grey, c = 1, as three equal channels."""
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels


class Facts(NamedTuple):
    """What a source says of itself."""

    fps: Fraction | None
    """Frames a second, the average where the rate varies; None where nothing says."""
    height: int
    """Of every frame, upright, in pixels."""
    width: int
    frames: int | None
    """As the file counts them; None where it does not."""
    has_audio: bool
    has_alpha: bool
