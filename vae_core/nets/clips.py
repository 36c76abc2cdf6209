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

from ..geometry import Region, Span, Window, convolution_window
from .layers import Pads, cast, pad, wide
from .passes import OnTile, Op, Place, Shape, Source


class CausalConv3d(nn.Conv3d, Op):
    """A convolution that looks back in time: zeros, or earlier frames, in front; zeros around each frame.

    With a stride in time there is no padding in front: it takes what it is given, and one frame of what came before.
    """

    strided = False

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int, int], stride_t: int = 1):
        t, h, w = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(c_in, c_out, (t, h, w), (stride_t, 1, 1))
        self.pads: Pads = ((t - stride_t, 0), (h // 2, h // 2), (w // 2, w // 2))
        self.reach = t - stride_t
        self.pixelwise = t == h == w == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.pads, self.weight, self.bias)

    of = forward

    @property
    def geometry(self) -> Hashable:
        return self.name, self.in_channels, self.out_channels, self.kernel_size, self.stride

    def after(self, past: int) -> Op:
        return _Continued(self, past) if past else self

    def convolve(self, x: Tensor, missing: Pads, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Over `x`, with zeros where the window lies beyond it."""
        own = tuple(before if before == after else 0 for before, after in missing)
        rest = tuple((0, 0) if before == after else (before, after) for before, after in missing)
        return F.conv3d(pad(x, rest), weight, bias, self.stride, own)

    def bind(self, source: Source) -> OnTile:
        weight, bias = self.weight.to(source.dtype), cast(self.bias, source.dtype)
        return lambda tile, place: self.convolve(tile.data, place.missing, weight, bias)

    def at(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The convolution of whole tensors, computed in `dtype`."""
        weight, bias = self.weight.to(dtype), cast(self.bias, dtype)
        return lambda x: self.convolve(x, self.pads, weight, bias)

    def out_shape(self, shape: Shape) -> Shape:
        return self.shape_after(shape, 0)

    def shape_after(self, shape: Shape, past: int) -> Shape:
        """The output's shape where `past` frames before the input are known."""
        b, _, t, h, w = shape
        before = max(self.pads[0][0], past)
        return b, self.out_channels, (t + before - self.kernel_size[0]) // self.stride[0] + 1, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        return self.window_after(axis, out, sizes, 0)

    def window_after(self, axis: int, out: Region, sizes: Sequence[int], past: int) -> Window:
        """The window where `past` frames before the input's first are known: time then begins at -past."""
        begin = past if axis == 0 else 0
        before = self.pads[axis][0] - begin
        found = convolution_window(out[axis], sizes[axis] + begin, self.kernel_size[axis], self.stride[axis], before)
        return found._replace(span=Span(found.span.start - begin, found.span.stop - begin))

    def flops(self, read: Shape, made: Shape) -> int:
        return 2 * prod(made) * self.in_channels * prod(self.kernel_size)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        if all(before == after for before, after in place.missing):
            return 0
        uneven = [0 if before == after else before + after for before, after in place.missing]
        return prod(read[:2]) * prod(n + more for n, more in zip(read[2:], uneven, strict=True))


class _Continued(Op):
    """A causal convolution whose input begins `past` frames before its first output's own."""

    strided = False

    def __init__(self, conv: CausalConv3d, past: int):
        self.conv, self.past = conv, past
        self.pixelwise, self.reach = conv.pixelwise, conv.reach

    @property
    def name(self) -> str:
        return self.conv.name

    @property
    def geometry(self) -> Hashable:
        return self.conv.geometry, self.past

    def of(self, x: Tensor) -> Tensor:
        conv = self.conv
        pads = ((conv.pads[0][0] - self.past, 0), *conv.pads[1:])
        return conv.convolve(x, pads, conv.weight, conv.bias)

    def bind(self, source: Source) -> OnTile:
        return self.conv.bind(source)

    def out_shape(self, shape: Shape) -> Shape:
        return self.conv.shape_after(shape, self.past)

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        return self.conv.window_after(axis, out, sizes, self.past)

    def flops(self, read: Shape, made: Shape) -> int:
        return self.conv.flops(read, made)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        return self.conv.scratch(read, made, place)


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
