"""Spans, windows and grids of tiles: pure integers, no tensors.

A *span* is a half-open interval of one axis, counted in cells of the grid that it cuts. A *window* says what one output span needs
of one input axis: the cells that exist, and how many more are missing because the picture ends there. A *region* is one span per
axis of a picture (h, w) or of a clip (t, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple


class Span(NamedTuple):
    """The cells start, start + 1, …, stop - 1 of one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


Region = tuple[Span, ...]


class Window(NamedTuple):
    """What one output span needs of one input axis."""

    span: Span
    """The cells that exist."""
    before: int = 0
    """Cells needed in front of the first one of the axis."""
    after: int = 0
    """Cells needed behind the last one of the axis."""


def convolution_window(out: Span, size: int, kernel: int, stride: int, pad_before: int) -> Window:
    """The window on an axis of `size` cells from which a convolution computes the output cells `out`."""
    start = out.start * stride - pad_before
    stop = (out.stop - 1) * stride - pad_before + kernel
    return Window(Span(max(start, 0), min(stop, size)), max(-start, 0), max(stop - size, 0))


def cut(size: int, tile: int) -> list[Span]:
    """[0, size) in spans of `tile` cells; the last one may be shorter."""
    return [Span(start, min(start + tile, size)) for start in range(0, size, tile)]


def grid(sizes: Sequence[int], tile: Sequence[int]) -> Iterator[Region]:
    """The regions that partition a grid of `sizes` cells into tiles, row by row."""
    return product(*(cut(size, edge) for size, edge in zip(sizes, tile, strict=True)))


def cut_again(region: Region, tile: Sequence[int]) -> Iterator[Region]:
    """A region in smaller tiles, row by row."""
    sizes = [span.size for span in region]
    for part in grid(sizes, tile):
        yield tuple(Span(r.start + p.start, r.start + p.stop) for r, p in zip(region, part, strict=True))


def tile_kinds(sizes: Sequence[int], tile: Sequence[int]) -> list[tuple[Region, int]]:
    """The kinds of tile that a grid holds: one region of each shape and border position, and how many there are of it.

    Tiles of one kind read windows of one shape, so whoever counts bytes or operations need not walk the grid.
    """
    per_axis = [span_kinds(size, edge) for size, edge in zip(sizes, tile, strict=True)]
    return [(tuple(span for span, _ in kinds), prod(n for _, n in kinds)) for kinds in product(*per_axis)]


def span_kinds(size: int, tile: int) -> list[tuple[Span, int]]:
    """The first, second, last but one and last span of an axis, as far as they differ; all that the second stands for are alike."""
    count = -(-size // tile)
    starts = sorted({0, 1, count - 2, count - 1} & set(range(count)))
    spans = [Span(i * tile, min((i + 1) * tile, size)) for i in starts]
    return [(span, count - len(spans) + 1 if i == 1 else 1) for i, span in zip(starts, spans, strict=True)]


def cells(region: Region) -> int:
    """How many cells a region holds."""
    return prod(span.size for span in region)


def bounding(a: Region, b: Region) -> Region:
    """The smallest region that holds both."""
    return tuple(Span(min(s.start, t.start), max(s.stop, t.stop)) for s, t in zip(a, b, strict=True))


def aligned(region: Region, align: int, sizes: Sequence[int]) -> Region:
    """The smallest region around `region` that starts and stops at multiples of `align`, or at the end of an axis."""
    return tuple(
        Span(s.start // align * align, min(-(-s.stop // align) * align, size))
        for s, size in zip(region, sizes, strict=True)
    )


def slices(region: Region) -> tuple[slice, ...]:
    """An index for the trailing axes of a tensor."""
    return (..., *(slice(span.start, span.stop) for span in region))  # type: ignore[return-value]


def whole(sizes: Sequence[int]) -> Region:
    """The region that is everything."""
    return tuple(Span(0, size) for size in sizes)
