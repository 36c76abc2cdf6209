"""How many bytes and operations a segment of passes takes when it goes depth first, besides Fields and causal caches.

It mirrors what stream/depth_first.py allocates; tests compare both with a meter of live storages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from ..geometry import Region, cut
from ..geometry import whole as everything
from ..nets.passes import Place, Shape
from ..nets.segments import Segment, elements, in_field
from ..nets.trace import TracedPass
from .footprint import VECTOR_BYTES, Need, Reading, cached_elements

NAME = "depth first"
"""Of a step that carries out a segment, for people."""

TILES = (1024, 512, 256, 128, 64)
"""Edges in cells of what enters a segment or of what leaves it, whichever are more. Smaller ones would mostly compute halos."""


class DepthFirst(NamedTuple):
    """What a segment takes with tiles of a given size, besides Fields and causal caches."""

    need: Need
    tiles: int
    operations: int
    window_elements: int
    """Read of the Field that enters, over all tiles."""


def depth_first_tiles(segment: Segment) -> list[tuple[int, ...]]:
    """Of what the segment writes; all frames go together."""
    *frames, h, w = segment.shape[2:]
    scale = max(-(-max(segment.trace.shapes[segment.enters][-2:]) // max(h, w)), 1)
    edges = [edge // scale for edge in TILES if edge // scale < max(h, w)] or [TILES[-1] // scale]
    return [(*frames, min(edge, h), min(edge, w)) for edge in edges]


def depth_first(
    segment: Segment, tile: Sequence[int], itemsize: int, entering: Reading, out: Reading, *, caches_away: bool = False
) -> DepthFirst:
    """Of a segment with tiles of so many cells, (h, w), of what it writes."""
    ops = [op for p in segment.passes for op in p.chain.ops]
    kept = sum(op.kept(itemsize) for op in ops)
    preparing, before = 0, 0
    for p in segment.passes:
        preparing = max(preparing, before + sum(op.preparing(itemsize) for op in p.chain.ops))
        before += sum(op.kept(itemsize) for op in p.chain.ops)
    rows = _Rows(segment, tile)
    kinds, largest = rows.kinds(), elements(segment.shape, everything(tile))
    copies = entering.copied + (entering.itemsize / itemsize if entering.away and entering.converts else 0)
    peak = max(_elements(segment, region, copies, caches_away) for region in kinds)
    device = max(kept + int(peak * itemsize), preparing) + VECTOR_BYTES * segment.shape[1]
    window = max(elements(segment.trace.shapes[segment.enters], segment.needs(r)[segment.enters]) for r in kinds)
    host = (window * entering.itemsize if entering.away else 0) + (largest * out.itemsize if out.away else 0)
    if caches_away:
        host += max(_cached(segment, region) for region in kinds) * itemsize
    return DepthFirst(Need(device, host), rows.tiles, rows.operations(), rows.window_elements())


def _elements(segment: Segment, region: Region, copies: float, caches_away: bool) -> float:
    """Elements at most while one tile is computed; `copies` of them for each of the input's while that is fetched."""
    needs, last = segment.needs(region), segment.last_use()
    entering = elements(segment.trace.shapes[segment.enters], needs[segment.enters])
    live = {segment.enters: entering} if copies else {}
    most = entering * copies
    for i, p in enumerate(segment.passes):
        patch = _patch(p, needs, caches_away)
        most = max(most, sum(live.values()) + patch.peak)
        live[p.makes] = patch.kept
        live = {f: size for f, size in live.items() if f == segment.makes or last[f] > i}
    return most


def _cached(segment: Segment, region: Region) -> int:
    """Elements of causal caches that go through buffers for one tile."""
    needs, count = segment.needs(region), 0
    for p in segment.passes:
        for i, place in enumerate(p.chain.places(in_field(p.shape, needs[p.makes]), p.stages)):
            count += cached_elements(p, i, _read(p, i, place), place)
    return count


class _Rows:
    """What every row and every column of tiles needs of each Field. Axes do not depend on each other, so that a look along each of
    them tells of all tiles."""

    def __init__(self, segment: Segment, tile: Sequence[int]):
        self.segment = segment
        self.axes = [cut(size, edge) for size, edge in zip(segment.shape[-2:], tile, strict=True)]
        longest = max(map(len, self.axes))
        self.needs = [
            segment.needs(tuple(spans[min(i, len(spans) - 1)] for spans in self.axes)) for i in range(longest)
        ]

    @property
    def tiles(self) -> int:
        return prod(map(len, self.axes))

    def kinds(self) -> list[Region]:
        """One tile of each kind: alike in what they need of every Field. A halo may reach the border from several tiles away."""
        kinds = []
        for axis, spans in enumerate(self.axes):
            by_needs = {tuple(need[axis].size for need in self.needs[i].values()): span for i, span in enumerate(spans)}
            kinds.append([*by_needs.values()])
        return list(product(*kinds))

    def operations(self) -> int:
        """Over all tiles. An operation's count is a product over axes."""
        return sum(self._operations(p, k) for p in self.segment.passes for k in range(len(p.chain.ops)))

    def window_elements(self) -> int:
        """Of the Field that enters."""
        enters = self.segment.enters
        sides = [
            sum(self.needs[i][enters][axis].size for i in range(len(spans))) for axis, spans in enumerate(self.axes)
        ]
        return prod(self.segment.trace.shapes[enters][:-2]) * prod(sides)

    def _operations(self, p: TracedPass, k: int) -> int:
        return p.flops(k, *self._shapes(p, k))

    def _shapes(self, p: TracedPass, k: int) -> tuple[Shape, Shape]:
        """What one operation reads and makes in all, as shapes whose sides are sums over the tiles along each axis."""
        read, made = [0, 0], [0, 0]
        for i, needs in enumerate(self.needs):
            place = p.chain.places(in_field(p.shape, needs[p.makes]), p.stages)[k]
            for axis, spans in enumerate(self.axes):
                if i < len(spans):
                    read[axis] += place.windows[axis - 2].span.size
                    made[axis] += place.region[axis - 2].size
        return (*p.stages[k][:-2], *read), (*p.stages[k + 1][:-2], *made)


class _Patch(NamedTuple):
    """One pass on one region, in elements: at most, and what its result holds."""

    peak: int
    kept: int


def _read(p: TracedPass, i: int, place: Place) -> Shape:
    """The shape of what operation `i` of a pass reads at a place, of all images."""
    return (*p.stages[i][:2], *(w.span.size for w in place.windows))


def _patch(p: TracedPass, needs: Mapping[int, Region], caches_away: bool) -> _Patch:
    """`needs` says what there is of each Field."""
    places = p.chain.places(in_field(p.shape, needs[p.makes]), p.stages)
    held, peak = 0, 0
    entering = tuple(w.span for w in places[0].windows[-2:])
    if not p.chain.strided and (p.view or entering != needs[p.enters]):
        held = prod(_read(p, 0, places[0]))
    owned = False
    for i, (op, place) in enumerate(zip(p.chain.ops, places, strict=True)):
        read = _read(p, i, place)
        made = (*p.stages[i + 1][:2], *(span.size for span in place.region))
        new = 0 if op.in_place and owned else prod(made)
        parts = 0 if op.strided_parts else sum(f.shape[1] for f in op.reads()) * made[0] * prod(made[2:])
        cached = cached_elements(p, i, read, place) if caches_away else 0
        scratch = p.scratch(i, read, made, place)
        peak = max(peak, held + new + parts + scratch + cached)
        held, owned = new or held, True
        if op.returns_view and scratch:
            peak = max(peak, 2 * held + scratch)  # what it is a view of, and its copy
    return _Patch(max(peak, held), held)
