"""The whole run over plain tensors, in no more memory than its plan says it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import prod
from typing import cast

from torch import Tensor

from ..geometry import Region, Span, slices
from ..nets import bands
from ..nets.chain import Chain
from ..nets.convolutions import kernel
from ..nets.heads import over_bands
from ..nets.layouts import Shape, is_innermost, stored
from ..nets.memory import current
from ..nets.passes import Carry, Field, Op, Place, Tile, Whole
from ..schedule import Step, Steps
from .journal import Journal
from .moments import moments_of
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
    after = _AfterPass(x, steps, progress, journal or Journal())
    try:
        return cast(Whole, forward(PlannedWhole(x, on_pass=after, carry=carry, after=after))).data
    finally:
        current().spares.keep_only()
        after.fields.clear()  # they refer to `after`, and would keep their tensors until the garbage collector comes by


class _AfterPass:
    """Lets go of each Field when the plan frees it, with its memory to spare, and tells the progress."""

    def __init__(self, entered: Tensor, steps: Steps, progress: OnProgress | None, journal: Journal):
        self.entered, self.steps, self.journal, self.since = entered, steps, journal, time.perf_counter()
        self.meter = ProgressMeter(steps, progress)
        self.fields: list[Whole | None] = [None]

    @property
    def step(self) -> Step:
        """Of the pass under way."""
        return self.steps[len(self.fields) - 1]

    def _taken_out(self, index: int) -> Whole:
        field, self.fields[index] = self.fields[index], None
        assert field is not None, "the plan frees a Field twice"
        return field

    def may_overwrite(self, x: Tensor) -> bool:
        """Whether nothing lies where `x` does, but the Field that the plan has the pass under way overwrite."""
        dying = self.step.overwrites
        return dying is not None and not any(_share_memory(x, other) for other in self._alive(but=dying))

    def _spare(self, dead: Tensor) -> None:
        """Later passes may have its memory, unless something that may be read still lies there too."""
        if dead.device.type == "cpu" and not any(_share_memory(dead, other) for other in self._alive()):
            current().spares.add(dead)

    def _alive(self, but: int | None = None) -> Iterator[Tensor]:
        """What may be read still, but for one Field. An operation may return what it was given: Fields may lie where others do."""
        yield self.entered
        yield from (field.data for i, field in enumerate(self.fields) if field is not None and i != but)

    def __call__(self, made: Whole) -> None:
        number = len(self.fields) - 1
        self.fields.append(made)
        self.journal.sample()
        self.since = self.journal.clock(self.steps[number].name, self.since)
        for index in self.steps[number].ends:
            field = self._taken_out(index)
            self._spare(field.data)
            field.let_go()
        self.meter.tile(number, 1, 1)


@dataclass
class PlannedWhole(Whole):
    """A Whole of a planned run. On a CPU the pixel-wise operations that a pass begins with go over it band by band, in the cache.

    So norm and activation read and write the memory once between them. What they make, and what is convolved of it, lies where
    Fields that have died had theirs.
    """

    after: _AfterPass | None = None

    def through(self, *ops: Op) -> Whole:
        fused = Chain(ops).fused
        head = () if fused else self._head(ops)
        rest = ops[len(head) :]
        self._settle(self._sizes(head, rest[fused:]))
        if fused:
            made = self._after(rest[fused + 1 :], self._fused(rest[: fused + 1]), owned=True)
        elif head:
            banded = self._banded(head)
            made = self._after(rest, banded, owned=True)
            if not _share_memory(made, banded) and _need_nothing(rest[1:], self.shape):
                current().spares.add(banded)
        else:
            return super().through(*ops)
        if self.carry is not None:
            self.carry.passed(ops)
        return self._made(made)

    def _after(self, ops: Sequence[Op], x: Tensor, owned: bool = False) -> Tensor:
        number = Chain(tuple(ops)).adding
        added = None if number is None else ops[number + 1].added
        if number is None or added is None or not self._may_overwrite(added):
            return super()._after(ops, x, owned)
        there = cast(Whole, added).data
        x = super()._after(ops[:number], x, owned)
        return super()._after(ops[number + 2 :], ops[number].onto(there, x), owned=True)

    def _may_overwrite(self, added: Field) -> bool:
        assert self.after is not None
        return self.after.may_overwrite(cast(Whole, added).data)

    def _fused(self, ops: Sequence[Op]) -> Tensor:
        """The result of operations of which the last reads part by part."""
        chain, source = Chain(tuple(ops)), _BandSource(self.data)
        stages = chain.stages(self.shape)
        places = chain.places(tuple(Span(0, n) for n in stages[-1][2:]), stages)
        [(_, on_tile)] = chain.bind(source)
        return on_tile(Tile(self.data, 0, owned=False), places[-1])

    def _apply(self, op: Op, x: Tensor, past: Tensor | None, owned: bool) -> Tensor:
        if op.workspace:
            return op.filtered(x, past)
        if op.adds and (spare := current().spares.take(stored(op.out_shape(x.shape)), x.dtype)) is not None:
            # Clearing it costs less than pages of new memory do.
            return op.onto(spare.movedim(-1, 1).zero_(), x)
        return super()._apply(op, x, past, owned)

    def whole(self, function: Callable[[Tensor], Tensor]) -> Whole:
        self._settle()
        return super().whole(function)

    def _settle(self, sizes: Sequence[int] = ()) -> None:
        """Keep spare memory for tensors of so many bytes each, and besides what the plan leaves room for."""
        assert self.after is not None
        current().spares.keep_only(sizes, self.after.step.spare_bytes)

    def _head(self, ops: Sequence[Op]) -> tuple[Op, ...]:
        """The operations to go over bands; none where all is in the cache anyway."""
        x, shape = self.data, self.shape
        if x.device.type != "cpu" or x.numel() <= bands.BAND_ELEMENTS or x.is_contiguous() or not is_innermost(x):
            return ()
        return tuple(
            takewhile(lambda op: op.pixelwise and op.out_shape(shape) == shape and not op.flops(shape, shape), ops)
        )

    def _sizes(self, head: Sequence[Op], rest: Sequence[Op]) -> list[int]:
        """Bytes of the tensors that a pass makes in spare memory: those of its head, and of a convolution after that."""
        made = [self.shape] if head else []
        if rest and (rest[0].workspace or rest[0].adds):
            made.append(rest[0].out_shape(self.shape))
        return [prod(shape) * self.data.element_size() for shape in made]

    def _banded(self, head: Sequence[Op]) -> Tensor:
        """The result of operations that go over bands."""
        x, source = self.data, _BandSource(self.data)
        made = current().spares.empty(stored(self.shape), x.dtype).movedim(-1, 1)
        on_tiles = [op.bind(source) for op in head]
        for image in range(len(x)):
            tile = Tile(x[image : image + 1], image, owned=False)
            over_bands(on_tiles, tile, [0] * len(self.shape[2:]), made[image : image + 1])
        return made


def _need_nothing(ops: Sequence[Op], shape: Shape) -> bool:
    """Whether operations on a whole `shape` allocate nothing, so that what was there before them may as well stay."""
    everywhere = Place(tuple(Span(0, n) for n in shape[2:]), ())
    return all(op.in_place and not op.scratch(shape, shape, everywhere) for op in ops)


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


class _BandSource:
    """What a Whole offers to the operations of its bands (nets.passes.Source)."""

    def __init__(self, x: Tensor):
        self.x, self.dtype, self.entering_shape = x, x.dtype, tuple(x.shape)

    def kernel(self, weight: Tensor) -> Tensor:
        return kernel(weight, self.dtype)

    def statistics(self) -> tuple[Tensor, Tensor]:
        return moments_of(self.x).statistics()

    def everything(self, field: Field) -> Tensor:
        return cast(Whole, field).data

    def part(self, field: Field, image: int, region: Region) -> Tensor:
        return cast(Whole, field).data[image : image + 1][slices(region)]

    def overwrites(self, field: Field) -> bool:
        return False

    def cache(self, op: Op) -> None:
        return None
