"""Which memory layout convolutions are fastest in, by device and dtype."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F

from ..nets.layouts import innermost

GAIN = 1.05
"""How many times as fast the channels must be, lying innermost, before a device that is measured stores them so."""

CHANNELS, ROUNDS = 128, 5
SIZES = {4: (128, 128), 5: (4, 128, 128)}
"""Of the convolutions that are timed, of pictures and of clips: those that VAEs spend most time in."""


def channels_innermost(device: torch.device, dtype: torch.dtype, axes: int) -> bool:
    """Whether tensors of `axes` axes should have their channels innermost (torch's channels_last, channels_last_3d).

    On CPUs always (benchmarks/README.md). On CUDA it is measured once for each dtype, for pictures and for clips.
    """
    if device.type == "cpu":
        return True
    if device.type != "cuda" or axes not in SIZES or not torch.cuda.is_available():
        return False
    return gain_of_innermost(device, dtype, axes) >= GAIN


@lru_cache(maxsize=16)
def gain_of_innermost(device: torch.device, dtype: torch.dtype, axes: int) -> float:
    """How many times as fast a convolution of three taps an axis is with the channels innermost. Some milliseconds on a GPU."""
    with torch.inference_mode():
        x = torch.ones(1, CHANNELS, *SIZES[axes], dtype=dtype, device=device)
        weight = torch.ones(CHANNELS, CHANNELS, *(3,) * (axes - 2), dtype=dtype, device=device)
        contiguous = _seconds(x, weight)
        return contiguous / _seconds(innermost(x), innermost(weight))


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Of one convolution: the least of some rounds, so that what else happens meanwhile counts little."""
    convolve, rounds = F.conv2d if x.ndim == 4 else F.conv3d, []
    for _ in range(ROUNDS + 1):  # the first also loads and chooses kernels
        _wait(x.device)
        started = time.perf_counter()
        convolve(x, weight, padding=1)
        _wait(x.device)
        rounds.append(time.perf_counter() - started)
    return min(rounds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
