"""Layers of causal video networks, over Fields `b c t h w`.

A clip goes through such a network in chunks. What a chunk needs of the ones before it, the last frames that entered each causal
convolution, is carried from chunk to chunk as a value: the *causal cache*. A convolution over single frames is an ordinary one,
over `x.frames()`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..geometry import Region, Span, Window
from .convolutions import wide
from .layouts import select
from .passes import OnTile, Op, Place, Shape, Source, Tile


class RMSNorm(nn.Module, Op):
    """Each position's channels scaled to length √c, times gamma; over single frames or whole clips."""

    fuses = True
    fills = True

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * axes))

    def of(self, x: Tensor) -> Tensor:
        return self._scaled(x, self.gamma)

    def bind(self, source: Source) -> OnTile:
        gamma = self.gamma.to(source.dtype)
        return lambda tile, place: self._scaled(tile.data, gamma, tile.into)

    def _scaled(self, x: Tensor, gamma: Tensor, into: Tensor | None = None) -> Tensor:
        # Lengths in float32, as the published code has them where x is narrower; x itself is not widened.
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide(x.dtype)).clamp_min(1e-12)
        scale = (x.shape[1] ** 0.5 / length).clamp_max(torch.finfo(x.dtype).max)
        return torch.mul(x, scale.to(x.dtype), out=into).mul_(gamma)

    @property
    def geometry(self) -> Hashable:
        return self.name, self.gamma.shape[0]

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        # For each position its length and its scale, both wide, and the scale in x's dtype.
        return 5 * prod(made) // made[1]


class FramesFromChannels(Op):
    """`b 2c t h w` → `b c 2t h w`: the first half of the channels are the even frames, the second half the odd ones."""

    align = 2
    pixelwise = False

    def of(self, x: Tensor) -> Tensor:
        even, odd = x.chunk(2, dim=1)
        return torch.stack([even, odd], dim=3).flatten(2, 3)

    def out_shape(self, shape: Shape) -> Shape:
        b, c, t, h, w = shape
        return b, c // 2, 2 * t, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        if axis:
            return Window(out[axis])
        return Window(Span(out[0].start // 2, -(-out[0].stop // 2)))


frames_from_channels = FramesFromChannels()


class RepeatedFrames(Op):
    """Every frame twice, `b c t h w` → `b c 2t h w`; of an odd number of frames the first one once."""

    pixelwise = False

    def of(self, x: Tensor) -> Tensor:
        return select(x, 2, _doubled(x.shape[2], Span(0, self.out_shape(x.shape)[2]), x.device))

    def bind(self, source: Source) -> OnTile:
        def on_tile(tile: Tile, place: Place) -> Tensor:
            t = place.windows[0].span
            whole = source.entering_shape[2]
            return select(tile.data, 2, _doubled(whole, place.region[0], tile.data.device) - t.start)

        return on_tile

    def out_shape(self, shape: Shape) -> Shape:
        b, c, t, h, w = shape
        return b, c, 2 * t - t % 2, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        if axis:
            return Window(out[axis])
        odd = sizes[0] % 2
        return Window(Span((out[0].start + odd) // 2, (out[0].stop - 1 + odd) // 2 + 1))


class HalvedFrames(Op):
    """The mean of every two frames, `b c t h w` → `b c t/2 h w`; of an odd number of frames the first one stays as it is."""

    pixelwise = False

    def of(self, x: Tensor) -> Tensor:
        odd = x.shape[2] % 2
        return self._halved(x, odd) if x.shape[2] > 1 else x

    def _halved(self, x: Tensor, alone: int) -> Tensor:
        """`alone` frames in front that stay as they are."""
        # As a mean over two, and laid out as x is.
        pairs = (x[:, :, alone::2] * 0.5).add_(x[:, :, alone + 1 :: 2], alpha=0.5)
        return torch.cat([x[:, :, :alone], pairs], dim=2) if alone else pairs

    def bind(self, source: Source) -> OnTile:
        def on_tile(tile: Tile, place: Place) -> Tensor:
            alone = int(source.entering_shape[2] % 2 == 1 and place.region[0].start == 0)
            return self._halved(tile.data, alone) if tile.data.shape[2] > alone else tile.data.clone()

        return on_tile

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        # A frame that stays as it is, is put before the means of the others.
        return prod(made) if read[2] % 2 else 0

    def out_shape(self, shape: Shape) -> Shape:
        b, c, t, h, w = shape
        return b, c, (t + 1) // 2, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        if axis:
            return Window(out[axis])
        odd = sizes[0] % 2
        return Window(Span(max(2 * out[0].start - odd, 0), 2 * out[0].stop - odd))


def _doubled(count: int, out: Span, device: torch.device) -> Tensor:
    """For each frame of `out`, which of `count` frames it repeats."""
    # Counted on the device: from a list, each index would have to wait for its copy.
    return (torch.arange(*out, device=device) + count % 2) // 2


repeated_frames = RepeatedFrames()
halved_frames = HalvedFrames()
