"""Fields of clips, `b c t h w`: passes, statistics, plans and files work over any number of axes."""

from __future__ import annotations

import torch
from tiny_nets import relative_error
from torch import Tensor, nn

from benchmarks.meter import Meter
from vae_core.geometry import Region, Span, Window, convolution_window
from vae_core.nets.layers import GroupNorm, plus, silu
from vae_core.nets.passes import Field, OnTile, Op, Place, Shape, Source, Whole
from vae_core.nets.trace import trace
from vae_core.plan import Budget, Case, Planner
from vae_core.stream import run_streamed


class Conv3d(nn.Conv3d, Op):
    """3×3×3 with zero padding; the video networks will have their own."""

    pixelwise = False
    strided = False

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def of(self, x: Tensor) -> Tensor:
        return self(x)

    def bind(self, source: Source) -> OnTile:
        def on_tile(tile: object, place: Place) -> Tensor:
            pads = [n for pair in reversed(place.missing) for n in pair]
            return nn.functional.conv3d(nn.functional.pad(tile.data, pads), self.weight, self.bias)  # type: ignore[attr-defined]

        return on_tile

    def window(self, axis: int, out: Region, sizes: object) -> Window:
        return convolution_window(out[axis], sizes[axis], 3, 1, 1)  # type: ignore[index]

    def flops(self, read: Shape, made: Shape) -> int:
        return 2 * 27 * self.in_channels * Span(0, int(torch.Size(made).numel())).size

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        if not any(n for pair in place.missing for n in pair):
            return 0
        sizes = [n + sum(pair) for n, pair in zip(read[2:], place.missing, strict=True)]
        return read[1] * int(torch.Size(sizes).numel())


class Block(nn.Module):
    def __init__(self, channels: int = 8):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(4, channels), Conv3d(channels)
        self.norm2, self.conv2 = GroupNorm(4, channels), Conv3d(channels)

    def forward(self, x: Field) -> Field:
        x = x.through(self.conv1)
        h = x.through(self.norm1, silu, self.conv1)
        return h.through(self.norm2, silu, self.conv2, plus(x)).through(self.norm1, silu)


@torch.inference_mode()
def test_clips_stream_and_plan_as_pictures_do() -> None:
    torch.manual_seed(0)
    net = Block().double()
    x = torch.randn(1, 8, 5, 40, 70, dtype=torch.float64)
    whole = net(Whole(x)).data
    planner = Planner(Case(trace(net, tuple(x.shape)), itemsize=8))
    plans = [planner.plan(None, tile=tile) for tile in (3, 16, 32)]
    least = min(rung.device_bytes for rung in planner.rungs(Budget(0, None, 1 << 30)))
    plans.append(planner.plan(Budget(least, None, 1 << 30)))
    assert plans[-1].rung == "streamed, Fields in files"
    for plan in plans:
        with Meter(net) as meter:
            meter.see(x)
            result = torch.empty_like(whole) if plan.result_home == "device" else None
            made = run_streamed(net, x, plan.steps, x.device, result=result)
        assert relative_error(made, whole) <= 1e-12
        assert meter.peak["cpu"] <= plan.device_bytes <= 1.15 * meter.peak["cpu"] + 20_000
