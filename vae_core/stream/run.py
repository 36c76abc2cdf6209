"""The streamed run: each pass reads its input tile by tile with the halo that its operations need, and writes the output Field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..geometry import Region, grid, slices
from ..nets.passes import Chain, Field, Op, Shape, Tile
from ..schedule import Step, Steps
from .moments import Moments
from .progress import OnProgress, ProgressMeter


@dataclass
class StreamField:
    """A Field that is stored once, on the device or in host memory, and knows its own statistics."""

    run: Streamed
    index: int
    data: Tensor | None
    moments: Moments | None = None
    shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        assert self.data is not None
        self.shape = tuple(self.data.shape)

    def through(self, *ops: Op) -> StreamField:
        return self.run.through(self, Chain(ops))

    def whole(self, function: Callable[[Tensor], Tensor]) -> StreamField:
        return self.run.whole(self, function)

    def part(self, image: int, region: Region) -> Tensor:
        """A view of one image's region, `1 c …`, where the Field lives."""
        assert self.data is not None, "a Field was read after the plan had freed it"
        return self.data[image : image + 1][slices(region)]


@dataclass(frozen=True)
class _Source:
    """What a pass offers to its operations (nets.passes.Source)."""

    entering: StreamField
    device: torch.device

    def statistics(self) -> tuple[Tensor, Tensor]:
        assert self.entering.moments is not None, "the plan kept no statistics of a Field that is normalised"
        return self.entering.moments.statistics()

    def everything(self, field: Field) -> Tensor:
        assert isinstance(field, StreamField) and field.data is not None
        return field.data.to(self.device)

    def part(self, field: Field, image: int, region: Region) -> Tensor:
        assert isinstance(field, StreamField)
        return field.part(image, region).to(self.device)


class Streamed:
    """One run of one network over one input. Values only: two runs never meet.

    `progress(done, total, info)` is called after every tile, in operations; whatever it raises ends the run.
    """

    def __init__(self, steps: Steps, device: torch.device, progress: OnProgress | None = None):
        self.steps, self.device = steps, device
        self.meter = ProgressMeter(steps, progress)
        self.fields: list[StreamField] = []

    def enter(self, data: Tensor) -> StreamField:
        """The network's input, `b c …`, as the first Field; it is never written."""
        return self._append(data)

    def through(self, x: StreamField, chain: Chain) -> StreamField:
        """One pass."""
        step = self._step()
        stages = chain.stages(x.shape)
        out = self._allocate(stages[-1], step)
        source = _Source(x, self.device)
        on_tiles = [op.bind(source) for op in chain.ops]
        regions = [(image, region) for image in range(x.shape[0]) for region in grid(stages[-1][2:], step.tile)]
        for number, (image, region) in enumerate(regions, 1):
            places = chain.places(region, stages)
            view = x.part(image, tuple(w.span for w in places[0].windows))
            data = view.to(self.device)
            tile = Tile(data, image, owned=data is not view)
            for on_tile, place in zip(on_tiles, places, strict=True):
                data = on_tile(tile, place)
                tile = Tile(data, image, owned=True)
            out.part(image, region).copy_(data)
            if out.moments is not None:
                out.moments.add(image, data)
            self.meter.tile(len(self.fields) - 2, number, len(regions))
        self._free(step)
        return out

    def whole(self, x: StreamField, function: Callable[[Tensor], Tensor]) -> StreamField:
        """A pass in one piece, on the device."""
        step = self._step()
        assert x.data is not None
        data = function(x.data.to(self.device))
        out = self._allocate(tuple(data.shape), step)
        for image in range(data.shape[0]):
            out.data[image].copy_(data[image])  # type: ignore[index]
            if out.moments is not None:
                out.moments.add(image, data[image : image + 1])
        self.meter.tile(len(self.fields) - 2, 1, 1)
        self._free(step)
        return out

    def _step(self) -> Step:
        position = len(self.fields) - 1
        assert position < len(self.steps), "the forward has more passes than the plan; was another network traced?"
        return self.steps[position]

    def _append(self, data: Tensor, moments: Moments | None = None) -> StreamField:
        made = StreamField(self, len(self.fields), data, moments)
        self.fields.append(made)
        return made

    def _allocate(self, shape: Shape, step: Step) -> StreamField:
        first = self.fields[0].data
        assert first is not None
        if step.overwrites is not None:
            taken = self.fields[step.overwrites].data
            assert taken is not None
            data = taken[:, : shape[1]]
        elif step.on_host and self.device.type != "cpu":
            data = torch.empty(shape, dtype=first.dtype, pin_memory=self.device.type == "cuda")
        else:
            data = torch.empty(shape, dtype=first.dtype, device=self.device)
        moments = Moments(shape[0], shape[1], first.dtype, self.device) if step.statistics else None
        return self._append(data, moments)

    def _free(self, step: Step) -> None:
        given_up = step.frees if step.overwrites is None else (*step.frees, step.overwrites)
        for index in given_up:
            self.fields[index].data = None


def run_streamed(
    forward: Callable[[Field], Field], x: Tensor, steps: Steps, device: torch.device, progress: OnProgress | None = None
) -> Tensor:
    """`forward` over tiles, as the steps say: `x` on the device, the result where the last step puts it."""
    run = Streamed(steps, device, progress)
    try:
        made = cast(StreamField, forward(run.enter(x))).data
        assert made is not None
        return made
    finally:
        run.fields.clear()  # they refer to the run, and would keep their tensors until the garbage collector comes by
