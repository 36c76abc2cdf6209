"""What a pass begins with, norm and activation, computed part by part in the cache, where the next operation reads it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..geometry import Span, Window, grid, slices
from . import bands
from .chain import Chain
from .convolutions import split_pads, zero_borders
from .layouts import Shape, is_innermost, stored
from .passes import OnTile, Place, Source, Tile, through


def over_bands(head: Sequence[OnTile], tile: Tile, first: Sequence[int], into: Tensor) -> None:
    """A tile after operations that are all pixel-wise, into memory for it; `first` is the tile's first cell in the Field."""
    sides = bands.band(tile.data.shape)
    dense = None
    if tile.data.dtype.itemsize < 4 and not is_innermost(tile.data):
        # Torch's batch normalisation of a strided tile takes longer than to bring it together, in the cache, and to part it again.
        dense = torch.empty(stored((1, tile.data.shape[1], *sides)), dtype=tile.data.dtype).movedim(-1, 1)
    for region in grid(tile.data.shape[2:], sides):
        spans = tuple(Span(at + span.start, at + span.stop) for at, span in zip(first, region, strict=True))
        place, part, made_in = Place(spans, tuple(map(Window, spans))), tile.data[slices(region)], into[slices(region)]
        if dense is not None:
            inside = dense[(..., *(slice(span.size) for span in region))]
            part = made_in = inside.copy_(part)
        made = through(Tile(part, tile.image, owned=False, into=made_in), ((on_tile, place) for on_tile in head)).data
        if made is not made_in or dense is not None:
            into[slices(region)].copy_(made)


def bind(chain: Chain, source: Source) -> list[tuple[int, OnTile]]:
    """`chain.bind`, but that a head goes band by band into memory that tiles share, with the zeros that the convolution pads."""
    bound, n = chain.bind(source), chain.banded
    if not n:
        return bound
    head, (number, convolve), memory = [on_tile for _, on_tile in bound[:n]], bound[n], _Memory()

    def on_tile(tile: Tile, place: Place) -> Tensor:
        _, pads = split_pads(place.missing)
        around = [*zip(place.windows, pads, strict=True)]
        sizes = [before + w.span.size + after for w, (before, after) in around]
        padded = memory.innermost((*tile.data.shape[:2], *sizes), tile.data.dtype)
        zero_borders(padded, pads)
        inside = tuple(slice(before, before + w.span.size) for w, (before, _) in around)
        over_bands(head, tile, [w.span.start for w in place.windows], padded[(..., *inside)])
        windows = tuple(
            Window(Span(w.span.start - before, w.span.stop + after), w.before - before, w.after - after)
            for w, (before, after) in around
        )
        return convolve(Tile(padded, tile.image, owned=True, out=tile.out), Place(place.region, windows))

    return [(number, on_tile), *bound[n + 1 :]]


class _Memory:
    """Of one tensor after the other, on the CPU; as large as the largest of them."""

    def __init__(self) -> None:
        self.flat: Tensor | None = None

    def innermost(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        """An unwritten tensor with its channels innermost."""
        if self.flat is None or self.flat.numel() < prod(shape):
            self.flat = None
            self.flat = torch.empty(prod(shape), dtype=dtype)
        return self.flat[: prod(shape)].view(stored(shape)).movedim(-1, 1)
