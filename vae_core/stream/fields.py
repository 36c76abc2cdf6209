"""The Fields of a streamed run: stored once, at home on the device, in host memory or on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ..geometry import Region, slices
from ..nets.passes import Op, Shape, clip_shape, frames_shape
from ..schedule import Home
from .moments import Moments


class Run(Protocol):
    """What carries out the passes over a Field (run.Streamed)."""

    def through(self, x: Any, ops: Sequence[Op]) -> StreamField: ...

    def remember(self, x: Any, op: Op) -> None: ...

    def whole(self, x: Any, function: Callable[[Tensor], Tensor]) -> StreamField: ...


@dataclass
class StreamField:
    """A Field that is stored once, and knows its own statistics."""

    run: Run
    index: int
    data: Tensor | None
    home: Home
    moments: Moments | None = None
    tokens: bool = False
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        assert self.data is not None
        self.shape = tuple(self.data.shape)

    def through(self, *ops: Op) -> StreamField:
        return self.run.through(self, ops)

    def remember(self, op: Op) -> None:
        self.run.remember(self, op)

    def frames(self) -> StreamField:
        return FieldView(self, lambda data: data.transpose(1, 2).flatten(0, 1))

    def clip(self, batch: int) -> StreamField:
        moments = None if self.moments is None else self.moments.joined(batch)
        return FieldView(self, lambda data: data.unflatten(0, (batch, -1)).transpose(1, 2), moments)

    def whole(self, function: Callable[[Tensor], Tensor]) -> StreamField:
        return self.run.whole(self, function)

    def part(self, image: int, region: Region) -> Tensor:
        """A view of one image's region, `1 c …`, where the Field lives."""
        return self.all[image : image + 1][slices(region)]

    @property
    def all(self) -> Tensor:
        assert self.data is not None, "a Field was read after the plan had freed it"
        return self.data


class SkippedField(StreamField):
    """A Field that is never stored: the passes around it run depth first."""

    def __init__(self, run: Run, index: int, shape: Shape):
        self.run, self.index, self.shape, self.data, self.home = run, index, shape, None, "device"

    def frames(self) -> SkippedField:
        return SkippedField(self.run, self.index, frames_shape(self.shape))

    def clip(self, batch: int) -> SkippedField:
        return SkippedField(self.run, self.index, clip_shape(self.shape, batch))


class FieldView(StreamField):
    """Another look at a Field's memory, which stays that Field's: it goes when the Field goes."""

    def __init__(self, of: StreamField, view: Callable[[Tensor], Tensor], moments: Moments | None = None):
        self.run, self.index, self.home, self.moments, self.tokens = of.run, of.index, of.home, moments, of.tokens
        self.of, self.view, self.shape = of, view, tuple(view(of.all).shape)

    @property
    def all(self) -> Tensor:
        return self.view(self.of.all)
