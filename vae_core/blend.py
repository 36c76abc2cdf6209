"""Classic overlap-and-blend: the whole network on overlapping tiles, cross-faded. Approximate, and bit-compatible with diffusers.

Here for whoever asks for it (`enable_tiling`, `mode="blend"`); the exact runs of stream/ are what this library is for.
The schemes, rounding included, are those of diffusers 0.42: autoencoder_kl.py, autoencoder_kl_wan.py and autoencoder_tiny.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from .errors import InputError

OnTile = Callable[[Tensor], Tensor]
AfterTile = Callable[[int, int], None]
Share = float | Fraction
"""Part of a tile's edge that overlaps the next one; a fraction is exact where a float would round a cell away."""


@dataclass(frozen=True)
class GridScheme:
    """Tiles of `tile` input cells every `stride`; results overlap by `extent` output cells, `limit` of each are kept."""

    tile: tuple[int, int]
    stride: tuple[int, int]
    extent: tuple[int, int]
    limit: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.stride) < 1:
            raise InputError(
                f"tiles of {self.tile[0]}×{self.tile[1]} cells overlap so far that the next begins where the last one did; "
                "choose larger tiles or less overlap"
            )

    @classmethod
    def by_factor(cls, tile_in: tuple[int, int], tile_out: tuple[int, int], overlap: tuple[Share, Share]) -> GridScheme:
        """From the sizes (h, w) of a tile before and after the network, and the overlap as a share of it."""
        extent = (int(tile_out[0] * overlap[0]), int(tile_out[1] * overlap[1]))
        return cls(
            tile=tile_in,
            stride=(int(tile_in[0] * (1 - overlap[0])), int(tile_in[1] * (1 - overlap[1]))),
            extent=extent,
            limit=(tile_out[0] - extent[0], tile_out[1] - extent[1]),
        )

    @classmethod
    def by_stride(
        cls,
        tile_in: tuple[int, int],
        stride_in: tuple[int, int],
        tile_out: tuple[int, int],
        stride_out: tuple[int, int],
    ) -> GridScheme:
        """From the sizes (h, w) of a tile and of the step to the next, before and after the network."""
        extent = (tile_out[0] - stride_out[0], tile_out[1] - stride_out[1])
        return cls(tile_in, stride_in, extent, limit=stride_out)


def blend_on_grid(x: Tensor, network: OnTile, scheme: GridScheme, after: AfterTile | None = None) -> Tensor:
    """`network` on the tiles of `x` (`b c h w` or `b c t h w`), each blended into the one above and then the one to the left.

    `after(done, tiles)` is called after each tile.
    """
    tops = range(0, x.shape[-2], scheme.stride[0])
    lefts = range(0, x.shape[-1], scheme.stride[1])
    finished: list[Tensor] = []
    above: list[Tensor] = []
    for i, top in enumerate(tops):
        row: list[Tensor] = []
        for j, left in enumerate(lefts):
            tile = network(x[..., top : top + scheme.tile[0], left : left + scheme.tile[1]])
            if i > 0:
                _fade(above[j], tile, scheme.extent[0], axis=-2)
            if j > 0:
                _fade(row[j - 1], tile, scheme.extent[1], axis=-1)
            row.append(tile)
            if after is not None:
                after(i * len(lefts) + j + 1, len(tops) * len(lefts))
        finished.append(torch.cat([tile[..., : scheme.limit[0], : scheme.limit[1]] for tile in row], dim=-1))
        above = row
    return torch.cat(finished, dim=-2)


def _fade(a: Tensor, b: Tensor, extent: int, axis: int) -> None:
    """Cross-fades the start of `b` from the end of `a`, in place."""
    extent = min(a.shape[axis], b.shape[axis], extent)
    if extent <= 0:
        return
    ramp = torch.arange(extent, dtype=torch.float64, device=b.device) / extent
    shape = [1] * b.ndim
    shape[axis] = extent
    # Each product is computed in float32 and rounded to the tensor's dtype before they are added, as Python scalars would be.
    wide = torch.float64 if b.dtype == torch.float64 else torch.float32
    old, new = a.narrow(axis, a.shape[axis] - extent, extent), b.narrow(axis, 0, extent)
    fading = (old.to(wide) * (1 - ramp).to(wide).view(shape)).to(b.dtype)
    rising = (new.to(wide) * ramp.to(wide).view(shape)).to(b.dtype)
    new.copy_(fading + rising)


def blend_by_mask(
    x: Tensor, network: OnTile, tile: int, ratio: Fraction, overlap: Share, after: AfterTile | None = None
) -> Tensor:
    """AutoencoderTiny's scheme: later tiles are laid over earlier ones under a linear ramp.

    `tile` input cells square; `ratio` output cells per input cell. The result is float32, and as large as the network makes it:
    sizes that are no multiple of the stride, latents of other than 4 channels and overlaps of a single output cell work, where
    diffusers fails.
    """
    overlap_cells = int(tile * overlap)
    tops = range(0, x.shape[-2], tile - overlap_cells)
    lefts = range(0, x.shape[-1], tile - overlap_cells)
    full = torch.ones(ceil(tile * ratio), device=x.device)
    fading = overlap_cells * ratio - 1
    ramp = (torch.arange(len(full), device=x.device) / float(fading)).clamp(0, 1) if fading > 0 else full
    out: Tensor | None = None
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            made = network(x[..., top : top + tile, left : left + tile])
            if out is None:
                out = torch.zeros(*made.shape[:2], *(ceil(n * ratio) for n in x.shape[-2:]), device=x.device)
            at = out[..., int(top * ratio) :, int(left * ratio) :][..., : made.shape[-2], : made.shape[-1]]
            made = made[..., : at.shape[-2], : at.shape[-1]]
            vertical, horizontal = full if i == 0 else ramp, full if j == 0 else ramp
            mask = vertical[: at.shape[-2], None] * horizontal[None, : at.shape[-1]]
            at.copy_(mask * made + (1 - mask) * at)
            if after is not None:
                after(i * len(lefts) + j + 1, len(tops) * len(lefts))
    assert out is not None
    return out
