"""Mean and variance of the channels of a tensor, exactly enough to normalise by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import bands
from .layouts import is_innermost

GUESSED_FROM = 64
"""Cells whose mean is the first guess at the mean of all."""

GATHERED = 64
"""Tiles whose statistics are kept apart at most, to be merged at once: on a GPU each merge launches a dozen kernels."""


def needs_care(x: Tensor) -> bool:
    """Whether torch's own kernels would add up the channels of `x`, which lie innermost, one by one in float32.

    Then (torch 2.13, CPU) a mean of five standard deviations is off by 1e-5 of one, and normalising by it shows in the result.
    """
    return x.device.type == "cpu" and x.dtype == torch.float32 and not x.is_contiguous() and is_innermost(x)


def group_norm_falls_short(x: Tensor) -> bool:
    """Whether normalising by `channel_statistics` beats torch's own group normalisation, in precision or in time.

    On CUDA (torch 2.11) that adds up each group of a picture in one block of threads, while the rest of the card has nothing to do,
    and loses a layout with the channels innermost.
    """
    return x.device.type == "cuda" or needs_care(x)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each channel of `1 c …`, `c` each, in float32 or better, without a wider copy of `x`."""
    if needs_care(x):
        return _of_deviations(x)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    unused = torch.empty(2, x.shape[1], dtype=dtype, device=x.device)  # running averages, of which nothing is made
    return torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Vectors as rows; of one a view, since on a GPU a copy takes as long to launch as a small convolution."""
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(tuple(rows))


def _of_deviations(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same from sums of deviations from a first guess."""
    cells = x.movedim(1, -1).reshape(-1, x.shape[1])
    guess = cells[:: max(len(cells) // GUESSED_FROM, 1)].mean(0)
    first, second = (torch.zeros(x.shape[1], dtype=torch.float64, device=x.device) for _ in range(2))
    for band in cells.split(max(bands.BAND_ELEMENTS // x.shape[1], 1)):
        deviations = band - guess
        first += deviations.sum(0)
        second += deviations.square_().sum(0)
        del deviations  # or it would be held while the next are computed
    shift = first / len(cells)
    return (guess + shift).float(), (second / len(cells) - shift.square()).float()
