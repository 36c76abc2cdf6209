"""The fastest streamed plan that fits: where each Field lives, each pass's tiles, and what goes depth first, by dynamic programming
over the passes.

What a pass needs depends on the passes before only through the Fields that are still alive and where they are: that is the state.
Few Fields are alive at a time, so there are few states, and the best way to each of them is kept. Whatever fits a budget fits a
larger one, so more memory never makes the best plan slower.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import NamedTuple

from ..nets.layouts import Shape
from ..nets.segments import Segment, segments
from ..nets.trace import Trace, TracedPass
from ..schedule import HOMES, Held, Home, Step, Steps
from .depth_first import NAME, depth_first_tiles
from .footprint import Need, Reading, Tiling, cache_bytes, caches_at, caches_during
from .plan import Budget, Costs
from .tilings import Tilings

LEAST_ROWS = 64
"""Of a tile that is as wide as the picture: its halo has a row above and one below."""

PIECES = 3
"""In which the memory of a tile is allocated: its window, the same normalised, and what is made of it."""

CALLERS = -1
"""The index of an input that the caller holds, where the run works on a copy of it."""


class Live(NamedTuple):
    """A Field that is alive."""

    index: int
    home: Home
    bytes: int
    itemsize: int
    converts: bool = False
    """Its elements are of another dtype than the run computes in."""
    gaps: bool = False
    """It lies in memory of a Field with more channels, cell by cell."""


State = tuple[Live, ...]


class Peaks(NamedTuple):
    """Bytes at most so far, without the weights."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def over(self, device: int, host: int, disk: int) -> Peaks:
        return Peaks(max(self.device, device), max(self.host, host), max(self.disk, disk))


class Choice(NamedTuple):
    """What was decided for one pass, or for a segment of them that goes depth first."""

    tile: tuple[int, ...]
    edge: int
    home: Home
    overwrites: int | None
    operations: int
    moved: int
    segment: Segment | None = None


class Found(NamedTuple):
    """The best way to a state: its cost, its peaks, and the choices behind it, last first, as a linked list."""

    cost: int
    peaks: Peaks
    choices: tuple[Choice, tuple | None] | None  # type: ignore[type-arg]


class Option(NamedTuple):
    """One tile size for one pass under given circumstances."""

    cost: int
    tile: tuple[int, ...]
    edge: int
    """Of a square tile with as many cells."""
    need: Need
    operations: int
    moved: int


class Streamable:
    """A trace of one image, and everything about its passes that does not depend on a budget."""

    def __init__(
        self,
        trace: Trace,
        itemsize: int,
        costs: Costs,
        *,
        apart: bool,
        edges: Sequence[int],
        cache_homes: Sequence[Home] = (),
        consumes: bool = False,
        tilings: Tilings | None = None,
    ):
        """`tilings` of the same network and size spare the work that does not depend on where things live."""
        self.trace, self.itemsize, self.costs, self.apart, self.edges = trace, itemsize, costs, apart, edges
        self.cache_homes, self.consumes = cache_homes, consumes
        self.caches = cache_bytes(trace, cache_homes, itemsize, consumes=consumes)
        self.caches_of = _caches_of_passes(trace, cache_homes)
        self.result = len(trace.shapes) - 1
        self.last, self.tokens = trace.last_use(), trace.tokens()
        self.watched = trace.normalised() | {self.result}
        # Statistics stay until the run ends: mean and squared deviations, float32 or, for float64, as wide.
        self.statistics = sum(trace.shapes[f][1] for f in self.watched) * 2 * max(itemsize, 4) * 2
        self.tilings = tilings or Tilings()
        kinds: dict[Hashable, int] = {}
        self._kinds = [kinds.setdefault(p.kind, len(kinds)) for p in trace.passes]
        """Per pass a number that stands for its kind: comparing kinds themselves takes longer than most of the search."""
        self._options: dict[Hashable, list[Option]] = {}

    @cached_property
    def segments(self) -> Mapping[int, Segment]:
        """What can go depth first, by its first pass."""
        return {segment.first: segment for segment in segments(self.trace)}

    def best(
        self,
        budget: Budget,
        homes: Sequence[Home],
        starts: Sequence[State],
        *,
        weight_bytes: int,
        first: int = 0,
        reuse: bool = True,
        deep: bool = False,
    ) -> tuple[Found, State] | None:
        """The cheapest way from one of the starts through all passes from `first` on; None if nothing fits.

        `homes` is where new Fields may live. `reuse` lets an output take over the memory of a Field that dies. `deep` lets segments
        go depth first; a network that is one goes so as a whole.
        """
        room = budget.device_bytes - weight_bytes - self.statistics
        passes = len(self.trace.passes)
        reached: list[dict[State, Found]] = [{} for _ in range(passes + 1)]
        reached[first] = {start: Found(0, Peaks(), None) for start in starts}
        for i in range(first, passes):
            segment = self.segments.get(i) if deep else None
            for state, found in reached[i].items():
                for stop in self._stops(i, segment):
                    for after, made in self._extend(range(i, stop), state, found, budget, room, homes, reuse):
                        if after not in reached[stop] or made.cost < reached[stop][after].cost:
                            reached[stop][after] = made
            reached[i].clear()
        if not reached[passes]:
            return None
        state, found = min(reached[passes].items(), key=lambda item: item[1].cost)
        return found, state

    def _stops(self, i: int, segment: Segment | None) -> tuple[int, ...]:
        """How far one step may go from pass `i`."""
        if segment is None:
            return (i + 1,)
        return (segment.stop,) if segment.is_all else (i + 1, segment.stop)

    def _extend(
        self,
        passes: range,
        state: State,
        found: Found,
        budget: Budget,
        room: int,
        homes: Sequence[Home],
        reuse: bool,
    ) -> list[tuple[State, Found]]:
        """Every way to carry out one pass, or several depth first, from a state."""
        p, held = self.trace.passes[passes[-1]], {f.index: f for f in state}
        segment = self.segments[passes[0]] if len(passes) > 1 else None
        used: dict[Home, int] = {home: sum(f.bytes for f in state if f.home == home) for home in HOMES}
        caches = self.caches[passes[0]] if segment is None else self._caches_during(passes)
        dying = self._dying(p, passes[0], held) if reuse and segment is None else None
        made = []
        for home in (held[self.result].home,) if p.makes == self.result else homes:
            overwrites = dying if dying is not None and held[dying].home == home and p.makes != self.result else None
            out = self._out(p, home, held[overwrites].bytes if overwrites is not None else None)
            new = 0 if overwrites is not None or p.makes == self.result else out.bytes
            at: dict[Home, int] = {h: n + caches[h] + (new if h == home else 0) for h, n in used.items()}
            host_room = (budget.host_bytes if budget.host_bytes is not None else 0) - at["host"]
            if at["disk"] > budget.disk_bytes or (self.apart and host_room < 0):
                continue
            options = (
                self._tiled(passes[0], held, home, overwrites)
                if segment is None
                else self._depth_first(segment, held[segment.enters], home)
            )
            option = self._fitting(options, room - at["device"], host_room)
            if option is None:
                continue
            if overwrites is not None:
                out = out._replace(gaps=self._leaves_gaps(p, overwrites, option.tile, held))
            alive = [f for f in state if f.index != overwrites and self._survives(f.index, passes[-1])]
            after = tuple(alive) if p.makes == self.result else tuple(sorted((*alive, out)))
            peaks = found.peaks.over(
                at["device"] + option.need.device + self.statistics, at["host"] + option.need.host, at["disk"]
            )
            choice = Choice(option.tile, option.edge, home, overwrites, option.operations, option.moved, segment)
            made.append((after, Found(found.cost + option.cost, peaks, (choice, found.choices))))
        return made

    def _caches_during(self, passes: range) -> Mapping[Home, int]:
        """Bytes of causal caches: none of what came makes room before all of the passes are done."""
        during = caches_during(self.trace, self.cache_homes, passes, consumes=self.consumes)
        return {home: elements * self.itemsize for home, elements in during.items()}

    def _survives(self, index: int, i: int) -> bool:
        """The input is the caller's, and the result was there from the start."""
        return index <= 0 or index == self.result or self.last[index] > i

    def _out(self, p: TracedPass, home: Home, taken: int | None) -> Live:
        return Live(p.makes, home, prod(p.shape) * self.itemsize if taken is None else taken, self.itemsize)

    def _dying(self, p: TracedPass, i: int, held: dict[int, Live]) -> int | None:
        """A Field that is read here for the last time, and only at the output's own cells: the output can take its memory."""
        for f in p.reads:
            shape = self.trace.shapes[f]
            fits = shape[2:] == p.shape[2:] and shape[1] >= p.shape[1] and held[f].itemsize == self.itemsize
            alone = f not in p.reads_all and (f != p.enters or p.chain.pixelwise)
            if f > 0 and fits and alone and self.last[f] == i:
                return f
        return None

    def _fitting(self, options: Sequence[Option], room: int, host_room: int) -> Option | None:
        """The cheapest tiles that fit."""
        for option in options:
            if option.need.device <= room and (not self.apart or option.need.host <= host_room):
                return option
        return None

    def _leaves_gaps(self, p: TracedPass, overwrites: int, tile: tuple[int, ...], held: dict[int, Live]) -> bool:
        """Whether what takes over a Field's memory lies where that has its cells (stream/tiled_pass.py)."""
        wider = self.trace.shapes[overwrites][1] > p.shape[1]
        return held[overwrites].gaps or (wider and (self.apart or tile[1:] != p.shape[3:]))

    def _tiled(self, i: int, held: dict[int, Live], home: Home, overwrites: int | None) -> list[Option]:
        """Every tile size for a pass that finds its Fields where `held` says, cheapest first."""
        p, caches = self.trace.passes[i], self.caches_of[i]
        read = (p.enters, *p.others)
        circumstances = [(held[f]._replace(index=0, bytes=0), f == overwrites) for f in read]
        key = (self._kinds[i], home, *circumstances, *caches.items())
        if key not in self._options:
            options = [
                self._option(p, tile, edge, held, home, caches, overwrites) for tile, edge in self._tiles(p).items()
            ]
            self._options[key] = sorted(options, key=lambda option: option.cost)
        return self._options[key]

    def _option(
        self,
        p: TracedPass,
        tile: tuple[int, ...],
        edge: int,
        held: dict[int, Live],
        home: Home,
        caches: Mapping[Home, int],
        overwrites: int | None,
    ) -> Option:
        if not p.chain.ops:
            return self._foreign(p, held[p.enters], home)
        tiling = self.tilings.of(p, tile)
        lands = self._lands(p, tiling, None if overwrites is None else held[overwrites])
        need = tiling.need(
            self._reading(held[p.enters]),
            [self._reading(held[f]) for f in p.reads],
            self.itemsize,
            Reading(self.apart and home != "device", self.itemsize),
            staged=self.apart,
            kept=sum(self._elements(f) for f in p.reads_all if self._reading(held[f]).copied) * self.itemsize,
            caches_away=self.apart and any(h != "device" for h in caches),
            lands=lands,
        )
        # The frames of a clip that a pass sees as a batch of pictures; else one.
        pictures = p.shape[0]
        moved = dict.fromkeys(HOMES, 0)
        moved[held[p.enters].home] += pictures * tiling.window_elements * held[p.enters].itemsize
        for f in p.others:
            moved[held[f].home] += self._elements(f) * held[f].itemsize
        moved[home] += prod(p.shape) * self.itemsize
        for place, elements in caches.items():
            moved[place] += elements * self.itemsize
        copied = any(op.reach and not op.workspace for op in p.chain.ops) * tiling.window_elements * self.itemsize
        if lands is None and not self.apart:
            copied += prod(p.shape) * self.itemsize
        operations, tiles = pictures * tiling.operations, pictures * tiling.tiles
        return self._weighed(tile, edge, need, operations, tiles, moved, copied, PIECES)

    def _lands(self, p: TracedPass, tiling: Tiling, overwritten: Live | None) -> int | None:
        """The number of the operation that puts tiles where they lie in the output; the result may be laid out in another way."""
        if self.apart or p.makes == self.result:
            return None
        return tiling.lands(None) if overwritten is None else tiling.lands(overwritten.index, gaps=overwritten.gaps)

    def _depth_first(self, segment: Segment, enters: Live, home: Home) -> list[Option]:
        """Every tile size for a segment, cheapest first."""
        key = (NAME, segment.first, enters.home, enters.itemsize, enters.converts, home)
        if key not in self._options:
            tiles = dict.fromkeys(depth_first_tiles(segment))
            options = [self._depth_first_option(segment, tile, enters, home) for tile in tiles]
            self._options[key] = sorted(options, key=lambda option: option.cost)
        return self._options[key]

    def _depth_first_option(self, segment: Segment, tile: tuple[int, ...], enters: Live, home: Home) -> Option:
        caches, tiling = self._caches_in(segment), self.tilings.of_segment(segment, tile)
        need = tiling.need(
            self._reading(enters),
            Reading(self.apart and home != "device", self.itemsize),
            self.itemsize,
            caches_away=self.apart and any(h != "device" for h in caches),
        )
        moved = dict.fromkeys(HOMES, 0)
        moved[enters.home] += tiling.window_elements * enters.itemsize
        moved[home] += prod(segment.shape) * self.itemsize
        for place, elements in caches.items():
            # Halos have about the share of the causal cache that they have of the operations.
            moved[place] += elements * self.itemsize * tiling.operations // max(segment.operations, 1)
        return self._weighed(tile, max(tile), need, tiling.operations, tiling.tiles * len(segment.passes), moved)

    def _caches_in(self, segment: Segment) -> Mapping[Home, int]:
        """Per place, the elements of the causal cache that a segment reads and writes."""
        caches: dict[Home, int] = {}
        for i in range(segment.first, segment.stop):
            for home, elements in self.caches_of[i].items():
                caches[home] = caches.get(home, 0) + elements
        return caches

    def _foreign(self, p: TracedPass, enters: Live, home: Home) -> Option:
        """A function that sees everything: its result, and what it read if that came from elsewhere."""
        size = prod(p.shape) * self.itemsize
        need = Need(size * (3 if self._reading(enters).copied else 2), 0)
        moved = dict.fromkeys(HOMES, 0)
        moved[home] = size
        return self._weighed(p.shape[2:], max(p.shape[2:]), need, 0, 1, moved)

    def _weighed(
        self,
        tile: tuple[int, ...],
        edge: int,
        need: Need,
        operations: int,
        tiles: int,
        moved: dict[Home, int],
        copied: int = 0,
        pieces: int = 1,
    ) -> Option:
        far = moved["host"] + moved["disk"]
        copies = moved["host"] * self.costs.host_byte + moved["disk"] * self.costs.disk_byte
        copies += copied * self.costs.copied_byte
        each = self.costs.tile + self.costs.fresh(need.device, pieces)
        return Option(int(operations + tiles * each + copies), tile, edge, need, operations, far)

    def _reading(self, f: Live) -> Reading:
        """On a CPU a file is mapped, and read like memory."""
        return Reading(self.apart and f.home != "device", f.itemsize, f.converts)

    def _elements(self, field: int) -> int:
        return prod(self.trace.shapes[field])

    def _tiles(self, p: TracedPass) -> dict[tuple[int, ...], int]:
        """Tiles of each edge, aligned to what the pass's operations ask for, no larger than the Field; and their edges.

        On a CPU one of a picture is as wide as that and has no more cells than the square: it lies in one piece, and can be made
        where it is to lie.
        """
        align, sizes = p.chain.align, p.shape[2:]
        tiles = {}
        for edge in self.edges:
            tile = tuple(min(max(edge // align, 1) * align, size) for size in sizes)
            side = max(tile)
            if not self.apart and len(sizes) == 2:
                tile = _wide(tile, sizes, align)
            tiles.setdefault(tile, side)
        return tiles

    def steps(self, found: Found, first: int = 0) -> Steps:
        """The steps of a way, from pass `first` on."""
        steps: list[Step] = []
        for choice in self._choices(found):
            i = first + len(steps)
            steps += (
                [self._step(i, choice)] if choice.segment is None else self._depth_first_steps(choice.segment, choice)
            )
        return tuple(steps)

    def _step(self, i: int, choice: Choice) -> Step:
        p = self.trace.passes[i]
        return Step(
            tile=choice.tile,
            operations=p.operations,
            name=str(p.chain),
            home=choice.home,
            overwrites=choice.overwrites,
            frees=tuple(f for f in frees(p, i, self.last) if f != choice.overwrites),
            statistics=p.makes in self.watched,
            tokens=p.makes in self.tokens,
        )

    def _depth_first_steps(self, segment: Segment, choice: Choice) -> list[Step]:
        """All but the last are skipped; the last stands for all."""
        side, *skipped = max(segment.shape[-2:]), *segment.passes[:-1]
        tiles = [tuple(-(-n * max(choice.tile[-2:]) // side) for n in p.shape[-2:]) for p in skipped]
        steps = [Step(tile, 0, NAME, skipped=True) for tile in tiles]
        i, dying = segment.stop - 1, segment.enters
        done = Step(
            tile=choice.tile,
            operations=segment.operations,
            name=NAME,
            home=choice.home,
            frees=(dying,) if dying > 0 and self.last[dying] <= i else (),
            statistics=segment.makes in self.watched,
            tokens=segment.makes in self.tokens,
            since=segment.first,
        )
        return [*steps, done]

    def goes_deep(self, found: Found) -> bool:
        """Something of it goes depth first."""
        return any(choice.segment is not None for choice in self._choices(found))

    def totals(self, found: Found) -> tuple[int, int, tuple[int, int]]:
        """Operations, bytes moved, and the smallest and largest edge of a tile, of one image."""
        choices = self._choices(found)
        edges = [choice.edge for choice in choices]
        return sum(c.operations for c in choices), sum(c.moved for c in choices), (min(edges), max(edges))

    def _choices(self, found: Found) -> list[Choice]:
        """In order."""
        choices: list[Choice] = []
        link = found.choices
        while link is not None:
            choices.append(link[0])
            link = link[1]
        return choices[::-1]

    def state(self, held: Sequence[Held | None]) -> State:
        """Fields that exist, as the search sees them, the result among them."""
        return tuple(Live(i, *h, h.itemsize != self.itemsize) for i, h in enumerate(held) if h is not None)


def _wide(tile: tuple[int, ...], sizes: Shape, align: int) -> tuple[int, ...]:
    """A tile as wide as the picture, with no more cells, all of about the same height; the same one where that would be too low."""
    rows = prod(tile) // sizes[1] // align * align
    if tile[1] == sizes[1] or rows < max(LEAST_ROWS, align):
        return tile
    count = -(-sizes[0] // rows)
    return (-(-sizes[0] // (count * align)) * align, sizes[1])


def _caches_of_passes(trace: Trace, homes: Sequence[Home]) -> list[Mapping[Home, int]]:
    """Per pass and place, the elements of the causal cache that it reads and writes."""
    passes: list[dict[Home, int]] = [{} for _ in trace.passes]
    for cached, home in caches_at(trace, homes):
        at = passes[cached.replaced_in]
        at[home] = at.get(home, 0) + prod(cached.past) + prod(cached.kept)
    return [*passes]


def frees(p: TracedPass, i: int, last: Sequence[int]) -> tuple[int, ...]:
    """Fields that are read here for the last time; the network's input belongs to the caller."""
    return tuple(sorted(f for f in {p.enters, *p.others} if f > 0 and last[f] == i))
