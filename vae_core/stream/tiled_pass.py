"""One pass of a streamed run under way: its tiles that are left, and what they read."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..geometry import Region, cut_again, grid
from ..nets.chain import Chain
from ..nets.convolutions import kernel
from ..nets.layouts import innermost, is_innermost, stored
from ..nets.passes import Field, Op, Place, Shape, Tile
from ..nets.segments import Segment
from ..schedule import Step
from .causal import StreamedCache
from .fields import StreamField
from .homes import Homes

SMALLEST_TILE = 16
"""Cells along an edge below which an out-of-memory error is not met with smaller tiles: halos would outweigh them."""


class Inputs(NamedTuple):
    """What one tile is computed from."""

    places: list[Place]
    tile: list[Tile]
    """The window of the entering Field; taken out when it is used, so that it can go as soon as it is not needed."""
    parts: dict[int, Tensor]
    """Parts of other Fields, by their index, that had to be fetched or converted; taken out in the same way."""


@dataclass
class TiledPass:
    """One pass under way."""

    x: StreamField
    chain: Chain
    stages: list[Shape]
    step: Step
    tile: tuple[int, ...]
    todo: deque[tuple[int, Region]]
    tiles_done: int = 0
    cells_done: int = 0
    out: StreamField | None = None
    overwritten: StreamField | None = None
    """The Field whose memory `out` has taken over."""
    packed: bool = False
    """What is written may lie where later cells of the same Field do, so that tiles stay as wide as the picture."""
    landed: tuple[int, Region] | None = None
    """The image and region of a tile that is in `out`, and still counts as one of those to do."""
    segment: Segment | None = None
    """The passes that are carried out in this one, depth first; `x` is what enters the first of them."""

    @classmethod
    def begin(
        cls, x: StreamField, chain: Chain, stages: list[Shape], step: Step, segment: Segment | None = None
    ) -> TiledPass:
        shape = stages[-1]
        regions = [(image, region) for image in range(shape[0]) for region in grid(shape[2:], step.tile)]
        return cls(x, chain, stages, step, step.tile, deque(regions), segment=segment)

    def halve(self) -> bool:
        """Go on with tiles of half the edge; False where they are as small as makes sense."""
        align = self.chain.align
        smaller = tuple(max(-(-edge // 2 // align), 1) * align if edge > SMALLEST_TILE else edge for edge in self.tile)
        if self.packed:
            smaller = (max(self.tile[0] // 2 // align, 1) * align, *self.tile[1:])
        if self.segment is not None:
            smaller = (*self.tile[:-2], *smaller[-2:])  # all frames go together
        if smaller == self.tile or not self.chain.ops:
            return False
        self.tile = smaller
        self.todo = deque((image, part) for image, region in self.todo for part in cut_again(region, smaller))
        return True

    def lands(self, region: Region, dtype: torch.dtype) -> int | None:
        """The number of the operation that puts a tile where it lies in `out`, on a CPU; None where it is copied there."""
        out = cast(StreamField, self.out)
        if self.overwritten is self.x or out.all.dtype != dtype:
            return None
        overwrites = None if self.overwritten is None else self.overwrites
        return self.chain.lands(is_innermost(out.part(0, region)), overwrites)

    def taken_over(self, dying: StreamField) -> Tensor:
        """The memory of a Field for the output: where that has fewer channels, without gaps if tiles are as wide as the picture.

        Then tile after tile comes to lie where Fields have been read already. Else each lies where its own cells do.
        """
        data, shape = dying.all, self.stages[-1]
        if shape[1] == data.shape[1] or not is_innermost(data) or self.tile[1:] != shape[3:]:
            return data[:, : shape[1]]
        self.packed = True
        return data.movedim(1, -1).flatten()[: prod(shape)].view(stored(shape)).movedim(-1, 1)

    def overwrites(self, field: Field) -> bool:
        """Whether `out` has taken over a Field's memory."""
        return self.overwritten is not None and cast(StreamField, field).index == self.overwritten.index

    def finite(self) -> bool:
        """Whether every element of the output is, as far as its statistics tell."""
        moments = cast(StreamField, self.out).moments
        return moments is None or moments.finite()

    def fetches(self, device: torch.device) -> bool:
        """Whether tiles come from another memory than the device's."""
        read = (self.x, *(cast(StreamField, f) for op in self.chain.ops for f in op.reads()))
        return any(f.all.device != device for f in read)


class TileSource:
    """What a pass offers to its operations (nets.passes.Source)."""

    def __init__(self, work: TiledPass, homes: Homes, dtype: torch.dtype, caches: Mapping[Op, StreamedCache]):
        self.work, self.device, self.dtype, self.caches = work, homes.device, dtype, caches
        self.innermost = homes.innermost
        self.parts: dict[int, Tensor] = {}

    @property
    def entering_shape(self) -> Shape:
        return self.work.x.shape

    def kernel(self, weight: Tensor) -> Tensor:
        weight = kernel(weight, self.dtype)
        return innermost(weight) if self.innermost else weight

    def statistics(self) -> tuple[Tensor, Tensor]:
        assert self.work.x.moments is not None, "the plan kept no statistics of a Field that is normalised"
        return self.work.x.moments.statistics()

    def everything(self, field: Field) -> Tensor:
        return cast(StreamField, field).all.to(self.device, self.dtype)

    def part(self, field: Field, image: int, region: Region) -> Tensor:
        other = cast(StreamField, field)
        fetched = self.parts.pop(other.index, None)
        return other.part(image, region) if fetched is None else fetched

    def overwrites(self, field: Field) -> bool:
        return self.work.overwrites(field)

    def cache(self, op: Op) -> StreamedCache | None:
        return self.caches.get(op)
