"""Layers of causal video networks, over Fields `b c t h w`.

A clip goes through such a network in chunks. What a chunk needs of the ones before it, the last frames that entered each causal
convolution, is carried from chunk to chunk as a value: the *causal cache*. A convolution over single frames is an ordinary one,
over `x.frames()`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Region, Span, Window, convolution_window, slices
from .layers import Pads, cast, pad, padded_elements, split_pads, wide
from .passes import OnTile, Op, Place, Shape, Source, Tile


class CausalConv3d(nn.Conv3d, Op):
    """A convolution that looks back in time: at the frames that entered it in the chunk before, at zeros before the first chunk.

    Zeros around each frame. With a stride in time it begins with the second chunk, and looks back at one frame.
    """

    strided = False

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int, int], stride_t: int = 1):
        t, h, w = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(c_in, c_out, (t, h, w), (stride_t, 1, 1))
        self.pads: Pads = ((t - stride_t, 0), (h // 2, h // 2), (w // 2, w // 2))
        self.reach = t - stride_t
        self.pixelwise = t == h == w == 1

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.pads, self.weight, self.bias)

    of = forward

    def of_after(self, x: Tensor, past: Tensor | None) -> Tensor:
        if past is None:
            return self.of(x)
        pads = ((self.reach - past.shape[2], 0), *self.pads[1:])
        return self._convolve(torch.cat([past.to(x), x], dim=2), pads, self.weight, self.bias)

    @property
    def geometry(self) -> Hashable:
        return self.name, self.in_channels, self.out_channels, self.kernel_size, self.stride

    def _convolve(self, x: Tensor, missing: Pads, weight: Tensor, bias: Tensor | None) -> Tensor:
        own, rest = split_pads(missing)
        return F.conv3d(pad(x, rest), weight, bias, self.stride, own)

    def bind(self, source: Source) -> OnTile:
        weight, bias = self.weight.to(source.dtype), cast(self.bias, source.dtype)
        past, keep = source.past(self), source.keep(self)

        def on_tile(tile: Tile, place: Place) -> Tensor:
            x, missing = tile.data, place.missing
            if keep is not None:
                _write_last(*keep, tile, place)
            if past is not None and missing[0][0]:
                x, missing = _behind(past, tile, place)
            return self._convolve(x, missing, weight, bias)

        return on_tile

    def at(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The convolution of whole tensors, computed in `dtype`."""
        weight, bias = self.weight.to(dtype), cast(self.bias, dtype)
        return lambda x: self._convolve(x, self.pads, weight, bias)

    def out_shape(self, shape: Shape) -> Shape:
        b, _, t, h, w = shape
        return b, self.out_channels, (t + self.reach - self.kernel_size[0]) // self.stride[0] + 1, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        return convolution_window(out[axis], sizes[axis], self.kernel_size[axis], self.stride[axis], self.pads[axis][0])

    def flops(self, read: Shape, made: Shape) -> int:
        return 2 * prod(made) * self.in_channels * prod(self.kernel_size)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        # Earlier frames in front of a tile make a copy of it, and zeros at an uneven border another one.
        missing = place.missing
        behind = prod(read[:2]) * (read[2] + missing[0][0]) * prod(read[3:]) if missing[0][0] else 0
        return behind + padded_elements(read, missing)


def _write_last(keep: Tensor, first: int, tile: Tile, place: Place) -> None:
    """Writes the chunk's frames from number `first` on, as far as a tile holds them, into `keep`."""
    t, *sides = (w.span for w in place.windows)
    start = max(t.start, first)
    if start < t.stop:
        kept = keep[tile.image : tile.image + 1, :, start - first : t.stop - first]
        kept[slices(tuple(sides))].copy_(tile.data[:, :, start - t.start :])


def _behind(past: Tensor, tile: Tile, place: Place) -> tuple[Tensor, Pads]:
    """A tile behind the earlier frames that its window lacks, and what is missing still."""
    (before, after), *others = place.missing
    count = min(before, past.shape[2])
    sides = tuple(w.span for w in place.windows[1:])
    earlier = past[tile.image : tile.image + 1, :, past.shape[2] - count :][slices(sides)]
    return torch.cat([earlier.to(tile.data), tile.data], dim=2), ((before - count, after), *others)


class RMSNorm(nn.Module, Op):
    """Each position's channels scaled to length √c, times gamma; over single frames or whole clips."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * axes))

    def of(self, x: Tensor) -> Tensor:
        return self._scaled(x, self.gamma)

    def bind(self, source: Source) -> OnTile:
        gamma = self.gamma.to(source.dtype)
        return lambda tile, place: self._scaled(tile.data, gamma)

    def _scaled(self, x: Tensor, gamma: Tensor) -> Tensor:
        # In float32, as the published code does where the input is narrower.
        return F.normalize(x.to(wide(x.dtype)), dim=1).to(x.dtype) * x.shape[1] ** 0.5 * gamma

    @property
    def geometry(self) -> Hashable:
        return self.name, self.gamma.shape[0]

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        # The length of each position, and two more of the tile while it is scaled; twice that where it is widened.
        return 4 * prod(made)


class FramesFromChannels(Op):
    """`b 2c t h w` → `b c 2t h w`: the first half of the channels are the even frames, the second half the odd ones."""

    align = 2
    pixelwise = False

    def of(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        return x.view(b, 2, c // 2, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, c // 2, 2 * t, h, w)

    def out_shape(self, shape: Shape) -> Shape:
        b, c, t, h, w = shape
        return b, c // 2, 2 * t, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        if axis:
            return Window(out[axis])
        return Window(Span(out[0].start // 2, -(-out[0].stop // 2)))


frames_from_channels = FramesFromChannels()
