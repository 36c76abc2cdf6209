"""The whole run over plain tensors, in no more memory than its plan says it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from torch import Tensor

from ..nets.passes import Carry, Field, Whole
from ..schedule import Steps
from .journal import Journal
from .progress import OnProgress, ProgressMeter


def run_whole(
    forward: Callable[[Field], Field],
    x: Tensor,
    steps: Steps,
    progress: OnProgress | None = None,
    journal: Journal | None = None,
    carry: Carry | None = None,
) -> Tensor:
    """`forward` over all of `x` at once; `progress` is called after each pass. `carry` is the causal cache of a clip's chunk."""
    after = _AfterPass(steps, progress, journal or Journal())
    try:
        return cast(Whole, forward(Whole(x, on_pass=after, carry=carry))).data
    finally:
        after.fields.clear()  # they refer to `after`, and would keep their tensors until the garbage collector comes by


class _AfterPass:
    """Lets go of each Field when the plan frees it, and tells the progress."""

    def __init__(self, steps: Steps, progress: OnProgress | None, journal: Journal):
        self.steps, self.journal, self.since = steps, journal, time.perf_counter()
        self.meter = ProgressMeter(steps, progress)
        self.fields: list[Whole | None] = [None]

    def __call__(self, made: Whole) -> None:
        number = len(self.fields) - 1
        self.fields.append(made)
        self.journal.sample()
        self.since = self.journal.clock(self.steps[number].name, self.since)
        for index in self.steps[number].frees:
            field = self.fields[index]
            assert field is not None, "the plan frees a Field twice"
            field.let_go()
            self.fields[index] = None
        self.meter.tile(number, 1, 1)
