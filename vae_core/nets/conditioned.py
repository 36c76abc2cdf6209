"""What CogVideoX's decoder does after each norm: scale and shift by what it makes of the latents, enlarged."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..geometry import Region, Span, cut_again, grid, slices
from . import bands
from .causal_convolution import CausalConv3d
from .layouts import dense, select
from .passes import Field, OnTile, Op, Place, Shape, Source, Tile


class Conditioned(Op):
    """`x · by(z) + plus(z)`, where `by` and `plus` are pointwise and z, coarser than x, is enlarged to it by repeating cells.

    Of an odd number of frames, more than one, the first frame of x goes with that of z, and the others with the others.
    """

    in_place = True

    def __init__(self, z: Field, by: CausalConv3d, plus: CausalConv3d):
        self.z, self.by, self.plus = z, by, plus

    def of(self, x: Tensor) -> Tensor:
        return self._conditioned(x, x.shape[2:], _everywhere(x), *self._terms(self.z.data, self.by, self.plus))  # type: ignore[attr-defined]

    def over(self, x: Tensor) -> Tensor:
        terms = self._terms(self.z.data, self.by, self.plus)  # type: ignore[attr-defined]
        return self._conditioned(x, x.shape[2:], _everywhere(x), *terms, owned=True)

    def literal(self, x: Tensor) -> Tensor:
        z = _enlarged(self.z.data, _everywhere(x), x.shape[2:], self.z.shape[2:])  # type: ignore[attr-defined]
        return x * self.by(z) + self.plus(z)

    def bind(self, source: Source) -> OnTile:
        z = source.everything(self.z)
        by, plus = self._terms(z, self.by.at(source.dtype), self.plus.at(source.dtype))

        def on_tile(tile: Tile, place: Place) -> Tensor:
            image = slice(tile.image, tile.image + 1)
            return self._conditioned(
                tile.data, source.entering_shape[2:], place.region, by, plus, image, owned=tile.owned
            )

        return on_tile

    def _terms(
        self, z: Tensor, by: Callable[[Tensor], Tensor], plus: Callable[[Tensor], Tensor]
    ) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        """`by` and `plus` of any part of z. On a CPU of all of it at once: for each part they would take as long as for many."""
        if z.device.type == "cpu":
            scale, shift = by(z), plus(z)
            return lambda part, lies: dense(scale[part], lies), lambda part, lies: dense(shift[part], lies)
        return lambda part, lies: by(dense(z[part], lies)), lambda part, lies: plus(dense(z[part], lies))

    def _conditioned(
        self,
        x: Tensor,
        sizes: Sequence[int],
        region: Region,
        by: Callable[..., Tensor],
        plus: Callable[..., Tensor],
        image: slice = slice(None),
        owned: bool = False,
    ) -> Tensor:
        """`region` is where x lies in a Field of `sizes`; x is overwritten where it is `owned`.

        On a CPU band by band then, so that what z is enlarged to is in the cache still when it is read.
        """
        whole = tuple(x.shape[2:])
        parts = bands.band(tuple(x.shape)) if owned and x.device.type == "cpu" else whole
        if parts != whole:
            for part, there in zip(grid(whole, parts), cut_again(region, parts), strict=True):
                self._conditioned(x[slices(part)], sizes, there, by, plus, image, owned)
            return x
        coarse = self.z.shape[2:]
        near = tuple(_cells(i, span, n, m) for i, (span, n, m) in enumerate(zip(region, sizes, coarse, strict=True)))
        cells = (image, slice(None), *(slice(*span) for span in near))
        # Laid out as x is: few cells, where one that is repeated in another layout is slow.
        innermost = x.stride(1) == 1
        scale = _enlarged(by(cells, innermost), region, sizes, coarse)
        made = x.mul_(scale) if owned else x * scale
        del scale
        return made.add_(_enlarged(plus(cells, innermost), region, sizes, coarse))

    def reads_all(self) -> tuple[Field, ...]:
        return (self.z,)

    def flops(self, read: Shape, made: Shape) -> int:
        # Pointwise over the few cells of z: next to nothing, and no product over axes.
        return 0

    @property
    def geometry(self) -> Hashable:
        return self.name, self.by.geometry, tuple(self.z.shape)

    def kept(self, element_bytes: int) -> int:
        if self.by.weight.device.type != "cpu":
            return 0
        images, _, *sizes = self.z.shape
        return 2 * images * self.by.out_channels * prod(sizes) * element_bytes

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        # Enlarged, and before the last axis was, at most half of that, and of the few cells a copy.
        cells = prod(made) if self.by.weight.device.type != "cpu" else min(prod(made), made[0] * bands.BAND_ELEMENTS)
        return cells * 3 // 2


def _everywhere(x: Tensor) -> Region:
    return tuple(Span(0, n) for n in x.shape[2:])


def _cell(axis: int, i: Tensor | int, size: int, coarse: int) -> Any:
    """Which of `coarse` cells stands for cell i of `size`, by nearest neighbour."""
    if axis == 0 and size > 1 and size % 2:
        return 1 + (i - 1) * (coarse - 1) // (size - 1)  # the first stands for the first alone
    return i * coarse // size


def _cells(axis: int, span: Span, size: int, coarse: int) -> Span:
    return Span(_cell(axis, span.start, size, coarse), _cell(axis, span.stop - 1, size, coarse) + 1)


def _enlarged(x: Tensor, region: Region, sizes: Sequence[int], coarse: Sequence[int]) -> Tensor:
    """Cells that stand for a region, each repeated for all the cells that it stands for."""
    for axis, (span, size, count) in enumerate(zip(region, sizes, coarse, strict=True)):
        if size != count:
            first = _cell(axis, span.start, size, count)
            x = select(x, 2 + axis, _cell(axis, torch.arange(*span, device=x.device), size, count) - first)
    return x
