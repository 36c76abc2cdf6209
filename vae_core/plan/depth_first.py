"""How many bytes and operations a segment of passes takes when it goes depth first, besides Fields and causal caches.

It mirrors what stream/depth_first.py allocates; tests compare both with a meter of live storages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

from ..geometry import Region, cut
from ..geometry import whole as everything
from ..nets.passes import Place, Shape
from ..nets.segments import Segment, elements, in_field
from ..nets.trace import TracedPass
from .footprint import Need, Reading, cached_elements, vector_bytes

NAME = "depth first"
"""Of a step that carries out a segment, for people."""

TILES = (1024, 512, 256, 128, 64)
"""Edges in cells of what enters a segment or of what leaves it, whichever are more. Smaller ones would mostly compute halos."""


def depth_first_tiles(segment: Segment) -> list[tuple[int, ...]]:
    """Of what the segment writes; all frames go together."""
    *frames, h, w = segment.shape[2:]
    scale = max(-(-max(segment.trace.shapes[segment.enters][-2:]) // max(h, w)), 1)
    edges = [edge // scale for edge in TILES if edge // scale < max(h, w)] or [TILES[-1] // scale]
    return [(*frames, min(edge, h), min(edge, w)) for edge in edges]


class DepthFirstTiling:
    """A segment cut into tiles of so many cells, (h, w), of what it writes: what they need, and what they cost together."""

    def __init__(self, segment: Segment, tile: Sequence[int]):
        self.segment, self.largest = segment, elements(segment.shape, everything(tile))
        rows = _Rows(segment, tile)
        self.tiles, self.operations = rows.tiles, rows.operations()
        self.window_elements = rows.window_elements()
        """Read of the Field that enters, over all tiles."""
        self._kinds = [segment.needs(region) for region in rows.kinds()]
        self._patches: dict[bool, list[list[_Patch]]] = {}
        self._needs: dict[tuple[object, ...], Need] = {}

    def need(self, entering: Reading, out: Reading, itemsize: int, *, caches_away: bool = False) -> Need:
        """Besides Fields and causal caches."""
        asked = (entering, out, itemsize, caches_away)
        if asked not in self._needs:
            self._needs[asked] = self._need(*asked)
        return self._needs[asked]

    def _need(self, entering: Reading, out: Reading, itemsize: int, caches_away: bool) -> Need:
        segment, preparing, kept = self.segment, 0, 0
        for p in segment.passes:
            preparing = max(preparing, kept + p.chain.preparing(itemsize))
            kept += p.chain.kept(itemsize)
        copies = entering.copied + (entering.itemsize / itemsize if entering.away and entering.converts else 0)
        patches = self._patches_of(caches_away)
        peak = max(self._elements(*kind, copies) for kind in zip(self._kinds, patches, strict=True))
        device = max(kept + int(peak * itemsize), preparing) + vector_bytes(self.tiles) * segment.shape[1]
        window = max(elements(segment.trace.shapes[segment.enters], needs[segment.enters]) for needs in self._kinds)
        host = (window * entering.itemsize if entering.away else 0) + (self.largest * out.itemsize if out.away else 0)
        if caches_away:
            host += self._cached * itemsize
        return Need(device, host)

    @cached_property
    def _cached(self) -> int:
        """Elements of causal caches that go through buffers for one tile."""
        return max(_cached_of(self.segment, needs) for needs in self._kinds)

    def _patches_of(self, caches_away: bool) -> list[list[_Patch]]:
        """Of each kind of tile."""
        if caches_away not in self._patches:
            self._patches[caches_away] = [
                [_patch(p, needs, caches_away) for p in self.segment.passes] for needs in self._kinds
            ]
        return self._patches[caches_away]

    def _elements(self, needs: Mapping[int, Region], patches: Sequence[_Patch], copies: float) -> float:
        """Elements at most while one tile is computed; `copies` of them for each of the input's while that is fetched."""
        segment, last = self.segment, self.segment.last_use()
        entering = elements(segment.trace.shapes[segment.enters], needs[segment.enters])
        live = {segment.enters: entering} if copies else {}
        most = entering * copies
        for i, (p, patch) in enumerate(zip(segment.passes, patches, strict=True)):
            most = max(most, sum(live.values()) + patch.peak)
            live[p.makes] = patch.kept
            live = {f: size for f, size in live.items() if f == segment.makes or last[f] > i}
        return most


def _cached_of(segment: Segment, needs: Mapping[int, Region]) -> int:
    return sum(
        cached_elements(p, i, _read(p, i, place), place)
        for p in segment.passes
        for i, place in enumerate(p.chain.places(in_field(p.shape, needs[p.makes]), p.stages))
    )


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
            by_needs = {self._needed(i, axis): span for i, span in enumerate(spans)}
            kinds.append([*by_needs.values()])
        return list(product(*kinds))

    def _needed(self, i: int, axis: int) -> tuple[tuple[int, bool, bool], ...]:
        """Along an axis, how much the `i`-th tile needs of each Field, and whether that lies at a border, where zeros are added."""
        shapes = self.segment.trace.shapes
        return tuple(
            (need[axis].size, need[axis].start == 0, need[axis].stop == shapes[f][axis - 2])
            for f, need in self.needs[i].items()
        )

    def operations(self) -> int:
        """Over all tiles. An operation's count is a product over axes."""
        return sum(p.flops(k, *shapes) for p in self.segment.passes for k, shapes in enumerate(self._shapes(p)))

    def window_elements(self) -> int:
        """Of the Field that enters."""
        enters = self.segment.enters
        sides = [
            sum(self.needs[i][enters][axis].size for i in range(len(spans))) for axis, spans in enumerate(self.axes)
        ]
        return prod(self.segment.trace.shapes[enters][:-2]) * prod(sides)

    def _shapes(self, p: TracedPass) -> list[tuple[Shape, Shape]]:
        """What each operation reads and makes in all, as shapes whose sides are sums over the tiles along each axis."""
        read, made = [[0, 0] for _ in p.chain.ops], [[0, 0] for _ in p.chain.ops]
        for i, needs in enumerate(self.needs):
            for k, place in enumerate(p.chain.places(in_field(p.shape, needs[p.makes]), p.stages)):
                cells = p.chain.ops[k].cells
                for axis, spans in enumerate(self.axes):
                    if i < len(spans):
                        read[k][axis] += cells(place.windows[axis - 2])
                        made[k][axis] += place.region[axis - 2].size
        return [((*p.stages[k][:-2], *read[k]), (*p.stages[k + 1][:-2], *made[k])) for k in range(len(p.chain.ops))]


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
    return _Patch(max(peak, held), held)
