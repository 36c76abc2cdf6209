"""Statistics of a Field, gathered tile by tile while it is written."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Count, mean and sum of squared deviations per image and channel, merged exactly over disjoint tiles.

    Merging is that of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    Averaging the tiles' variances instead would lose the spread between the tiles' means. Kept in float32, float64 for float64.
    """

    def __init__(self, images: int, channels: int, dtype: torch.dtype, device: torch.device):
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.count = [0] * images
        self.mean = torch.zeros(images, channels, dtype=self.dtype, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def add(self, image: int, tile: Tensor) -> None:
        """Merge a tile `1 c …` of one image."""
        mean, var = self._of_tile(tile)
        n = tile[0, 0].numel()
        total = self.count[image] + n
        delta = mean - self.mean[image]
        self.mean[image] += delta * (n / total)
        self.m2[image] += var * n + delta.square() * (self.count[image] * n / total)
        self.count[image] = total

    def _of_tile(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and population variance per channel, in one read of the tile and without a wider copy of it."""
        channels = tile.shape[1]
        unused = torch.zeros(2, channels, dtype=self.dtype, device=tile.device)
        return torch.batch_norm_update_stats(tile, unused[0], unused[1], 0.0)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance, `b c` each, on the device that computed them."""
        count = torch.tensor(self.count, dtype=self.dtype, device=self.mean.device)
        return self.mean, self.m2 / count[:, None]
