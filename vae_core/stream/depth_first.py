"""Depth first: one tile at a time through a segment of passes, with a halo as wide as their reach together.

Nothing but what enters and what leaves the segment is stored whole; what the halos of neighbouring tiles share is computed for each
of them, by the same operations on the same values, so the result is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import Region, Span, slices
from ..nets.convolutions import kernel
from ..nets.layouts import dense, innermost
from ..nets.passes import Field, OnTile, Op, OpCache, Shape, Tile
from ..nets.segments import Segment, in_field
from ..nets.trace import TracedField, TracedPass


class _Patches:
    """What there is of each Field, about the tile under way."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Region]] = {}

    def view(self, index: int, region: Region, shape: Shape) -> Tensor:
        """A region of a Field's patch; where the Field is seen in another `shape`, its frames as pictures or the opposite."""
        data, held = self.held[index]
        part = data[slices(tuple(Span(r.start - h.start, r.stop - h.start) for r, h in zip(region, held, strict=True)))]
        if len(shape) == part.ndim:
            return part
        return part.transpose(1, 2).flatten(0, 1) if len(shape) == 4 else part.unflatten(0, (1, -1)).transpose(1, 2)


class _Source(NamedTuple):
    """What a pass of the segment offers to its operations (nets.passes.Source). Knows no run: that holds what is made with it."""

    patches: _Patches
    caches: Mapping[Op, OpCache]
    dtype: torch.dtype
    innermost: bool
    entering_shape: Shape

    def kernel(self, weight: Tensor) -> Tensor:
        weight = kernel(weight, self.dtype)
        return innermost(weight) if self.innermost else weight

    def statistics(self) -> tuple[Tensor, Tensor]:
        raise AssertionError("a pass that normalises over the picture cannot run depth first")

    def everything(self, field: Field) -> Tensor:
        raise AssertionError("a pass with attention cannot run depth first")

    def part(self, field: Field, image: int, region: Region) -> Tensor:
        assert isinstance(field, TracedField)
        return self.patches.view(field.index, region[-2:], field.shape)

    def overwrites(self, field: Field) -> bool:
        return False

    def cache(self, op: Op) -> OpCache | None:
        return self.caches.get(op)


class DepthFirst:
    """A segment, ready for its tiles. `fetch` brings a region of the entering Field to the device, in `dtype`."""

    def __init__(
        self,
        segment: Segment,
        fetch: Callable[[Region], Tensor],
        caches: Mapping[Op, OpCache],
        dtype: torch.dtype,
        *,
        innermost: bool,
    ):
        self.segment, self.fetch, self.patches, self.innermost = segment, fetch, _Patches(), innermost
        sources = [_Source(self.patches, caches, dtype, innermost, p.stages[0]) for p in segment.passes]
        self.bound = [
            [op.bind(source) for op in p.chain.ops] for p, source in zip(segment.passes, sources, strict=True)
        ]
        self.last = segment.last_use()

    def tile(self, region: Region) -> Tensor:
        """What the segment writes at a region of pictures, and nothing else of it."""
        segment, held = self.segment, self.patches.held
        needs = segment.needs(region)
        held.clear()  # of an attempt that failed
        held[segment.enters] = self.fetch(needs[segment.enters]), needs[segment.enters]
        for i, p in enumerate(segment.passes):
            held[p.makes] = self._patch(p, self.bound[i], needs[p.makes]), needs[p.makes]
            for f in {p.enters, *p.reads}:
                if self.last[f] == i:
                    del held[f]
        made = self.patches.view(segment.makes, region, segment.shape)
        held.clear()
        return made

    def _patch(self, p: TracedPass, on_tiles: Sequence[OnTile], region: Region) -> Tensor:
        places = p.chain.places(in_field(p.shape, region), p.stages)
        view = self.patches.view(p.enters, tuple(w.span for w in places[0].windows[-2:]), p.stages[0])
        tile = Tile(view if p.chain.strided else dense(view, self.innermost), 0, owned=False)
        del view
        for on_tile, place in zip(on_tiles, places, strict=True):
            tile = Tile(on_tile(tile, place), 0, owned=True)
        return dense(tile.data, self.innermost)
