"""The traced run: the same forward over Fields that have a shape and no data. It is the planner's only input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..nets.passes import Chain, Field, Op, Shape


class TracedPass(NamedTuple):
    """One pass: what it computes, which Fields it reads and how large they are."""

    chain: Chain
    stages: list[Shape]
    """The whole shape before each operation and after the last."""
    enters: int
    """The Field that it reads with a halo."""
    reads: tuple[int, ...]
    """Fields that it reads at the output's own cells."""
    reads_all: tuple[int, ...]
    """Fields that it needs whole on the device."""
    makes: int
    """The Field that it writes."""

    @property
    def shape(self) -> Shape:
        return self.stages[-1]

    @property
    def operations(self) -> int:
        return self.chain.flops(self.stages)


@dataclass(eq=False)
class Trace:
    """The passes of one forward, in order; Fields are numbered in order of appearance, 0 is the input."""

    passes: list[TracedPass] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    @property
    def images(self) -> int:
        return self.shapes[0][0]

    @property
    def operations(self) -> int:
        return sum(p.operations for p in self.passes)

    def last_use(self) -> list[int]:
        """Per Field the index of the last pass that reads it; the number of passes for the result."""
        last = list(range(-1, len(self.shapes) - 1))
        for i, p in enumerate(self.passes):
            for index in (p.enters, *p.reads, *p.reads_all):
                last[index] = i
        last[-1] = len(self.passes)
        return last

    def normalised(self) -> set[int]:
        """Fields whose statistics a later pass needs."""
        return {p.enters for p in self.passes if p.chain.ops and p.chain.ops[0].reads_statistics}


@dataclass(frozen=True)
class TracedField:
    """A Field of a trace: a shape, and a number."""

    trace: Trace
    index: int
    shape: Shape

    def through(self, *ops: Op) -> TracedField:
        chain = Chain(ops)
        stages = chain.stages(self.shape)
        reads = tuple(_index(f) for op in ops for f in op.reads())
        reads_all = tuple(_index(f) for op in ops for f in op.reads_all())
        return self._made(TracedPass(chain, stages, self.index, reads, reads_all, len(self.trace.shapes)))

    def whole(self, function: Callable[[Tensor], Tensor]) -> TracedField:
        return self._made(TracedPass(Chain(()), [self.shape], self.index, (), (self.index,), len(self.trace.shapes)))

    def _made(self, traced: TracedPass) -> TracedField:
        self.trace.passes.append(traced)
        self.trace.shapes.append(traced.shape)
        return TracedField(self.trace, traced.makes, traced.shape)


def _index(field: Field) -> int:
    assert isinstance(field, TracedField)
    return field.index


def trace(forward: Callable[[Field], Field], shape: Shape) -> Trace:
    """The passes that `forward` makes of an input of `shape`, without any data."""
    traced = Trace(shapes=[tuple(shape)])
    forward(TracedField(traced, 0, tuple(shape)))
    return traced
