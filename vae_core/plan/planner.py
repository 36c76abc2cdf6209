"""From traces and a budget to a plan: integers only, the same for the same input.

The ladder, first rung that fits wins: everything at once; one image of a batch at a time; streamed over tiles, from large to
small, Fields on the device; the same with the Fields in host memory. Below the last rung stands a refusal that says what would be
needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from ..errors import BudgetError
from ..schedule import Steps
from .footprint import streamed, whole_run
from .plan import Budget, Plan, Rung, readable, table
from .steps import streamed_operations, streamed_steps, whole_steps
from .trace import Trace

TILES = (2048, 1024, 512, 256, 128, 64, 32)
"""Edges in cells, largest first. Equal tile shapes keep the convolution kernels' caches warm, so there are few."""


class Way(NamedTuple):
    """A rung with the steps that carry it out."""

    rung: Rung
    steps: Steps


def plan(
    trace: Trace,
    budget: Budget | None,
    *,
    weight_bytes: int,
    element_bytes: int,
    one: Trace | None = None,
    tile: int | None = None,
    whole: bool = False,
) -> Plan:
    """The first rung of the ladder that fits the budget.

    `one` is the trace of a single image where `trace` is of a batch. `tile` allows streamed rungs of that edge only;
    `whole` allows everything at once only, whatever the budget. Raises BudgetError, saying what the smallest rung needs,
    when none fits.
    """
    ladder = Ladder(trace, one if one is not None and trace.images > 1 else trace, budget, weight_bytes, element_bytes)
    ways = [ladder.whole(trace)] if whole else list(ladder.ways(tile))
    rungs = tuple(way.rung for way in ways)
    for rung, steps in ways:
        if rung.fits or whole:
            return Plan(rung, steps, None if budget is None else budget.device_bytes, rungs)
    assert budget is not None
    raise BudgetError(_refusal(rungs, budget), table(rungs))


def plan_blend(
    trace: Trace, tile: Trace, tiles: int, tile_px: int, budget: Budget, *, weight_bytes: int, element_bytes: int
) -> Plan:
    """Overlap-and-blend: `tiles` whole runs like `tile`, beside the input and two copies of the result of `trace`."""
    held = (prod(trace.shapes[0]) + 2 * prod(trace.shapes[-1])) * element_bytes + weight_bytes
    peak = whole_run(tile, element_bytes).device + held
    fits = peak <= budget.device_bytes
    rung = Rung("blend (approximate)", tile_px, trace.images, peak, 0, tile.operations * tiles, fits, exact=False)
    if not fits:
        raise BudgetError(
            f"blending tiles of {tile_px} px needs {readable(peak)}, and the limit is {readable(budget.device_bytes)}; "
            'choose a smaller tile, or mode="exact", which needs less',
            table([rung]),
        )
    return Plan(rung, (), budget.device_bytes, (rung,))


class Ladder:
    """The rungs for one input, each weighed against the budget."""

    def __init__(self, trace: Trace, one: Trace, budget: Budget | None, weight_bytes: int, element_bytes: int):
        self.trace, self.one, self.budget = trace, one, budget
        self.weight_bytes, self.element_bytes = weight_bytes, element_bytes
        self.one_memory = budget is None or budget.host_bytes is None

    def ways(self, tile: int | None) -> Iterator[Way]:
        """Best first; streamed rungs only if they need less of the device than the rungs above them."""
        least = None
        if tile is None:
            for trace in dict.fromkeys((self.trace, self.one)):
                way = self.whole(trace)
                least = way.rung.device_bytes
                yield way
        for on_host in (False,) if self.one_memory else (False, True):
            for edge in (tile,) if tile is not None else self._edges():
                way = self.streamed(edge, on_host)
                if least is None or way.rung.device_bytes < least:
                    yield way

    def whole(self, trace: Trace) -> Way:
        """All of an image, or of the batch, at once."""
        peak = whole_run(trace, self.element_bytes)
        name = "whole" if trace is self.trace else "whole, image by image"
        return Way(self._rung(name, None, trace, peak.device, 0, trace.operations), whole_steps(trace))

    def streamed(self, edge: int, on_host: bool) -> Way:
        """Image by image, over tiles."""
        steps = streamed_steps(self.one, edge, on_host)
        peak = streamed(self.one, steps, self.element_bytes, self.one_memory)
        name = "streamed, Fields on the host" if on_host else "streamed"
        return Way(
            self._rung(name, edge, self.one, peak.device, peak.host, streamed_operations(self.one, steps)), steps
        )

    def _edges(self) -> tuple[int, ...]:
        largest = max(max(p.shape[2:]) for p in self.one.passes)
        return tuple(edge for edge in TILES if edge < largest) or TILES[-1:]

    def _rung(self, name: str, edge: int | None, trace: Trace, device: int, host: int, operations: int) -> Rung:
        parts = self.trace.images // trace.images
        device += self.weight_bytes + (0 if trace is self.trace else self._batch_bytes())
        fits = self.budget is None or (device <= self.budget.device_bytes and host <= (self.budget.host_bytes or host))
        return Rung(name, edge, trace.images, device, host, operations * parts, fits)

    def _batch_bytes(self) -> int:
        """Input and results of a batch, and the results joined."""
        return (prod(self.trace.shapes[0]) + 2 * prod(self.trace.shapes[-1])) * self.element_bytes


def _refusal(rungs: tuple[Rung, ...], budget: Budget) -> str:
    least = min(rungs, key=lambda r: (r.device_bytes, r.host_bytes))
    tiles = "" if least.tile is None else f" with tiles of {least.tile} cells"
    host = "" if budget.host_bytes is None else f" and {readable(least.host_bytes)} of host memory"
    return (
        f"this needs at least {readable(least.device_bytes)}{host}{tiles}, and the limit is "
        f"{readable(budget.device_bytes)}; raise the memory limit, free memory, or process a smaller picture"
    )
