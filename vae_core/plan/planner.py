"""From a trace and a budget to a plan: integers only, the same for the same input.

The rungs: everything at once; one image of a batch at a time; depth first, tile by tile through the whole network, where nothing is
normalised over the picture, or through as much of it as that holds for; streamed over tiles, Fields on the device; with Fields in
host memory as well; with Fields in files. Of those that fit, the cheapest is taken. Below stands a refusal that says what would be
needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import NamedTuple

from ..errors import BudgetError
from ..nets.trace import Trace
from ..schedule import Held, Home, Step, Steps
from .footprint import added_onto, whole_bytes, whole_peaks
from .plan import Budget, Costs, Plan, Rung, readable, table
from .search import CALLERS, Found, Live, State, Streamable, frees
from .tilings import Tilings

TILES = (2048, 1024, 512, 256, 128, 64, 32)
"""Edges in cells, largest first. Equal tile shapes keep the convolution kernels' caches warm, so there are few."""

NEARLY = 1.05
"""Costs that differ less are as good as equal: they weigh what a run does by orders of magnitude."""

CLEARLY = 3 / 4
"""Of the memory of another way: what is worth tiles, which take a little longer where all is small."""

FREE = Costs(tile=0, host_byte=0, disk_byte=0)

STREAMED: dict[tuple[Home, ...], str] = {
    ("device",): "streamed",
    ("device", "host"): "streamed, Fields on the host",
    ("device", "disk"): "streamed, Fields in files",
    ("device", "host", "disk"): "streamed, Fields in files",
}


@dataclass(frozen=True)
class Case:
    """What is to be planned: `images` pictures of one size through one network."""

    trace: Trace
    """Of one image."""
    images: int = 1
    itemsize: int = 4
    """Bytes of an element of weights and Fields."""
    weight_bytes: int = 0
    costs: Costs = FREE
    apart: bool = False
    """The device has a memory of its own."""
    input_home: Home = "device"
    input_itemsize: int | None = None
    """Bytes of an element of the input as it lies; by default `itemsize`."""
    input_converts: bool = False
    """The input is of another dtype than the run computes in."""
    watched: bool = False
    """Values may overflow: only rungs that notice it early and can repeat a pass."""
    cache_homes: tuple[Home, ...] = ()
    """Where each causal cache lives, in the order of the trace; by default on the device."""
    beside_bytes: int = 0
    """What the caller holds on the device meanwhile."""

    @property
    def standing_bytes(self) -> int:
        """On the device from beginning to end, besides Fields."""
        return self.weight_bytes + self.beside_bytes + self.trace.workspace_bytes

    @property
    def input_bytes(self) -> int:
        return self.images * prod(self.trace.shapes[0]) * (self.input_itemsize or self.itemsize)

    @property
    def result_bytes(self) -> int:
        return self.images * prod(self.trace.shapes[-1]) * self.itemsize


KEPT_PLANS = 8
"""Of one case, for as many budgets: the chunks of a clip ask for the same again and again."""


class Way(NamedTuple):
    """A rung with what carries it out."""

    rung: Rung
    steps: Steps = ()
    uploads: bool = True
    result_home: Home = "device"


class Planner:
    """Weighs every way of running one case. Work that does not depend on the budget is done once."""

    def __init__(self, case: Case, tilings: Tilings | None = None):
        """`tilings` are those of another planner for the same network and size."""
        self.case, self.tilings = case, tilings or Tilings()
        self._streamable: dict[tuple[int, ...], Streamable] = {}
        self._whole: dict[int, list[int]] = {}
        self._plans: dict[object, Plan] = {}

    def plan(
        self,
        budget: Budget | None,
        *,
        tile: int | None = None,
        whole: bool = False,
        without: Sequence[str] = (),
        briefly: bool = False,
    ) -> Plan:
        """The cheapest way that fits the budget; where new memory costs time, among the nearly cheapest the one of least memory, or
        the plainest if that saves little.

        `tile` allows streamed rungs of that edge only; `whole` everything at once only, whatever the budget. `without` names rungs
        that have been tried and failed. `briefly` weighs no other rung where the whole run fits and memory costs nothing. Raises
        BudgetError, saying what the smallest rung needs, when none fits.
        """
        asked = (budget, tile, whole, tuple(without), briefly)
        plan = self._plans.pop(asked, None) or self._planned(*asked)
        self._plans[asked] = plan
        if len(self._plans) > KEPT_PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _planned(
        self, budget: Budget | None, tile: int | None, whole: bool, without: Sequence[str], briefly: bool
    ) -> Plan:
        limit = budget or Budget(1 << 62, 1 << 62 if self.case.apart else None)
        ways = [self.whole(self.case.images, limit)] if whole else self._weighed(limit, tile, without, briefly)
        ways = [way for way in ways if way.rung.name not in without] or ways
        rungs = tuple(way.rung for way in ways)
        fitting = [way for way in ways if (way.rung.fits or whole) and way.rung.name not in without]
        if not fitting:
            raise BudgetError(self._refusal(rungs, limit), table(rungs), rungs, limit.device_bytes)
        best = min(fitting, key=lambda way: way.rung.cost)
        if self.case.costs.fresh_byte:
            alike = [way for way in fitting if way.rung.cost <= NEARLY * best.rung.cost]
            least = min(alike, key=lambda way: way.rung.device_bytes)
            best = least if least.rung.device_bytes <= CLEARLY * alike[0].rung.device_bytes else alike[0]
        return Plan(
            best.rung,
            best.steps,
            None if budget is None else budget.device_bytes,
            rungs,
            best.uploads,
            best.result_home,
        )

    def rungs(self, budget: Budget) -> tuple[Rung, ...]:
        """Every rung with what it needs at this budget, or at least needs where it does not fit."""
        return tuple(way.rung for way in self._ways(budget, None))

    def rest(
        self, budget: Budget, steps: Steps, first: int, held: Sequence[Held | None], itemsize: int, result: Held
    ) -> Steps | None:
        """New steps from pass `first` on, of a run that goes on with elements of `itemsize`; None if none fit."""
        case = replace(self.case, itemsize=itemsize)
        streamable = self._streamable_of(case, TILES)
        state = (*streamable.state(held), Live(streamable.result, *result))
        found = streamable.best(
            budget,
            self._homes(budget)[-1],
            [state],
            weight_bytes=case.standing_bytes + case.weight_bytes,
            first=first,
            reuse=False,
        )
        return None if found is None else (*steps[:first], *streamable.steps(found[0], first))

    # --- rungs --------------------------------------------------------------------------------------------------------

    def _weighed(self, budget: Budget, tile: int | None, without: Sequence[str], briefly: bool) -> list[Way]:
        ways = []
        for way in self._ways(budget, tile, without):
            ways.append(way)
            unbeaten = way.rung.name == "whole" and way.rung.fits and "whole" not in without
            if briefly and unbeaten and not self.case.costs.fresh_byte:
                break
        return ways

    def _ways(self, budget: Budget, tile: int | None, without: Sequence[str] = ()) -> Iterator[Way]:
        case, worth = self.case, budget
        if tile is None and not case.watched:
            if all(home == "device" for home in case.cache_homes):
                wholes = [self.whole(images, budget) for images in dict.fromkeys((case.images, 1))]
                yield from wholes
                worth = self._worth(wholes[0].rung, budget)
            deep = self._depth_first(budget)
            if deep is not None:
                yield deep
        nearer: Way | None = None
        for homes in self._homes(budget):
            failed = nearer is not None and nearer.rung.name in without
            edges = (tile,) if tile is not None else self._edges()
            way = self._streamed(budget, homes, edges, far=failed, worth=worth)
            if nearer is None or failed or way.steps != nearer.steps:  # else the farther places are not used
                yield way
            if worth != budget and way.rung.name not in without:
                return  # what fits in one piece needs no files
            nearer = way

    def _worth(self, whole: Rung, budget: Budget) -> Budget:
        """What tiles may use to be taken in place of the whole run where that fits."""
        if not (self.case.costs.fresh_byte and whole.fits):
            return budget
        return replace(budget, device_bytes=int(CLEARLY * whole.device_bytes))

    def _homes(self, budget: Budget) -> list[tuple[Home, ...]]:
        """Where Fields may live, from near to far."""
        near: list[tuple[Home, ...]] = [("device",), ("device", "host")] if self.case.apart else [("device",)]
        return [*near, (*near[-1], "disk")] if budget.disk_bytes else near

    def whole(self, images: int, budget: Budget) -> Way:
        """All of an image, or of the batch, at once."""
        case = self.case
        if images not in self._whole:
            self._whole[images] = whole_peaks(_batch(case.trace, images), case.itemsize)
        peaks = self._whole[images]
        peak, host = max(peaks), 0
        if images != case.images:
            peak += case.result_bytes
        if case.input_home == "device":
            peak += case.input_bytes
        else:
            host = case.input_bytes
        if case.input_home != "device" or case.input_converts or not case.apart:
            # On a CPU it is laid out anew.
            peak += images * prod(case.trace.shapes[0]) * case.itemsize
        operations = case.images * case.trace.operations
        cost = operations + case.costs.tile * len(case.trace.passes) * (case.images // images)
        name = "whole" if images == case.images else "whole, image by image"
        rung = self._rung(name, None, images, budget, (peak, host, 0), operations, 0, cost)
        return Way(rung, whole_steps(case.trace, [max(peaks) - each for each in peaks]))

    def _depth_first(self, budget: Budget) -> Way | None:
        """Depth first as far as the network allows it and it pays; None where nothing goes so."""
        streamable, homes = self._of_edges(self._edges()), self._homes(budget)[-1]
        if not streamable.segments:
            return None
        as_a_whole = any(segment.is_all for segment in streamable.segments.values())
        found = self._best(streamable, budget, homes, homes, deep=True)
        if found is None and as_a_whole:
            found = self._best(streamable, self._least, homes[-1:], homes[-1:], deep=True)
        if found is None or not streamable.goes_deep(found[0]):
            return None
        return self._way(streamable, *found, "depth first" if as_a_whole else "depth first in part", budget)

    def _streamed(
        self, budget: Budget, homes: tuple[Home, ...], edges: tuple[int, ...], far: bool, worth: Budget
    ) -> Way:
        """The cheapest way that fits, or one in `worth` that is nearly as cheap.

        Where nothing fits, the one of the smallest tiles and Fields as far away as may be.

        `far` puts the result as far away as may be: nearer there was no room.
        """
        streamable, ends = self._of_edges(edges), homes[-1:] if far else homes
        found = self._best(streamable, budget, homes, ends)
        less = None if worth == budget else self._best(streamable, worth, homes, ends)
        if found is None:
            streamable = self._of_edges(edges[-1:])
            found = self._best(streamable, self._least, homes[-1:], homes[-1:])
            assert found is not None
        elif less is not None and less[0].cost <= NEARLY * found[0].cost:
            found = less
        return self._way(streamable, *found, STREAMED[homes], budget)

    @property
    def _least(self) -> Budget:
        """In which everything fits, to see what it needs."""
        return Budget(1 << 62, 1 << 62 if self.case.apart else None, 1 << 62)

    def _best(
        self,
        streamable: Streamable,
        budget: Budget,
        homes: tuple[Home, ...],
        ends: tuple[Home, ...],
        *,
        deep: bool = False,
    ) -> tuple[Found, State] | None:
        """New Fields may live at `homes`, the result and a copy of the input at `ends`; `deep` lets segments go depth first."""
        return streamable.best(
            budget,
            homes,
            self._starts(ends),
            weight_bytes=self.case.standing_bytes,
            reuse=not self.case.watched,
            deep=deep,
        )

    def _way(self, streamable: Streamable, found: Found, state: State, name: str, budget: Budget) -> Way:
        case = self.case
        at = {f.index: f for f in state}
        operations, moved, edges = streamable.totals(found)
        device, host, disk = found.peaks
        rung = self._rung(
            name,
            edges,
            1,
            budget,
            (device, host, disk),
            operations * case.images,
            moved * case.images,
            found.cost * case.images,
        )
        return Way(rung, streamable.steps(found), at[0].home == "device" != case.input_home, at[streamable.result].home)

    def _starts(self, homes: Sequence[Home]) -> list[State]:
        """Where the input is read from, and where the result is put."""
        case = self.case
        itemsize = case.input_itemsize or case.itemsize
        lies = Live(0, case.input_home, case.input_bytes, itemsize, case.input_converts)
        inputs: list[State] = [(lies,)]
        if case.input_home != "device" and "device" in homes:
            elements = case.images * prod(case.trace.shapes[0])
            uploaded = Live(0, "device", elements * case.itemsize, case.itemsize)
            inputs.append((lies._replace(index=CALLERS), uploaded))
        result = len(case.trace.shapes) - 1
        return [(*x, Live(result, home, case.result_bytes, case.itemsize)) for x in inputs for home in homes]

    def _of_edges(self, edges: tuple[int, ...]) -> Streamable:
        if edges not in self._streamable:
            self._streamable[edges] = self._streamable_of(self.case, edges)
        return self._streamable[edges]

    def _streamable_of(self, case: Case, edges: tuple[int, ...]) -> Streamable:
        return Streamable(
            case.trace,
            case.itemsize,
            case.costs,
            apart=case.apart,
            edges=edges,
            cache_homes=case.cache_homes,
            consumes=not case.watched,
            tilings=self.tilings,
        )

    def _edges(self) -> tuple[int, ...]:
        largest = max(max(p.shape[2:]) for p in self.case.trace.passes)
        return tuple(edge for edge in TILES if edge < largest) or TILES[-1:]

    def _rung(
        self,
        name: str,
        tile: tuple[int, int] | None,
        images: int,
        budget: Budget,
        peaks: tuple[int, int, int],
        operations: int,
        moved: int,
        cost: int,
    ) -> Rung:
        cost += self.case.costs.fresh(peaks[0])
        peaks = (peaks[0] + self.case.standing_bytes, *peaks[1:])
        limits = (budget.device_bytes, inf if budget.host_bytes is None else budget.host_bytes, budget.disk_bytes)
        fits = all(peak <= limit for peak, limit in zip(peaks, limits, strict=True))
        return Rung(name, tile, images, *peaks, operations, moved, cost, fits)

    def _refusal(self, rungs: tuple[Rung, ...], budget: Budget) -> str:
        least = min(rungs, key=lambda rung: (rung.device_bytes, rung.host_bytes, rung.disk_bytes))
        where = "on the device" if self.case.apart else "of memory"
        need = f"needs {readable(least.device_bytes)} {where}"
        if least.tile is not None:
            need += f" with tiles of {least.tile[0]} cells"
        also = [
            (least.host_bytes, budget.host_bytes, "of host memory"),
            (least.disk_bytes, budget.disk_bytes, "of disk"),
        ]
        for amount, limit, what in also:
            if amount:
                need += f" and {readable(amount)} {what}"
                need += f" (there is {readable(limit)})" if limit is not None and amount > limit else ""
        if budget.asked:
            return (
                f"this {need}, and the limit is {readable(budget.device_bytes)}; raise it, or process a smaller picture"
            )
        free = f"{readable(budget.device_bytes)} is free"
        return f"this {need}, and {free}; close programs or models that use memory, or process a smaller picture"


def plan_blend(
    chunks: Sequence[Trace], tiles: int, tile_px: int, budget: Budget, *, images: int, held_bytes: int, itemsize: int
) -> Plan:
    """Overlap-and-blend: `tiles` whole runs, each of a picture's trace or of those of a clip's chunks, beside what is held."""
    peak = max(whole_bytes(trace, itemsize) + trace.workspace_bytes for trace in chunks) + held_bytes
    fits, operations = peak <= budget.device_bytes, sum(trace.operations for trace in chunks) * tiles
    rung = Rung(
        "blend (approximate)",
        (tile_px, tile_px),
        images,
        peak,
        0,
        0,
        operations,
        0,
        operations,
        fits,
        exact=False,
    )
    if not fits:
        raise BudgetError(
            f"blending tiles of {tile_px} px needs {readable(peak)}, and the limit is {readable(budget.device_bytes)}; "
            'choose a smaller tile, or mode="exact", which needs less',
            table([rung]),
            [rung],
            budget.device_bytes,
        )
    return Plan(rung, (), budget.device_bytes, (rung,))


def whole_steps(trace: Trace, spare_bytes: Sequence[int]) -> Steps:
    """Every pass in one piece; each Field is let go after its last use, or overwritten by what is added to it."""
    last = trace.last_use()
    steps = []
    for i, (p, spare) in enumerate(zip(trace.passes, spare_bytes, strict=True)):
        dying, onto = frees(p, i, last), added_onto(p, i, last)
        left = tuple(field for field in dying if field != onto)
        steps.append(Step(p.shape[2:], p.operations, str(p.chain), overwrites=onto, frees=left, spare_bytes=spare))
    return tuple(steps)


def _batch(trace: Trace, images: int) -> Trace:
    """The trace of a batch: shapes and operations of all its images."""
    if trace.images == images:
        return trace
    passes = [p._replace(stages=[(images, *shape[1:]) for shape in p.stages]) for p in trace.passes]
    return Trace(passes, [(images, *shape[1:]) for shape in trace.shapes])
