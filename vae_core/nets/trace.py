"""The traced run: the same forward over Fields that have a shape and no data.

It is the planner's only input, and the programme that a depth-first run follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..geometry import Region, aligned, bounding
from .passes import Chain, Field, Op, Shape, kept_frames


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
    view: bool = False
    """What enters is a strided view of a Field: a clip's frames as pictures, or the opposite."""

    @property
    def shape(self) -> Shape:
        return self.stages[-1]

    @property
    def operations(self) -> int:
        return self.chain.flops(self.stages)

    @property
    def others(self) -> tuple[int, ...]:
        """Every Field that it reads besides the one that it enters with."""
        return (*self.reads, *self.reads_all)


class Cached(NamedTuple):
    """The causal cache of one operation: what comes in and what goes out."""

    past: Shape
    kept: Shape
    replaced_in: int
    """The pass in which the one makes room for the other."""


@dataclass(eq=False)
class Trace:
    """The passes of one forward, in order; Fields are numbered in order of appearance, 0 is the input."""

    passes: list[TracedPass] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    past: Mapping[Op, int] = field(default_factory=dict)
    """The causal cache that comes in: for each operation that looks back, how many frames are known."""
    keeps: bool = True
    """A causal cache goes out: another chunk follows."""
    cached: dict[Op, Cached] = field(default_factory=dict)
    """Each operation that looks back, in order."""

    @property
    def images(self) -> int:
        return self.shapes[0][0]

    @property
    def operations(self) -> int:
        return sum(p.operations for p in self.passes)

    @property
    def carries(self) -> bool:
        """A causal cache comes in or goes out."""
        return any(c.past[2] or c.kept[2] for c in self.cached.values())

    def last_use(self) -> list[int]:
        """Per Field the index of the last pass that reads it; the number of passes for the result."""
        last = list(range(-1, len(self.shapes) - 1))
        for i, p in enumerate(self.passes):
            for index in (p.enters, *p.reads, *p.reads_all):
                last[index] = i
        last[-1] = len(self.passes)
        return last

    @property
    def local(self) -> bool:
        """Every output cell depends on a bounded neighbourhood: nothing is normalised over the picture or attends to all of it."""
        ops = [op for p in self.passes for op in p.chain.ops]
        return not any(op.reads_statistics for op in ops) and not any(p.reads_all for p in self.passes)

    def needs(self, region: Region) -> list[Region]:
        """Per Field the region that is needed of it to make `region` of the result. Only for a `local` trace."""
        needs: list[Region | None] = [None] * len(self.shapes)
        needs[-1] = aligned(region, self.passes[-1].chain.align, self.shapes[-1][2:])
        for p in reversed(self.passes):
            made = needs[p.makes]
            assert made is not None, "a Field that no one reads"
            places = p.chain.places(made, p.stages)
            _widen(needs, p.enters, tuple(w.span for w in places[0].windows), self)
            for op, place in zip(p.chain.ops, places, strict=True):
                for other in op.reads():
                    _widen(needs, _index(other), place.region, self)
        return [need if need is not None else () for need in needs]

    def tokens(self) -> set[int]:
        """Fields that are only ever read whole, as attention reads them."""
        whole = {f for p in self.passes for f in p.reads_all}
        return whole - {f for p in self.passes for f in (p.enters, *p.reads)}

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
        for op, shape in zip(ops, stages[:-1], strict=True):
            if op.reach:
                self._look_back(op, shape)
        reads = tuple(_index(f) for op in ops for f in op.reads())
        reads_all = tuple(_index(f) for op in ops for f in op.reads_all())
        return self._made(
            TracedPass(chain, stages, self.index, reads, reads_all, len(self.trace.shapes), self._strided)
        )

    @property
    def _strided(self) -> bool:
        frames = self.shape[0] if len(self.shape) == 4 else self.shape[2]
        return self.shape != self.trace.shapes[self.index] and frames > 1

    def whole(self, function: Callable[[Tensor], Tensor]) -> TracedField:
        return self._made(TracedPass(Chain(()), [self.shape], self.index, (), (self.index,), len(self.trace.shapes)))

    def remember(self, op: Op) -> None:
        self._look_back(op, self.shape)

    def _look_back(self, op: Op, shape: Shape) -> None:
        b, c, t, *sizes = shape
        trace, past = self.trace, self.trace.past.get(op, 0)
        kept = kept_frames(op, t, past) if trace.keeps else 0
        trace.cached[op] = Cached((b, c, past, *sizes), (b, c, kept, *sizes), len(trace.passes))

    def frames(self) -> TracedField:
        b, c, t, *sizes = self.shape
        return TracedField(self.trace, self.index, (b * t, c, *sizes))

    def clip(self, batch: int) -> TracedField:
        frames, c, *sizes = self.shape
        return TracedField(self.trace, self.index, (batch, c, frames // batch, *sizes))

    def _made(self, traced: TracedPass) -> TracedField:
        self.trace.passes.append(traced)
        self.trace.shapes.append(traced.shape)
        return TracedField(self.trace, traced.makes, traced.shape)


def _widen(needs: list[Region | None], index: int, region: Region, trace: Trace) -> None:
    """Add a region to what is needed of a Field, out to what the pass that makes it is aligned to."""
    old = needs[index]
    wider = region if old is None else bounding(old, region)
    align = trace.passes[index - 1].chain.align if index else 1  # Field i is made by pass i - 1
    needs[index] = aligned(wider, align, trace.shapes[index][2:])


def _index(field: Field) -> int:
    assert isinstance(field, TracedField)
    return field.index


def trace(
    forward: Callable[[Field], Field], shape: Shape, past: Mapping[Op, int] | None = None, *, keeps: bool = True
) -> Trace:
    """The passes that `forward` makes of an input of `shape`, without any data.

    Of a chunk of a clip, `past` is the causal cache that it finds, in frames, and `keeps` whether another chunk follows.
    """
    traced = Trace(shapes=[tuple(shape)], past=past or {}, keeps=keeps)
    forward(TracedField(traced, 0, tuple(shape)))
    return traced
