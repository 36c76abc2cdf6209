"""Which memory layout convolutions are fastest in, by device and dtype."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
import torch.nn.functional as F

GAIN = 1.05
"""How many times as fast the channels must be, lying innermost, before a device that is measured stores them so."""

CHANNELS, SIDE, ROUNDS = 128, 128, 5
"""Of the convolution that is timed: the one that image VAEs spend most time in."""


def channels_innermost(device: torch.device, dtype: torch.dtype, axes: int) -> bool:
    """Whether tensors of `axes` axes should have their channels innermost (torch's channels_last).

    On CPUs always (benchmarks/README.md). On CUDA it is measured once for each dtype, for pictures; clips are contiguous there.
    """
    if device.type == "cpu":
        return True
    if device.type != "cuda" or axes != 4 or not torch.cuda.is_available():
        return False
    return gain_of_innermost(device, dtype) >= GAIN


@lru_cache(maxsize=16)
def gain_of_innermost(device: torch.device, dtype: torch.dtype) -> float:
    """How many times as fast a 3×3 convolution is with the channels innermost. Takes some milliseconds on a GPU."""
    with torch.inference_mode():
        x = torch.ones(1, CHANNELS, SIDE, SIDE, dtype=dtype, device=device)
        weight = torch.ones(CHANNELS, CHANNELS, 3, 3, dtype=dtype, device=device)
        seconds = [_seconds(x.contiguous(memory_format=f), weight.contiguous(memory_format=f)) for f in _FORMATS]
    return seconds[0] / seconds[1]


_FORMATS = (torch.contiguous_format, torch.channels_last)


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Of one convolution: the least of some rounds, so that what else happens meanwhile counts little."""
    rounds = []
    for _ in range(ROUNDS + 1):  # the first also loads and chooses kernels
        _wait(x.device)
        started = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        _wait(x.device)
        rounds.append(time.perf_counter() - started)
    return min(rounds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
