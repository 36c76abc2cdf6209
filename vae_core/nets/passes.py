"""What a network's forward is made of: Fields, and passes of operations over them.

A *Field* is an activation that lies over the whole picture, `b c h w` (or `b c t h w`). A network's forward takes a Field and
returns one; each line sends a Field through a few operations: one *pass*. What a pass does with tiles, devices and memory is the
Field's business, so that the forward is written once and runs whole (`Whole`, below: plain tensors), streamed (stream/) or traced
(plan/).

An *operation* (`Op`) is a layer that also knows its geometry: which window of its input an output region needs, and how to compute
just that region. Several operations in one pass run over one tile in turn, and only the last one's result is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..geometry import Region, Window
from ..schedule import Home
from .layouts import Shape, is_innermost


class Field(Protocol):
    """An activation over the whole picture, wherever it lives."""

    @property
    def shape(self) -> Shape: ...

    def through(self, *ops: Op) -> Field:
        """One pass: the operations in order, tile by tile if need be."""
        ...

    def remember(self, op: Op) -> None:
        """Puts the Field's last frames into the causal cache, for an operation that begins with the next chunk."""
        ...

    def frames(self) -> Field:
        """A clip's frames as a batch of pictures, `b c t h w` → `(b t) c h w`: the same memory."""
        ...

    def clip(self, batch: int) -> Field:
        """The opposite of `frames`."""
        ...

    def whole(self, function: Callable[[Tensor], Tensor]) -> Field:
        """For a function that must see everything at once and keeps the shape (a foreign attention processor).

        What it allocates besides its result is not known to a plan.
        """
        ...


def frames_shape(clip: Shape) -> Shape:
    """Of `Field.frames`."""
    b, c, t, *sizes = clip
    return (b * t, c, *sizes)


def clip_shape(frames: Shape, batch: int) -> Shape:
    """Of `Field.clip`."""
    count, c, *sizes = frames
    return (batch, c, count // batch, *sizes)


class Place(NamedTuple):
    """Where an operation stands in a tile's computation: its output region, and per axis the window that it read."""

    region: Region
    windows: tuple[Window, ...]

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """Per axis, how many cells of the window lie beyond the border, in front and behind."""
        return tuple((w.before, w.after) for w in self.windows)


class Source(Protocol):
    """What a pass offers to its operations when they prepare for its tiles."""

    @property
    def dtype(self) -> torch.dtype:
        """In which the pass computes; wider than the weights' where theirs overflowed."""
        ...

    @property
    def entering_shape(self) -> Shape:
        """Of the whole Field that enters the pass."""
        ...

    def kernel(self, weight: Tensor) -> Tensor:
        """A convolution's weight in the layout of the pass and the dtype in which it convolves: itself, or a copy."""
        ...

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and population variance per image and channel (`b c`) of the Field that enters the pass."""
        ...

    def everything(self, field: Field) -> Tensor:
        """All of another Field, on the device that computes."""
        ...

    def part(self, field: Field, image: int, region: Region) -> Tensor:
        """One image's region of another Field, `1 c …`, on the device that computes."""
        ...

    def overwrites(self, field: Field) -> bool:
        """Whether the pass's output takes over the memory of another Field, cell by cell."""
        ...

    def cache(self, op: Op) -> OpCache | None:
        """The causal cache of an operation that looks back; None where there is none: the first chunk is the last as well."""
        ...


class OpCache(Protocol):
    """One operation's causal cache during one pass: the frames that entered it before the chunk, and those to be kept of it."""

    @property
    def frames(self) -> int:
        """How many frames that entered the operation before the chunk are known."""
        ...

    def earlier(self, image: int, region: Region) -> Tensor:
        """A part of them, `1 c …`, on the device that computes; t counts from the oldest."""
        ...

    def keep(self, tile: Tensor, image: int, region: Region) -> None:
        """Keeps of a tile of the operation's input what the next chunk needs; `region` is where it lies in the chunk."""
        ...


class Tile(NamedTuple):
    """One image's tile on its way through a pass."""

    data: Tensor
    """`1 c …`"""
    image: int
    """Which image of the batch."""
    owned: bool
    """False while `data` is a view of a Field, which must not be written and need not be contiguous."""
    into: Tensor | None = None
    """Memory where the first operation may put what it makes of a tile that is not owned."""
    out: Tensor | None = None
    """Where the tile lies in the pass's output: the operation puts what it makes there, and returns this very tensor."""


OnTile = Callable[[Tile, Place], Tensor]


def through(tile: Tile, on_tiles: Iterable[tuple[OnTile, Place]]) -> Tile:
    """A tile after operations, each at its place."""
    for on_tile, place in on_tiles:
        tile = Tile(on_tile(tile, place), tile.image, owned=True)
    return tile


class Op:
    """One operation of a pass; the defaults describe a pixel-wise one that keeps the channels."""

    @property
    def name(self) -> str:
        """For people."""
        return type(self).__name__

    @property
    def geometry(self) -> Hashable:
        """All that its windows, bytes and operations depend on: operations of equal geometry are planned alike."""
        return self.name, self.in_place

    align: int = 1
    """Output regions start and stop at multiples of this."""
    in_place: bool = False
    """`over` really writes into its input, and allocates nothing."""
    reads_statistics: bool = False
    """It needs the statistics of the pass's input Field, so it can only be the first."""
    pixelwise: bool = True
    """An output cell depends on no other cell of the input than itself."""
    strided: bool = True
    """It reads a strided view as it is; torch's convolutions would copy it, unseen by any plan."""
    strided_parts: bool = True
    """The same as `strided`, of the parts of other Fields that it reads."""
    workspace: int = 0
    """Elements of float32 that it works in, whatever the tile; all operations of a run share them (nets/memory.py)."""
    fuses: bool = False
    """Pixel-wise, and in a run computed part by part by an operation that `reads_parts`, if that comes next."""
    reads_parts: bool = False
    """It reads its input part by part, and computes what comes before it then."""
    fills: bool = False
    """It puts what it makes into `Tile.into`, and allocates nothing."""
    part_elements: int = 0
    """Of the largest such part."""
    adds: bool = False
    """`onto` takes no more memory than `of` without its result, where all is of the weights' dtype."""
    lands: bool = False
    """In a streamed run on a CPU it puts what it makes of a tile into memory that is there: `Tile.out`, or a spare."""
    reach: int = 0
    """How many frames before its input's first it reads: in a clip, those that entered it in the chunk before."""

    def of(self, x: Tensor) -> Tensor:
        """The operation on a whole tensor, as fast as torch has it."""
        raise NotImplementedError

    def over(self, x: Tensor) -> Tensor:
        """The same where `x` is ours to overwrite."""
        return self.of(x)

    def of_after(self, x: Tensor, past: Tensor | None) -> Tensor:
        """The same after the frames `past`, for an operation that looks back."""
        return self.of(x)

    def onto(self, there: Tensor, x: Tensor, past: Tensor | None = None) -> Tensor:
        """The same, added to `there`, which is ours to overwrite."""
        return there.add_(self.of_after(x, past))

    def room(self, shape: Shape, past: int) -> int:
        """Frames that it needs before an input of `shape`, `past` known ones among them; with room for them it copies nothing."""
        return 0

    def in_room(self, x: Tensor, room: int, past: Tensor | None, there: Tensor | None = None) -> Tensor:
        """The same as `of_after`, or `onto`, where the first frames of `x` are such room, to be written."""
        raise NotImplementedError

    def filtered(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """The same as `of_after` where the operation has a workspace, in the memory of the run under way."""
        raise NotImplementedError

    def literal(self, x: Tensor) -> Tensor:
        """The operation on a whole tensor, computed step by step as the published code does, for bit-equal results."""
        return self.of(x)

    def bind(self, source: Source) -> OnTile:
        """Prepare for one pass: the function that computes one tile."""
        return lambda tile, place: self.over(tile.data) if tile.owned else self.of(tile.data)

    def bind_after(self, head: Sequence[OnTile], source: Source) -> OnTile:
        """The same for a tile that has yet to go through `head`, where it `reads_parts`."""
        raise NotImplementedError

    def bind_onto(self, added: Field, source: Source) -> OnTile:
        """The same for an operation that `adds` what it makes of a tile to another Field's."""
        raise NotImplementedError

    def reads(self) -> tuple[Field, ...]:
        """Other Fields that it reads, at its output region."""
        return ()

    @property
    def added(self) -> Field | None:
        """The Field of which it adds each element to one of its input, and does no more."""
        return None

    def reads_all(self) -> tuple[Field, ...]:
        """Other Fields that it needs whole, on the device."""
        return ()

    def out_shape(self, shape: Shape) -> Shape:
        """The shape that a whole input of `shape` becomes."""
        return shape

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        """The window of input axis `axis` (0 is the first after the channels) that the output region needs."""
        return Window(out[axis])

    def flops(self, read: Shape, made: Shape) -> int:
        """Operations to make an output tile `made` from a window `read`, counted as torch's FlopCounterMode does.

        Of a clip, `read` has the frames too that are known from the chunk before.
        """
        return 0

    def cells(self, window: Window) -> int:
        """How many cells along an axis of a window it goes over: zeros that it is computed of are among them."""
        return window.span.size

    def kept(self, element_bytes: int) -> int:
        """Bytes that `bind` allocates and that are held for the whole pass."""
        return 0

    def preparing(self, element_bytes: int) -> int:
        """Bytes that `bind` needs at most while it runs."""
        return self.kept(element_bytes)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        """Elements allocated besides input and output while one tile is computed; of a clip, `read` has the past as in `flops`."""
        return 0

    def landing(self, read: Shape, made: Shape, place: Place) -> int:
        """The same of an operation that `lands`, in a streamed run."""
        return self.scratch(read, made, place)


def goes_in_bands(op: Op, shape: Shape) -> bool:
    """Whether a whole run on a CPU goes over a Field of `shape` band by band with an operation that a pass begins with."""
    return op.pixelwise and op.out_shape(shape) == shape and not op.flops(shape, shape)


CausalCache = Mapping[Op, Tensor]
"""What a chunk of a clip leaves for the next: for each operation that looks back, the last frames that entered it, `b c n h w` with
n at most its `reach`."""


class Carry:
    """The causal cache on its way through one chunk: what came from the chunk before, and what goes to the next.

    `keeps` is False for the last chunk. With `consumes`, what came is let go as soon as what goes is complete, operation by
    operation: less memory, and no way back to the beginning of the chunk.
    """

    def __init__(
        self,
        before: CausalCache | None = None,
        homes: dict[Op, Home] | None = None,
        *,
        keeps: bool = True,
        consumes: bool = False,
    ):
        self.before: dict[Op, Tensor] = dict(before or {})
        self.after: dict[Op, Tensor] = {}
        self.homes: dict[Op, Home] = {} if homes is None else homes
        """Where what goes to the next chunk is put, by default on the device; kept up to date where memory ran out there."""
        self.keeps, self.consumes = keeps, consumes
        self.consumed = False
        """Something of what came is gone, and the chunk cannot be run again."""

    def keep(self, op: Op, x: Tensor) -> None:
        """The last frames of what was and of `x`, as many as the operation looks back; a copy."""
        if not self.keeps:
            return
        kept = x[:, :, -op.reach :]
        past = self.before.get(op)
        if past is not None and kept.shape[2] < op.reach:
            self.after[op] = torch.cat([past[:, :, kept.shape[2] - op.reach :].to(kept), kept], dim=2)
        else:
            self.after[op] = kept.clone()

    def passed(self, ops: Iterable[Op]) -> None:
        """The chunk is through these operations."""
        if self.consumes:
            for op in ops:
                self.consumed |= self.before.pop(op, None) is not None

    def again(self, *, consumes: bool) -> None:
        """Begin the chunk, anew where an attempt has failed."""
        self.after.clear()
        self.consumes = consumes


def kept_frames(op: Op, frames: int, past: int) -> int:
    """How many frames of `past` and of a chunk an operation leaves in the causal cache."""
    return min(op.reach, frames + past)


@dataclass
class Whole:
    """A Field that is one plain tensor: passes are plain calls, differentiable, compilable, and nothing else.

    `literal` computes every operation step by step as the published code does. `on_pass(made)` is called after each pass; it may
    have earlier Fields let go of their data, which the network's frames would else hold for longer than it is needed.
    """

    data: Tensor
    literal: bool = False
    on_pass: Callable[[Whole], None] | None = None
    carry: Carry | None = None

    def __post_init__(self) -> None:
        self.shape: Shape = tuple(self.data.shape)
        """Known also when the data is gone."""
        self.views: list[Whole] = []
        self.strided = False
        """The data is a strided view, which convolutions copy: better here, where a plan knows of it, than unseen."""

    def let_go(self) -> None:
        """Drop the data, here and in all views of it: whoever still refers to the Field does not keep its memory."""
        del self.data
        for view in self.views:
            view.let_go()

    def through(self, *ops: Op) -> Whole:
        copies = self.strided and bool(ops) and not ops[0].strided
        made = self._after(ops, self.data.contiguous() if copies else self.data)
        if self.carry is not None:
            self.carry.passed(ops)
        return self._made(made)

    def _after(self, ops: Sequence[Op], x: Tensor, owned: bool = False) -> Tensor:
        """`x` after operations; it may be written to where it is `owned`."""
        for op in ops:
            x = self._apply(op, x, self._past(op, x), owned)
            owned = True
        return x

    def _past(self, op: Op, x: Tensor) -> Tensor | None:
        """The known frames before `x`, for an operation that looks back, of which the last are kept for the next chunk."""
        if not op.reach or self.carry is None:
            return None
        self.carry.keep(op, x)
        return self.carry.before.get(op)

    def _apply(self, op: Op, x: Tensor, past: Tensor | None, owned: bool) -> Tensor:
        if op.reach and self.carry is not None:
            return op.of_after(x, past)
        if self.literal:
            return op.literal(x)
        return op.over(x) if owned and not torch.is_grad_enabled() else op.of(x)

    def whole(self, function: Callable[[Tensor], Tensor]) -> Whole:
        return self._made(function(self.data))

    def remember(self, op: Op) -> None:
        if self.carry is not None:
            self.carry.keep(op, self.data)

    def frames(self) -> Whole:
        return self._view(self.data.transpose(1, 2).flatten(0, 1))

    def clip(self, batch: int) -> Whole:
        return self._view(self.data.unflatten(0, (batch, -1)).transpose(1, 2))

    def _view(self, x: Tensor) -> Whole:
        view = replace(self, data=x)
        view.strided = not (x.is_contiguous() or is_innermost(x))
        self.views.append(view)
        return view

    def _made(self, x: Tensor) -> Whole:
        made = replace(self, data=x)
        if self.on_pass is not None:
            self.on_pass(made)
        return made
