"""From a trace to the steps of one way of running it: tiles, memory that is taken over, memory that is given back."""

from __future__ import annotations

from ..geometry import tile_kinds
from ..schedule import Step, Steps
from .trace import Trace, TracedPass


def whole_steps(trace: Trace) -> Steps:
    """Every pass in one piece; each Field is let go after its last use."""
    last = trace.last_use()
    return tuple(
        Step(p.shape[2:], p.operations, str(p.chain), frees=_frees(p, i, last)) for i, p in enumerate(trace.passes)
    )


def streamed_steps(trace: Trace, edge: int, on_host: bool) -> Steps:
    """Tiles of `edge` cells; a pass's output takes over the memory of a Field that dies with it, where it can."""
    last, normalised = trace.last_use(), trace.normalised()
    steps = []
    for i, p in enumerate(trace.passes):
        overwrites = _overwritten(trace, p, i, last)
        frees = tuple(f for f in _frees(p, i, last) if f != overwrites)
        statistics = p.makes in normalised
        steps.append(Step(_tile(p, edge), p.operations, str(p.chain), on_host, overwrites, frees, statistics))
    return tuple(steps)


def streamed_operations(trace: Trace, steps: Steps) -> int:
    """Operations over tiles; more than in one piece only where a transposed convolution computes its halo's share."""
    return sum(_pass_operations(p, step.tile) for p, step in zip(trace.passes, steps, strict=True))


def _tile(p: TracedPass, edge: int) -> tuple[int, ...]:
    """`edge` cells, aligned to what the pass's operations ask for, no larger than the Field."""
    aligned = max(edge // p.chain.align, 1) * p.chain.align
    return tuple(min(aligned, size) for size in p.shape[2:])


def _frees(p: TracedPass, i: int, last: list[int]) -> tuple[int, ...]:
    """Fields that are read here for the last time; the network's input belongs to the caller."""
    return tuple(sorted(f for f in {p.enters, *p.reads, *p.reads_all} if f > 0 and last[f] == i))


def _overwritten(trace: Trace, p: TracedPass, i: int, last: list[int]) -> int | None:
    """A Field that is read here for the last time, and only at the output's own cells, so that the output can take its memory."""
    for f in p.reads:
        shape = trace.shapes[f]
        fits = shape[2:] == p.shape[2:] and shape[1] >= p.shape[1] and f > 0
        alone = f not in p.reads_all and (f != p.enters or p.chain.pixelwise)
        if fits and alone and last[f] == i:
            return f
    return None


def _pass_operations(p: TracedPass, tile: tuple[int, ...]) -> int:
    total = 0
    for region, count in tile_kinds(p.shape[2:], tile):
        for i, (op, place) in enumerate(zip(p.chain.ops, p.chain.places(region, p.stages), strict=True)):
            read = (1, p.stages[i][1], *(w.span.size for w in place.windows))
            made = (1, p.stages[i + 1][1], *(span.size for span in place.region))
            total += op.flops(read, made) * count * p.shape[0]
    return total
