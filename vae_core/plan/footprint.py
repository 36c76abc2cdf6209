"""How many bytes and operations a pass takes with tiles of a given size, besides the Fields that live while it runs.

It mirrors what stream/run.py and stream/whole.py allocate; tests compare both with a meter of live storages.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product, takewhile
from math import prod
from typing import NamedTuple, cast

from ..geometry import Span, Window, span_kinds
from ..nets import bands
from ..nets.convolutions import split_pads
from ..nets.passes import Field, Place, goes_in_bands
from ..nets.statistics import GATHERED
from ..nets.trace import Cached, Trace, TracedPass, field_index
from ..schedule import HOMES, Home


def vector_bytes(tiles: int) -> int:
    """Per channel, while so many tiles are made: statistics of the tiles and what merging them takes, in vectors of float32."""
    return (16 + 4 * min(tiles, GATHERED)) * 4


class Reading(NamedTuple):
    """How a pass finds a Field that it reads."""

    away: bool
    """In another memory than the device's."""
    itemsize: int
    """Bytes of an element there."""
    converts: bool = False
    """Its elements are of another dtype than the pass computes in."""

    @property
    def copied(self) -> bool:
        """A tile of it is a copy, not a view."""
        return self.away or self.converts


class Need(NamedTuple):
    """Bytes that one pass allocates besides Fields, at most."""

    device: int
    host: int


class _Stage(NamedTuple):
    """One operation on one kind of tile, in elements."""

    made: int
    in_place: bool
    scratch: int
    landing: int
    """In place of `scratch` where the run is streamed."""
    parts: tuple[int, ...]
    strided_parts: bool
    cached: int
    """Of the causal cache: read by the tile, and written by it."""


class _Kind(NamedTuple):
    """One kind of tile on its way through a pass."""

    read: int
    whole: bool
    """The window is all of the entering Field, as it is stored."""
    stages: tuple[_Stage, ...]
    parts: tuple[int, ...]
    """Elements of other Fields that its operations read, in order."""
    padded: int
    """Of what a convolution reads where the chain is `banded`, with zeros around."""

    def streamed(self) -> _Kind:
        return self._replace(stages=tuple(s._replace(scratch=s.landing) for s in self.stages))

    def landed(self, first: int) -> _Kind:
        """The same where what this operation and those after it make is in the pass's output at once."""
        there = tuple(s._replace(made=0, in_place=True) for s in self.stages[first:])
        return self._replace(stages=(*self.stages[:first], *there))

    def banded(self, count: int) -> _Kind:
        """The same where so many operations work in memory that is there, and the next one copies nothing."""
        head = tuple(s._replace(made=0, scratch=0) for s in self.stages[:count])
        return self._replace(stages=(*head, self.stages[count]._replace(scratch=0), *self.stages[count + 1 :]))


class Tiling:
    """One pass cut into tiles: what each kind of tile needs, and what they cost together. For one image."""

    def __init__(self, p: TracedPass, tile: Sequence[int], images: int = 1):
        self.p, self.images = p, images
        axes = [_axis_kinds(p, axis, edge) for axis, edge in enumerate(tile)]
        self.dense = _is_dense(tile, p.shape[2:])
        self.tiles = prod(sum(kind.count for kind in kinds) for kinds in axes)
        self.kinds = [*dict.fromkeys(map(self._kind, product(*axes)))]
        self.window_elements = p.stages[0][1] * prod(sum(k.count * k.windows[0].span.size for k in ks) for ks in axes)
        self.operations = sum(self._operations(i, axes) for i in range(len(p.chain.ops)))
        self.largest_read = max((k.read for k in self.kinds), default=0)
        self.largest_made = max((k.stages[-1].made for k in self.kinds), default=0)
        self._needs: dict[tuple[object, ...], Need] = {}

    def _kind(self, combination: Sequence[_AxisKind]) -> _Kind:
        p, stages = self.p, []
        for i, op in enumerate(p.chain.ops):
            place = Place(tuple(k.spans[i] for k in combination), tuple(k.windows[i] for k in combination))
            read = (self.images, p.stages[i][1], *(w.span.size for w in place.windows))
            made = (self.images, p.stages[i + 1][1], *(span.size for span in place.region))
            cells = self.images * prod(made[2:])
            parts = tuple(cells * f.shape[1] for f in op.reads())
            strided = op.strided_parts or made[2:] == p.stages[i + 1][2:]
            scratch, cached = p.scratch(i, read, made, place), cached_elements(p, i, read, place)
            # What a fused operation makes is nowhere as a whole.
            nothing = i < p.chain.fused
            made, scratch, landing = (0, 0, 0) if nothing else (prod(made), scratch, p.landing(i, read, made, place))
            stages.append(_Stage(made, op.in_place, scratch, landing, parts, strided, cached))
        sizes = tuple(k.windows[0].span.size for k in combination)
        whole = sizes == tuple(p.stages[0][2:]) and not p.view
        parts = tuple(n for stage in stages for n in stage.parts)
        banded = p.chain.banded
        windows = [k.windows[banded] for k in combination]
        _, pads = split_pads([(w.before, w.after) for w in windows])
        around = prod(w.span.size + sum(pad) for w, pad in zip(windows, pads, strict=True))
        padded = self.images * p.stages[banded][1] * around if banded else 0
        return _Kind(self.images * p.stages[0][1] * prod(sizes), whole, tuple(stages), parts, padded)

    def _operations(self, i: int, axes: Sequence[Sequence[_AxisKind]]) -> int:
        """Over all tiles. An operation's count is a product over axes, so that sums over each axis do for the whole grid."""
        cells = self.p.chain.ops[i].cells
        read = (self.images, self.p.stages[i][1], *(sum(k.count * cells(k.windows[i]) for k in ks) for ks in axes))
        made = (self.images, self.p.stages[i + 1][1], *(sum(k.count * k.spans[i].size for k in ks) for ks in axes))
        return self.p.flops(i, read, made)

    def lands(self, overwrites: int | None, *, gaps: bool = False) -> int | None:
        """The number of the operation that puts tiles where they lie in the output, on a CPU (stream/tiled_pass.py).

        The output takes over the memory of a Field, in which `gaps` say that cells do not follow on each other.
        """
        if overwrites == self.p.enters:
            return None
        is_it = None if overwrites is None else lambda field: field_index(field) == overwrites
        return self.p.chain.lands(self.dense and not gaps, is_it)

    def need(
        self,
        enters: Reading,
        reads: Sequence[Reading],
        itemsize: int,
        out: Reading,
        *,
        staged: bool,
        kept: int,
        caches_away: bool = False,
        lands: int | None = None,
    ) -> Need:
        """Bytes of the largest tile; `kept` for the whole pass besides. `staged`: copies go through pinned buffers.

        `caches_away`: the causal caches of the pass's operations live in another memory. `lands` is the number of the operation
        that puts tiles where they are to lie.
        """
        asked = (enters, tuple(reads), itemsize, out, staged, kept, caches_away, lands)
        if asked not in self._needs:
            self._needs[asked] = self._need(*asked)
        return self._needs[asked]

    def _need(
        self,
        enters: Reading,
        reads: Sequence[Reading],
        itemsize: int,
        out: Reading,
        staged: bool,
        kept: int,
        caches_away: bool,
        lands: int | None,
    ) -> Need:
        chain = self.p.chain
        kept += self._kept(itemsize)
        preparing = kept + chain.preparing(itemsize) - chain.kept(itemsize)
        inputs = max(self._inputs(kind, enters, reads, itemsize) for kind in self.kinds)
        fetches = enters.away or any(r.away for r in reads)
        converted = self.largest_made * out.itemsize if out.itemsize != itemsize else 0
        # On a CPU, statistics are taken of a copy of a part.
        copied = 0 if staged else min(self.largest_made, bands.BAND_ELEMENTS) * itemsize
        kinds, made = [kind.streamed() for kind in self.kinds], self.largest_made
        if lands is not None and out.itemsize == itemsize:
            kinds = [kind.landed(lands) for kind in kinds]
            made = 0 if chain.ops[lands].lands else made
            copied *= 1 if self.dense else 2
        after = made * itemsize + copied + converted + (inputs if fetches else 0)
        kinds = [kind.banded(chain.banded) for kind in kinds] if chain.banded else kinds
        tile = max(self._computing(kind, enters, reads, itemsize, caches_away) for kind in kinds)
        tile, after = (n + max(kind.padded for kind in kinds) * itemsize for n in (tile, after))
        if chain.banded and itemsize < 4:
            tile = max(tile, max(kind.padded + min(kind.read, bands.BAND_ELEMENTS) for kind in kinds) * itemsize)
        arriving = self._arriving(enters, reads, itemsize)
        device = max(kept + max(tile, after, arriving), preparing) + self._vectors()
        caches = max(sum(s.cached for s in kind.stages) for kind in self.kinds) * itemsize if caches_away else 0
        return Need(device, self._staging(enters, reads, out) + caches if staged else 0)

    def _inputs(self, kind: _Kind, enters: Reading, reads: Sequence[Reading], itemsize: int) -> int:
        """Bytes of one tile's inputs that are copies."""
        copied = enters.copied or not (self.p.chain.strided or kind.whole)
        parts = sum(n for n, r in zip(kind.parts, reads, strict=True) if r.copied)
        return ((kind.read if copied else 0) + parts) * itemsize

    def _arriving(self, enters: Reading, reads: Sequence[Reading], itemsize: int) -> int:
        """Bytes while a tile's inputs are converted: each in both dtypes, beside those that are there."""
        if not any(r.converts for r in (enters, *reads)):
            return 0
        elements = self.largest_read + max(sum(kind.parts) for kind in self.kinds)
        return elements * (itemsize + max(r.itemsize for r in (enters, *reads)))

    def _computing(
        self, kind: _Kind, enters: Reading, reads: Sequence[Reading], itemsize: int, caches_away: bool = False
    ) -> int:
        """Bytes at most while the operations run one after the other."""
        copied = enters.copied or not (self.p.chain.strided or kind.whole)
        held = kind.read if copied else 0
        waiting = sum(n for n, r in zip(kind.parts, reads, strict=True) if r.copied)
        peak, left = 0, list(reads)
        for stage in kind.stages:
            mine = [(n, left.pop(0)) for n in stage.parts]
            strided = sum(n for n, r in mine if not (r.copied or stage.strided_parts))
            new = 0 if stage.in_place and held else stage.made
            cached = stage.cached if caches_away else 0
            peak = max(peak, held + waiting + strided + new + stage.scratch + cached)
            waiting -= sum(n for n, r in mine if r.copied)
            held = new or held
        return max(peak, held) * itemsize

    def _staging(self, enters: Reading, reads: Sequence[Reading], out: Reading) -> int:
        """Bytes of the pinned buffers."""
        parts = [max(alike) for alike in zip(*(kind.parts for kind in self.kinds), strict=True)]
        count = sum(n * r.itemsize for n, r in zip(parts, reads, strict=True) if r.away)
        count += self.largest_read * enters.itemsize if enters.away else 0
        return count + (self.largest_made * out.itemsize if out.away else 0)

    def _vectors(self) -> int:
        return (vector_bytes(1) * self.p.stages[0][1] + vector_bytes(self.tiles) * self.p.shape[1]) * self.images

    def whole_need(self, itemsize: int, *, onto: bool = False) -> int:
        """Bytes of a pass of the whole run: one tile, and its output becomes a Field as it is.

        `onto`: one operation adds what it makes to a Field, and the next one has nothing left to do.
        """
        chain, kind = self.p.chain, self.kinds[0]
        stages, head = [*kind.stages], self._head(itemsize)
        if room := self._room(head):
            stages[0] = stages[0]._replace(made=stages[0].made + room)
            stages[head] = stages[head]._replace(scratch=0)
        if onto:
            adding = cast(int, chain.adding)
            stages = [s._replace(made=0) if adding <= i <= adding + 1 else s for i, s in enumerate(stages)]
        kind = kind._replace(stages=tuple(stages))
        here = [Reading(False, itemsize)] * len(kind.parts)
        tile = self._computing(kind, Reading(False, itemsize), here, itemsize)
        kept = self._kept(itemsize)
        if chain.fused:
            # Statistics are taken of a copy of a part, while there is spare memory for what is made.
            kept += min(self.largest_read, bands.BAND_ELEMENTS) * itemsize
        return max(kept + max(tile, self._bands(itemsize)), chain.preparing(itemsize)) + self._vectors()

    def _kept(self, itemsize: int) -> int:
        """Bytes that the operations hold for the whole pass, and what fused ones make of a part: twice, as each makes its own."""
        ops, fused = self.p.chain.ops, self.p.chain.fused
        part = 2 * ops[fused].part_elements * itemsize if fused else 0
        return self.p.chain.kept(itemsize) + part

    def _bands(self, itemsize: int) -> int:
        """Bytes where a whole run begins a pass band by band, as it does on a CPU: the result, and what is made of one band."""
        head = self._head(itemsize)
        if not head:
            return 0
        made, shape = self.kinds[0].stages[0].made, self.p.stages[0]
        part = (1, shape[1], *bands.band(shape))
        region = tuple(Span(0, n) for n in part[2:])
        place = Place(region, tuple(map(Window, region)))
        scratch = max(op.scratch(part, part, place) for op in self.p.chain.ops[:head])
        return (made + self._room(head) + bands.BAND_ELEMENTS + scratch) * itemsize

    def _head(self, itemsize: int) -> int:
        """How many operations a whole run begins with band by band, as it does on a CPU."""
        shape = self.p.stages[0]
        elements = self.images * prod(shape[1:])
        if self.p.chain.fused:
            return 0
        head = sum(1 for _ in takewhile(lambda op: goes_in_bands(op, shape), self.p.chain.ops))
        return head if bands.pay(elements, itemsize, self._room(head)) else 0

    def _room(self, head: int) -> int:
        """Elements of the frames that the next operation needs before what they make."""
        if not 0 < head < len(self.p.chain.ops):
            return 0
        shape, past = self.p.stages[head], self.p.past[head] if self.p.past else 0
        return self.p.chain.ops[head].room(shape, past) * self.images * shape[1] * prod(shape[3:])


def _is_dense(tile: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether tiles of a Field with its channels innermost lie in one piece."""
    first = next((i for i, edge in enumerate(tile) if edge > 1), len(tile))
    return tuple(tile[first + 1 :]) == tuple(sizes[first + 1 :])


def cached_elements(p: TracedPass, i: int, read: Sequence[int], place: Place) -> int:
    """Elements of its causal cache that one operation of a pass reads and writes for a tile."""
    op = p.chain.ops[i]
    if not op.reach:
        return 0
    earlier = min(place.missing[0][0], p.past[i]) * prod(read[3:])
    kept = min(op.reach, read[2]) * prod(span.size for span in place.region[1:])
    return prod(read[:2]) * (earlier + kept)


class _AxisKind(NamedTuple):
    """Tiles that are alike along one axis: how many, and per operation the output span and the input window."""

    count: int
    spans: tuple[Span, ...]
    windows: tuple[Window, ...]


def _axis_kinds(p: TracedPass, axis: int, edge: int) -> list[_AxisKind]:
    """Axes do not depend on each other, so that windows are worked out for each by itself."""
    axes = len(p.shape) - 2
    alike: dict[Hashable, _AxisKind] = {}
    for span, count in span_kinds(p.shape[2 + axis], edge):
        spans, windows = [], []
        for op, shape in zip(reversed(p.chain.ops), reversed(p.stages[:-1]), strict=True):
            window = op.window(axis, (span,) * axes, shape[2:])
            spans.append(span)
            windows.append(window)
            span = window.span
        sizes = tuple((s.size, w.span.size, w.before, w.after) for s, w in zip(spans, windows, strict=True))
        count += alike[sizes].count if sizes in alike else 0
        alike[sizes] = _AxisKind(count, tuple(spans[::-1]), tuple(windows[::-1]))
    return [*alike.values()]


def caches_at(trace: Trace, homes: Sequence[Home]) -> list[tuple[Cached, Home]]:
    """Each causal cache and where it lives: as `homes` says, in the order of the trace, or on the device."""
    places: Sequence[Home] = homes or ("device",) * len(trace.cached)
    return [*zip(trace.cached.values(), places, strict=True)]


CacheBytes = Sequence[Mapping[Home, int]]
"""Bytes of the causal cache at each place, by pass."""


def cache_bytes(trace: Trace, homes: Sequence[Home], itemsize: int, *, consumes: bool) -> CacheBytes:
    """What causal caches take while each pass runs; `homes` says where each lives, in the order of the trace.

    `consumes`: what came in is let go after the pass that read it, and not kept until the chunk is complete.
    """
    passes = [caches_during(trace, homes, range(i, i + 1), consumes=consumes) for i in range(len(trace.passes))]
    return [{home: elements * itemsize for home, elements in during.items()} for during in passes]


def caches_during(trace: Trace, homes: Sequence[Home], passes: range, *, consumes: bool) -> Mapping[Home, int]:
    """Elements of causal caches at each place while these passes run together."""
    at: dict[Home, int] = dict.fromkeys(HOMES, 0)
    for cached, home in caches_at(trace, homes):
        at[home] += prod(cached.past) if cached.replaced_in >= passes.start or not consumes else 0
        at[home] += prod(cached.kept) if cached.replaced_in < passes.stop else 0
    return at


def added_onto(p: TracedPass, i: int, last: Sequence[int]) -> int | None:
    """The Field to which pass `i` of a whole run adds its result, which so takes over its memory."""
    if p.chain.adding is None:
        return None
    added = field_index(cast(Field, p.chain.ops[p.chain.adding + 1].added))
    return added if added not in (0, p.enters) and last[added] == i else None


def whole_bytes(trace: Trace, itemsize: int) -> int:
    """Peak of a run over plain tensors, without the input."""
    return max(whole_peaks(trace, itemsize))


def whole_peaks(trace: Trace, itemsize: int) -> list[int]:
    """Of a run over plain tensors the peak of each pass, without the input: every pass is one tile of all images."""
    last, sizes = trace.last_use(), [prod(shape) * itemsize for shape in trace.shapes]
    caches = cache_bytes(trace, (), itemsize, consumes=False)
    live: set[int] = set()
    peaks, known = [], {}
    for i, p in enumerate(trace.passes):
        onto = added_onto(p, i, last) is not None
        kind = p.kind, onto
        if kind not in known:
            tiling = Tiling(p, p.shape[2:], p.shape[0]) if p.chain.ops else None  # a foreign function
            known[kind] = 2 * sizes[p.makes] if tiling is None else tiling.whole_need(itemsize, onto=onto)
        peaks.append(sum(sizes[f] for f in live) + known[kind] + caches[i]["device"])
        live = {f for f in (*live, p.makes) if last[f] > i}
    return peaks
