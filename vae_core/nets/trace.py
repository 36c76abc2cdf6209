"""The traced run: the same forward over Fields that have a shape and no data.

It is the planner's only input, and the programme that runs depth first follow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .chain import Chain
from .passes import Field, Op, Place, Shape, clip_shape, frames_shape, kept_frames


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
    """What enters may be strided: a clip's frames as pictures, or the opposite, or the input, which lies as the caller has it."""
    past: tuple[int, ...] = ()
    """Of each operation, how many frames that entered it before the chunk are known."""

    @property
    def shape(self) -> Shape:
        return self.stages[-1]

    @property
    def kind(self) -> Hashable:
        """Passes of one kind need the same for the same tiles."""
        return self.chain.geometry, self.stages[0], self.view, self.past

    @property
    def operations(self) -> int:
        """In one piece."""
        return sum(self.flops(i, self.stages[i], self.stages[i + 1]) for i in range(len(self.chain.ops)))

    def flops(self, i: int, read: Shape, made: Shape) -> int:
        """Operations of one of its operations, to make `made` of `read`."""
        return self.chain.ops[i].flops(self._with_past(i, read), made)

    def scratch(self, i: int, read: Shape, made: Shape, place: Place) -> int:
        """Elements that one of its operations allocates besides input and output."""
        return self.chain.ops[i].scratch(self._with_past(i, read), made, place)

    def landing(self, i: int, read: Shape, made: Shape, place: Place) -> int:
        """The same where the run is streamed on a CPU."""
        return self.chain.ops[i].landing(self._with_past(i, read), made, place)

    def _with_past(self, i: int, read: Shape) -> Shape:
        return (*read[:2], read[2] + self.past[i], *read[3:])

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
    remembered: set[int] = field(default_factory=set)
    """Fields whose last frames go to the next chunk as they are."""

    @property
    def images(self) -> int:
        return self.shapes[0][0]

    @property
    def operations(self) -> int:
        return sum(p.operations for p in self.passes)

    @property
    def workspace_bytes(self) -> int:
        """Of the memory that all operations of a run share."""
        return 4 * max((op.workspace for p in self.passes for op in p.chain.ops), default=0)

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

    def is_local(self, p: TracedPass) -> bool:
        """Every cell that a pass makes depends on a bounded neighbourhood, and nothing but passes reads what it makes."""
        spreads = any(op.reads_statistics for op in p.chain.ops) or p.reads_all or not p.chain.ops
        return not spreads and p.makes not in self.remembered

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
        reads = tuple(field_index(f) for op in ops for f in op.reads())
        reads_all = tuple(field_index(f) for op in ops for f in op.reads_all())
        past = tuple(self.trace.past.get(op, 0) for op in ops)
        return self._made(
            TracedPass(chain, stages, self.index, reads, reads_all, len(self.trace.shapes), self._strided, past)
        )

    @property
    def _strided(self) -> bool:
        frames = self.shape[0] if len(self.shape) == 4 else self.shape[2]
        return self.index == 0 or (self.shape != self.trace.shapes[self.index] and frames > 1)

    def whole(self, function: Callable[[Tensor], Tensor]) -> TracedField:
        return self._made(TracedPass(Chain(()), [self.shape], self.index, (), (self.index,), len(self.trace.shapes)))

    def remember(self, op: Op) -> None:
        self.trace.remembered.add(self.index)
        self._look_back(op, self.shape)

    def _look_back(self, op: Op, shape: Shape) -> None:
        b, c, t, *sizes = shape
        trace, past = self.trace, self.trace.past.get(op, 0)
        kept = kept_frames(op, t, past) if trace.keeps else 0
        trace.cached[op] = Cached((b, c, past, *sizes), (b, c, kept, *sizes), len(trace.passes))

    def frames(self) -> TracedField:
        return TracedField(self.trace, self.index, frames_shape(self.shape))

    def clip(self, batch: int) -> TracedField:
        return TracedField(self.trace, self.index, clip_shape(self.shape, batch))

    def _made(self, traced: TracedPass) -> TracedField:
        self.trace.passes.append(traced)
        self.trace.shapes.append(traced.shape)
        return TracedField(self.trace, traced.makes, traced.shape)


def field_index(field: Field) -> int:
    """Its number in the trace."""
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
