"""Steps that send every segment of a trace depth first."""

from __future__ import annotations

from dataclasses import replace

from vae_core.nets.segments import segments
from vae_core.nets.trace import Trace
from vae_core.plan import Case, Planner
from vae_core.schedule import Step, Steps


def depth_first_steps(trace: Trace, tile: int, itemsize: int) -> Steps:
    """Tiles of that edge of what each segment makes; the other passes are streamed over tiles of the same edge."""
    steps, last = [*Planner(Case(trace, itemsize=itemsize)).plan(None, tile=tile).steps], trace.last_use()
    for segment in segments(trace):
        *frames, h, w = segment.shape[2:]
        whole = (*frames, min(tile, h), min(tile, w))
        dying = (segment.enters,) if segment.enters > 0 and last[segment.enters] < segment.stop else ()
        done = replace(
            steps[segment.stop - 1],
            tile=whole,
            overwrites=None,
            frees=dying,
            since=segment.first,
            operations=segment.operations,
        )
        steps[segment.first : segment.stop] = [Step((1, 1), skipped=True)] * (len(segment.passes) - 1) + [done]
    return tuple(steps)
