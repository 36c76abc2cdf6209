"""Statistics of a Field, gathered tile by tile while it is written."""

from __future__ import annotations

from copy import copy
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ..nets.statistics import channel_statistics, needs_care


class Merged(NamedTuple):
    """The moments of one image with one more tile: count, mean and sum of squared deviations, `c` each."""

    count: int
    mean: Tensor
    m2: Tensor


def _merge(a: Merged, b: Merged) -> Merged:
    total = a.count + b.count
    delta = b.mean - a.mean
    m2 = a.m2 + b.m2 + delta.square() * (a.count * b.count / total)
    return Merged(total, a.mean + delta * (b.count / total), m2)


class Moments:
    """Count, mean and sum of squared deviations per image and channel, merged exactly over disjoint tiles.

    Merging is that of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    Averaging the tiles' variances instead would lose the spread between the tiles' means. Kept in float32, float64 for float64.
    """

    def __init__(self, images: int, channels: int, dtype: torch.dtype, device: torch.device):
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        nothing = torch.zeros(channels, dtype=self.dtype, device=device)
        self.images = [Merged(0, nothing, nothing)] * images

    def merged(self, image: int, tile: Tensor) -> Merged:
        """The moments with a tile `1 c …` of one image; nothing is changed before `self.images[image]` is set to them."""
        n = tile[0, 0].numel()
        mean, var = self._of_tile(tile)
        return _merge(self.images[image], Merged(n, mean, var * n))

    def _of_tile(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and population variance per channel, without a wider copy of the tile."""
        if needs_care(tile):
            return channel_statistics(tile)
        unused = torch.zeros(2, tile.shape[1], dtype=self.dtype, device=tile.device)
        return torch.batch_norm_update_stats(tile, unused[0], unused[1], 0.0)

    def joined(self, batch: int) -> Moments:
        """Of clips whose frames these images are, `(b t) → b`."""
        joined, frames = copy(self), len(self.images) // batch
        joined.images = [reduce(_merge, self.images[i * frames : (i + 1) * frames]) for i in range(batch)]
        return joined

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance, `b c` each, on the device that computed them."""
        means, variances = ([m.mean for m in self.images], [m.m2 / m.count for m in self.images])
        return torch.stack(means), torch.stack(variances)

    def finite(self) -> bool:
        """Whether every element was: a NaN or an infinity spoils the squared deviations. Waits for the device."""
        return bool(torch.isfinite(torch.stack([m.m2 for m in self.images])).all().item())


def moments_of(x: Tensor) -> Moments:
    """Of each image of a whole tensor."""
    moments = Moments(len(x), x.shape[1], x.dtype, x.device)
    moments.images = [moments.merged(image, x[image : image + 1]) for image in range(len(x))]
    return moments
