"""Statistics of a Field, gathered tile by tile while it is written."""

from __future__ import annotations

from collections import defaultdict
from copy import copy
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import grid, slices
from ..nets import bands
from ..nets.layouts import innermost, is_innermost
from ..nets.statistics import GATHERED, channel_statistics, stacked


class Part(NamedTuple):
    """The moments of disjoint cells of one image: their count, and the mean and population variance of each channel, `c` each."""

    count: int
    mean: Tensor
    var: Tensor


def _merged_two(a: Part, b: Part) -> Part:
    total = a.count + b.count
    delta, share = b.mean - a.mean, b.count / total
    var = a.var * (1 - share) + b.var * share + delta.square() * (share * (1 - share))
    return Part(total, a.mean + delta * share, var)


def _merged_alike(parts: list[Part]) -> Part:
    """Of parts of equal counts, all at once."""
    if len(parts) == 1:
        return parts[0]
    means, variances = torch.stack([p.mean for p in parts]), torch.stack([p.var for p in parts])
    spread, mean = torch.var_mean(means, dim=0, correction=0)
    return Part(parts[0].count * len(parts), mean, variances.mean(0) + spread)


def _of_tile(tile: Tensor) -> Part:
    if tile.device.type != "cpu" or tile.is_contiguous() or is_innermost(tile):
        return Part(tile[0, 0].numel(), *channel_statistics(tile))
    # Of a strided one band by band, each a copy: torch would copy all of it, or take several times as long.
    regions = grid(tile.shape[2:], bands.band(tile.shape))
    return _merged([_of_tile(innermost(tile[slices(region)])) for region in regions])


def _merged(parts: list[Part]) -> Part:
    """Of disjoint parts; tiles come in few sizes, so that few merges do."""
    alike: dict[int, list[Part]] = defaultdict(list)
    for part in parts:
        alike[part.count].append(part)
    return reduce(_merged_two, map(_merged_alike, alike.values()))


class Moments:
    """Mean and variance per image and channel, merged exactly over disjoint tiles.

    Merging is that of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    Averaging the tiles' variances instead would lose the spread between the tiles' means. Kept in float32, float64 for float64.
    """

    def __init__(self, images: int):
        self.images: list[list[Part]] = [[] for _ in range(images)]

    def gathered(self, image: int, tile: Tensor) -> list[Part]:
        """The parts of an image with a tile `1 c …`; nothing is changed before `self.images[image]` is set to them."""
        parts = [*self.images[image], _of_tile(tile)]
        return [_merged(parts)] if len(parts) > GATHERED else parts

    def joined(self, batch: int) -> Moments:
        """Of clips whose frames these images are, `(b t) → b`."""
        joined, frames = copy(self), len(self.images) // batch
        joined.images = [[_merged(parts) for parts in self.images[i * frames : (i + 1) * frames]] for i in range(batch)]
        return joined

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance, `b c` each, on the device that computed them."""
        for parts in self.images:
            parts[:] = [_merged(parts)]
        whole = [part for [part] in self.images]
        return stacked([p.mean for p in whole]), stacked([p.var for p in whole])

    def finite(self) -> bool:
        """Whether every element was: a NaN or an infinity spoils the variances. Waits for the device."""
        return bool(torch.isfinite(self.statistics()[1]).all().item())


def moments_of(x: Tensor) -> Moments:
    """Of each image of a whole tensor."""
    moments = Moments(len(x))
    moments.images = [moments.gathered(image, x[image : image + 1]) for image in range(len(x))]
    return moments
