"""The whole run over plain tensors, in no more memory than its plan says it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import cast

from torch import Tensor

from ..geometry import Region, Span, Window, grid, slices
from ..nets.layers import kernel
from ..nets.layouts import Shape, is_innermost, new_empty
from ..nets.passes import Carry, Field, Op, Place, Tile, Whole
from ..nets.statistics import BAND_ELEMENTS
from ..schedule import Steps
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
    after = _AfterPass(steps, progress, journal or Journal())
    try:
        return cast(Whole, forward(PlannedWhole(x, on_pass=after, carry=carry))).data
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


class Spare:
    """A tensor that a pass has finished with, whose memory the next pass writes into if it wants one of that size.

    On CPUs, where the system clears each page of new memory first: that is a tenth of a whole run.
    """

    def __init__(self) -> None:
        self.data: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """Unwritten, laid out as `x`: the spare one, or a new one. There is no spare one after that."""
        data, self.data = self.data, None
        if data is not None and data.shape == x.shape and data.stride() == x.stride() and data.dtype == x.dtype:
            return data
        del data
        return new_empty(x, tuple(x.shape))


@dataclass
class PlannedWhole(Whole):
    """A Whole of a planned run. On a CPU the pixel-wise operations that a pass begins with go over it band by band, in the cache.

    So norm and activation read and write the memory once between them, and what they make lies where the pass before had its own.
    """

    spare: Spare = field(default_factory=Spare)

    def through(self, *ops: Op) -> Whole:
        head = self._head(ops)
        if not head:
            self.spare.data = None
            return super().through(*ops)
        rest = ops[len(head) :]
        made = self._after(rest, self._banded(head, keep=_need_nothing(rest[1:], self.shape)), owned=True)
        if self.spare.data is not None and _share_memory(made, self.spare.data):
            self.spare.data = None
        if self.carry is not None:
            self.carry.passed(ops)
        return self._made(made)

    def whole(self, function: Callable[[Tensor], Tensor]) -> Whole:
        self.spare.data = None
        return super().whole(function)

    def _head(self, ops: Sequence[Op]) -> tuple[Op, ...]:
        """The operations to go over bands; none where all is in the cache anyway."""
        x, shape = self.data, self.shape
        if x.device.type != "cpu" or x.numel() <= BAND_ELEMENTS or x.is_contiguous() or not is_innermost(x):
            return ()
        return tuple(
            takewhile(lambda op: op.pixelwise and op.out_shape(shape) == shape and not op.flops(shape, shape), ops)
        )

    def _banded(self, head: Sequence[Op], keep: bool) -> Tensor:
        """The result of `head`; the next pass may have its memory if it is to `keep`."""
        x, made, source = self.data, self.spare.like(self.data), _BandSource(self.data)
        on_tiles = [op.bind(source) for op in head]
        for image in range(len(x)):
            for region in grid(self.shape[2:], band(self.shape)):
                place, part = Place(region, tuple(map(Window, region))), slices(region)
                tile = Tile(x[image : image + 1][part], image, owned=False)
                for on_tile in on_tiles:
                    tile = Tile(on_tile(tile, place), image, owned=True)
                made[image : image + 1][part].copy_(tile.data)
        self.spare.data = made if keep else None
        return made


def band(shape: Shape) -> tuple[int, ...]:
    """The sides of a part of a Field that lies in one piece in memory, and in the processor's cache."""
    _, channels, *sizes = shape
    sides, left = [], BAND_ELEMENTS // channels
    for size in reversed(sizes):
        sides.append(min(size, max(left, 1)))
        left //= size
    return tuple(reversed(sides))


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

    def cache(self, op: Op) -> None:
        return None
