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
from ..nets.passes import Carry, Field, Op, Place, Tile, Whole, goes_in_bands
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
    """A Whole of a planned run. On a CPU the pixel-wise operations that a pass begins with go over a large one band by band, in the
    cache.

    So norm and activation read and write the memory once between them. What they make, and what is convolved of it, lies where
    Fields that have died had theirs.
    """

    after: _AfterPass | None = None

    def through(self, *ops: Op) -> Whole:
        fused = Chain(ops).fused
        head = () if fused else self._head(ops)
        rest = ops[len(head) :]
        room = self._room(rest) if head else 0
        self._settle(self._sizes(head, rest[fused:], room))
        if fused:
            made = self._after(rest[fused + 1 :], self._fused(rest[: fused + 1]), owned=True)
        elif head:
            banded = self._banded(head, room)
            made = self._after(rest, banded, owned=True, room=room)
            if not _share_memory(made, banded) and _need_nothing(rest[1:], self.shape):
                current().spares.add(banded)
        else:
            return super().through(*ops)
        if self.carry is not None:
            self.carry.passed(ops)
        return self._made(made)

    def _after(self, ops: Sequence[Op], x: Tensor, owned: bool = False, room: int = 0) -> Tensor:
        """`x` after operations; so many of its frames are room that the first of them fills."""
        number, added = self._adding(ops)
        for i, op in enumerate(ops):
            if number is not None and i == number + 1:
                continue  # it is added already
            entered = x[:, :, room:] if room else x
            past = self._past(op, entered)
            there = added if i == number else self._spare(op, entered.shape)
            if room:
                x, room = op.in_room(x, room, past, there), 0
            else:
                x = self._apply(op, x, past, owned) if there is None else op.onto(there, x, past)
            owned = True
        return x

    def _room(self, ops: Sequence[Op]) -> int:
        """Frames that the first operation needs before those of this Field."""
        if not ops:
            return 0
        past = None if self.carry is None else self.carry.before.get(ops[0])
        return ops[0].room(self.shape, 0 if past is None else past.shape[2])

    def _spare(self, op: Op, shape: Shape) -> Tensor | None:
        """Memory to add to, for what an operation makes."""
        spare = current().spares.cleared(stored(op.out_shape(shape)), self.data.dtype) if op.adds else None
        return None if spare is None else spare.movedim(-1, 1)

    def _adding(self, ops: Sequence[Op]) -> tuple[int | None, Tensor | None]:
        """The number of the operation that adds its result to a Field that is not read again, and that Field."""
        number = Chain(tuple(ops)).adding
        if number is None:
            return None, None
        added = cast(Whole, ops[number + 1].added).data
        assert self.after is not None
        return (number, added) if self.after.may_overwrite(added) else (None, None)

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
        return super()._apply(op, x, past, owned)

    def whole(self, function: Callable[[Tensor], Tensor]) -> Whole:
        self._settle()
        return super().whole(function)

    def _settle(self, sizes: Sequence[int] = ()) -> None:
        """Keep spare memory for tensors of so many bytes each, and besides what the plan leaves room for."""
        assert self.after is not None
        current().spares.keep_only(sizes, self.after.step.spare_bytes)

    def _head(self, ops: Sequence[Op]) -> tuple[Op, ...]:
        """The operations to go over bands; none where the Field is small, or would be laid out anew for nothing."""
        x, shape = self.data, self.shape
        head = tuple(takewhile(lambda op: goes_in_bands(op, shape), ops)) if x.device.type == "cpu" else ()
        room = self._room(ops[len(head) :]) if head else 0
        lies_so = is_innermost(x) and not x.is_contiguous()
        return head if (lies_so or room) and bands.pay(x.numel(), x.element_size(), room) else ()

    def _sizes(self, head: Sequence[Op], rest: Sequence[Op], room: int) -> list[int]:
        """Bytes of the tensors that a pass makes in spare memory: those of its head, and of a convolution after that."""
        made = [self._with_room(room)] if head else []
        if rest and (rest[0].workspace or rest[0].adds) and self._adding(rest)[0] != 0:
            made.append(rest[0].out_shape(self.shape))
        return [prod(shape) * self.data.element_size() for shape in made]

    def _with_room(self, room: int) -> Shape:
        """The shape with so many frames more."""
        return (*self.shape[:2], self.shape[2] + room, *self.shape[3:]) if room else self.shape

    def _banded(self, head: Sequence[Op], room: int) -> Tensor:
        """The result of operations that go over bands, behind unwritten frames."""
        x, source = self.data, _BandSource(self.data)
        made = current().spares.empty(stored(self._with_room(room)), x.dtype).movedim(-1, 1)
        inside = made[:, :, room:] if room else made
        on_tiles = [op.bind(source) for op in head]
        for image in range(len(x)):
            tile = Tile(x[image : image + 1], image, owned=False)
            over_bands(on_tiles, tile, [0] * len(self.shape[2:]), inside[image : image + 1])
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
