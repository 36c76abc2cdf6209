"""From a trace and a budget to a plan: integers only, printable, the same for the same input.

The ladder, first rung that fits wins: the whole picture at once; streamed over tiles, from large to small, Fields on the device;
the same with the Fields in host memory. Below the last rung stands a refusal that says what would be needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BudgetError
from ..geometry import tile_kinds
from ..schedule import Step, Steps
from .footprint import Footprint, streamed, whole_run
from .trace import Trace, TracedPass

TILES = (2048, 1024, 512, 256, 128, 64, 32)
"""Edges in cells, largest first. Equal tile shapes keep the convolution kernels' caches warm, so there are few."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may use, weights included. `host_bytes` is None where device and host are one memory."""

    device_bytes: int
    host_bytes: int | None = None

    @property
    def one_memory(self) -> bool:
        return self.host_bytes is None


@dataclass(frozen=True)
class Rung:
    """One way of running, and whether it fits."""

    name: str
    tile: int | None
    device_bytes: int
    host_bytes: int
    operations: int
    fits: bool


@dataclass(frozen=True)
class Plan:
    """How a decode or encode is run, and what it is predicted to need."""

    rung: str
    tile: int | None
    """Cells along the edge of a tile of each pass's output; None for the whole picture."""
    steps: Steps | None
    """What a streamed run obeys; None for the whole picture."""
    device_bytes: int
    """Predicted peak on the device, weights included."""
    host_bytes: int
    """Predicted peak in host memory where that is another memory, else 0."""
    operations: int
    """Floating-point operations as torch counts them: two per multiply-add."""
    exact: bool
    images: int
    """Images of the batch that run at once."""
    limit_bytes: int | None
    rungs: tuple[Rung, ...]
    """Every rung that was weighed, best first."""

    def table(self) -> str:
        """The rungs as text, one line each, the chosen one marked."""
        head = f"{'':2}{'rung':<28}{'tile':>6}{'device':>12}{'host':>12}{'operations':>14}  fits"
        rows = [head]
        for rung in self.rungs:
            mark = "→ " if (rung.name, rung.tile) == (self.rung, self.tile) else "  "
            tile = "-" if rung.tile is None else str(rung.tile)
            rows.append(
                f"{mark}{rung.name:<28}{tile:>6}{readable(rung.device_bytes):>12}{readable(rung.host_bytes):>12}"
                f"{rung.operations / 1e12:>11.3f} T   {'yes' if rung.fits else 'no'}"
            )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the steps."""
        values = asdict(self)
        del values["steps"]
        return values


def readable(count: int) -> str:
    """Bytes for people: "1.25 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def plan(
    trace: Trace,
    budget: Budget | None,
    *,
    resident_bytes: int,
    element_bytes: int,
    tile: int | None = None,
    whole: bool | None = None,
) -> Plan:
    """The first rung of the ladder that fits the budget.

    `resident_bytes` is on the device whatever the rung: the weights, and what else a batch holds. `tile` allows streamed rungs
    of that edge only; `whole=True` allows the whole picture only, whatever the budget, and `whole=False` everything else.
    Raises BudgetError, saying what the smallest rung needs, when none fits.
    """
    candidates = _ladder(trace, budget, tile, whole)
    weighed: list[tuple[Rung, Steps | None]] = []
    for name, edge, steps in candidates:
        one_memory = budget is None or budget.one_memory
        peak = whole_run(trace, element_bytes) if steps is None else streamed(trace, steps, element_bytes, one_memory)
        peak = Footprint(peak.device + resident_bytes, peak.host)
        fits = budget is None or whole is True or _fits(peak, budget)
        operations = trace.operations if steps is None else streamed_operations(trace, steps)
        weighed.append((Rung(name, edge, peak.device, peak.host, operations, fits), steps))
    weighed = _without_pointless(weighed)
    rungs = tuple(rung for rung, _ in weighed)
    for rung, steps in weighed:
        if rung.fits:
            limit = None if budget is None else budget.device_bytes
            return Plan(
                rung=rung.name,
                tile=rung.tile,
                steps=steps,
                device_bytes=rung.device_bytes,
                host_bytes=rung.host_bytes,
                operations=rung.operations,
                exact=True,
                images=trace.shapes[0][0],
                limit_bytes=limit,
                rungs=rungs,
            )
    assert budget is not None
    raise BudgetError(_refusal(rungs, budget))


def _without_pointless(weighed: list[tuple[Rung, Steps | None]]) -> list[tuple[Rung, Steps | None]]:
    """Without streamed rungs that need as much of the device as the whole picture does at once."""
    first = weighed[0][0]
    if first.tile is not None:
        return weighed
    return [weighed[0], *(pair for pair in weighed[1:] if pair[0].device_bytes < first.device_bytes)]


def _fits(peak: Footprint, budget: Budget) -> bool:
    return peak.device <= budget.device_bytes and (budget.host_bytes is None or peak.host <= budget.host_bytes)


def _ladder(
    trace: Trace, budget: Budget | None, tile: int | None, whole: bool | None
) -> list[tuple[str, int | None, Steps | None]]:
    if whole is True:
        return [("whole", None, None)]
    largest = max(max(p.shape[2:]) for p in trace.passes)
    edges = (tile,) if tile is not None else tuple(t for t in TILES if t < largest) or (TILES[-1],)
    ladder: list[tuple[str, int | None, Steps | None]] = []
    if tile is None and whole is not False:
        ladder.append(("whole", None, None))
    ladder += [("streamed", edge, steps_for(trace, edge, on_host=False)) for edge in edges]
    if budget is not None and not budget.one_memory:
        ladder += [("streamed, Fields on the host", edge, steps_for(trace, edge, on_host=True)) for edge in edges]
    return ladder


def steps_for(trace: Trace, edge: int, on_host: bool) -> Steps:
    """A step for every pass: tiles of `edge` cells, memory reused and given back at once."""
    last, normalised = trace.last_use(), trace.normalised()
    steps = []
    for i, p in enumerate(trace.passes):
        overwrites = _overwritten(trace, p, i, last)
        frees = tuple(f for f in {p.enters, *p.reads, *p.reads_all} if f > 0 and last[f] == i and f != overwrites)
        steps.append(Step(_tile(p, edge), on_host, overwrites, tuple(sorted(frees)), p.makes in normalised))
    return tuple(steps)


def _tile(p: TracedPass, edge: int) -> tuple[int, ...]:
    """`edge` cells, aligned to what the pass's operations ask for, no larger than the Field."""
    aligned = max(edge // p.chain.align, 1) * p.chain.align
    return tuple(min(aligned, size) for size in p.shape[2:])


def _overwritten(trace: Trace, p: TracedPass, i: int, last: list[int]) -> int | None:
    """A Field that is read here for the last time, and only at the output's own cells, so that the output can take its memory."""
    for f in p.reads:
        shape = trace.shapes[f]
        fits = shape[2:] == p.shape[2:] and shape[1] >= p.shape[1] and f > 0
        alone = f not in p.reads_all and (f != p.enters or p.chain.pixelwise)
        if fits and alone and last[f] == i:
            return f
    return None


def streamed_operations(trace: Trace, steps: Steps) -> int:
    """Operations over tiles; more than in one piece only where a transposed convolution computes its halo's share."""
    return sum(_pass_operations(p, step.tile) for p, step in zip(trace.passes, steps, strict=True))


def _pass_operations(p: TracedPass, tile: tuple[int, ...]) -> int:
    total = 0
    for region, count in tile_kinds(p.shape[2:], tile):
        for i, (op, place) in enumerate(zip(p.chain.ops, p.chain.places(region, p.stages), strict=True)):
            read = (1, p.stages[i][1], *(w.span.size for w in place.windows))
            made = (1, p.stages[i + 1][1], *(span.size for span in place.region))
            total += op.flops(read, made) * count * p.shape[0]
    return total


def _refusal(rungs: tuple[Rung, ...], budget: Budget) -> str:
    least = min(rungs, key=lambda r: (r.device_bytes, r.host_bytes))
    tiles = "" if least.tile is None else f" with tiles of {least.tile} cells"
    host = "" if budget.host_bytes is None else f" and {readable(least.host_bytes)} of host memory"
    return (
        f"this needs at least {readable(least.device_bytes)}{host}{tiles}, and the limit is "
        f"{readable(budget.device_bytes)}; raise the memory limit, free memory, or process a smaller picture"
    )
