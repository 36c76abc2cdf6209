"""The convolution of causal video networks, which looks back in time, over Fields `b c t h w`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from ..geometry import Region, Span, Window, convolution_window
from . import onednn
from .arithmetic import convolving_dtype
from .convolutions import (
    cast,
    cleared,
    convolving_elements,
    copied_bytes,
    holding_tiles,
    kernel,
    padded_elements,
    split_pads,
    zero_borders,
)
from .filtered import Filtered
from .layouts import new_empty
from .passes import Field, OnTile, OpCache, Place, Shape, Source, Tile
from .undrawn import Undrawn
from .winograd import PLAIN, Filter, Pads

OnTileAfter = Callable[[Tile, "Tensor | None", Place], Tensor]
"""Computes one tile after the known frames before it."""


class CausalConv3d(Undrawn, nn.Conv3d, Filtered):
    """A convolution that looks back in time: at the frames that entered it in the chunk before, at zeros before the first chunk.

    Zeros around each frame. With a stride in time it begins with the second chunk, and looks back at one frame. With
    `repeats_first`, the first frame that there is stands for those before the first chunk, in place of zeros.
    """

    filtering = PLAIN

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int | tuple[int, int, int],
        stride_t: int = 1,
        repeats_first: bool = False,
    ):
        t, h, w = (kernel,) * 3 if isinstance(kernel, int) else kernel
        super().__init__(c_in, c_out, (t, h, w), (stride_t, 1, 1))
        self.pads: Pads = ((t - stride_t, 0), (h // 2, h // 2), (w // 2, w // 2))
        self.reach, self.repeats_first = t - stride_t, repeats_first
        self.pixelwise = t == h == w == 1

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, None, self.pads, self.weight, self.bias)

    literal = forward

    def of(self, x: Tensor) -> Tensor:
        return self.of_after(x, None)

    def of_after(self, x: Tensor, past: Tensor | None) -> Tensor:
        weight = kernel(self.weight, x.dtype)
        return self._convolve(x, past, self.pads, weight, cast(self.bias, weight.dtype))

    @property
    def adds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.stride == (1, 1, 1) and not self.filters and onednn.adds(self.weight)

    def onto(self, there: Tensor, x: Tensor, past: Tensor | None = None) -> Tensor:
        weight = kernel(self.weight, x.dtype)
        return self._convolve(x, past, self.pads, weight, cast(self.bias, weight.dtype), there)

    def room(self, shape: Shape, past: int) -> int:
        before = self.pads[0][0]
        if self.filters or self.weight.device.type != "cpu" or convolving_dtype(self.weight) != self.weight.dtype:
            return 0
        return past if self._makes_one(shape[2] + before) else before

    def in_room(self, x: Tensor, room: int, past: Tensor | None, there: Tensor | None = None) -> Tensor:
        weight, known = kernel(self.weight, x.dtype), 0 if past is None else past.shape[2]
        self._put_before(x, room, past, room - known)
        unknown = self.pads[0][0] - room
        own = (0, *(before for before, _ in self.pads[1:]))
        return self._convolved(x, own, weight[:, :, unknown:], cast(self.bias, weight.dtype), there)

    def _makes_one(self, frames: int) -> bool:
        """Of so many frames, one is made, and what meets zeros need not be multiplied."""
        return frames == self.kernel_size[0] and not self.repeats_first

    @property
    def geometry(self) -> Hashable:
        size = (self.in_channels, self.out_channels, self.kernel_size, self.stride)
        return self.name, *size, self.repeats_first, self.filters

    @property
    def filters(self) -> bool:
        return self.stride == (1, 1, 1) and super().filters

    def filtered(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        return self._filtered(x, past, self.pads, self.filter())

    def _filtered(
        self, x: Tensor, past: Tensor | None, missing: Pads, convolve: Filter, out: Tensor | None = None
    ) -> Tensor:
        """As `_convolve`; no frame is copied to stand before another."""
        known = [] if past is None else list(past.unbind(2))
        unknown = missing[0][0] - len(known)
        if self._makes_one(x.shape[2] + missing[0][0]):
            unknown = 0
        first = (x if past is None else past)[:, :, 0] if self.repeats_first else None
        return convolve(x, missing[1:], [first] * unknown + known, out=out)

    def _convolve(
        self,
        x: Tensor,
        past: Tensor | None,
        missing: Pads,
        weight: Tensor,
        bias: Tensor | None,
        there: Tensor | None = None,
    ) -> Tensor:
        """`missing` is what x lacks around it; of the frames before it, `past` are known. Added to what is `there`."""
        known = 0 if past is None else past.shape[2]
        (before, after), *sides = missing
        unknown = before - known
        if unknown and self._makes_one(x.shape[2] + before):
            weight, unknown = weight[:, :, unknown:], 0
        own, rest = split_pads(((unknown + known, after), *sides))
        x = self._put_behind(x, past, unknown, rest) if known or any(map(any, rest)) else x
        return self._convolved(x, own, weight, bias, there)

    def _convolved(
        self, x: Tensor, pads: Sequence[int], weight: Tensor, bias: Tensor | None, there: Tensor | None
    ) -> Tensor:
        """All that it reads is in `x`, but for zeros, equally many on both sides of an axis."""
        if x.shape[2] == weight.shape[2] == 1:
            x, weight, stride, pads = x.squeeze(2), weight.squeeze(2), self.stride[1:], pads[1:]
            if there is None:
                return onednn.convolve(x.to(weight.dtype), weight, bias, stride, pads).to(x.dtype).unsqueeze(2)
            onednn.convolve_onto(there.squeeze(2), x, weight, bias, stride, pads)
            return there
        if there is None:
            return onednn.convolve(x.to(weight.dtype), weight, bias, self.stride, pads).to(x.dtype)
        return onednn.convolve_onto(there, x, weight, bias, self.stride, pads)

    def _put_behind(self, x: Tensor, past: Tensor | None, unknown: int, pads: Pads) -> Tensor:
        """`x` behind the frames `past`, behind what stands for those that are unknown, and zeros around: in one copy."""
        b, c, t, h, w = x.shape
        (before, after), *sides = pads
        frames, *size = [n + sum(pair) for n, pair in zip((t, h, w), pads, strict=True)]
        made = new_empty(x, (b, c, frames, *size))
        zero_borders(made, ((0, after), *sides))
        inside = made[:, :, :, sides[0][0] : sides[0][0] + h, sides[1][0] : sides[1][0] + w]
        inside[:, :, before : before + t].copy_(x)
        self._put_before(inside, before, past, unknown)
        return made

    def _put_before(self, x: Tensor, room: int, past: Tensor | None, unknown: int) -> None:
        """Fills the first frames of `x`, before the input: with what stands for unknown ones, and with the known ones."""
        if past is not None:
            x[:, :, unknown:room].copy_(past)
        if unknown and self.repeats_first:
            first = room if past is None else unknown
            x[:, :, :unknown].copy_(x[:, :, first : first + 1].expand(-1, -1, unknown, -1, -1))
        elif unknown:
            x[:, :, :unknown].zero_()

    @property
    def lands(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.adds or super().lands

    def bind(self, source: Source) -> OnTile:
        if self.filters:
            filter = self.filter()
            return self._bound(
                source,
                lambda tile, past, place: self._filtered(tile.data, past, place.missing, filter, tile.out),
            )
        return self._bound(source, self._convolving(source, partial(cleared, self)))

    def bind_onto(self, added: Field, source: Source) -> OnTile:
        return self._bound(source, self._convolving(source, holding_tiles(self, added, source)))

    def _convolving(self, source: Source, where: Callable[[Tile, Place], Tensor | None]) -> OnTileAfter:
        """What convolves a tile, after known frames; added to what is there."""
        weight = source.kernel(self.weight)
        bias = cast(self.bias, weight.dtype)
        return lambda tile, past, place: self._convolve(
            tile.data, past, place.missing, weight, bias, where(tile, place)
        )

    def _bound(self, source: Source, convolve: OnTileAfter) -> OnTile:
        cache = source.cache(self)

        def on_tile(tile: Tile, place: Place) -> Tensor:
            past = None
            if cache is not None:
                cache.keep(*_own(tile, place))
                if cache.frames and place.missing[0][0]:
                    past = _earlier(cache, tile, place)
            return convolve(tile, past, place)

        return on_tile

    def at(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The convolution of whole tensors of `dtype`."""
        weight = kernel(self.weight, dtype)
        bias = cast(self.bias, weight.dtype)
        return lambda x: self._convolve(x, None, self.pads, weight, bias)

    def out_shape(self, shape: Shape) -> Shape:
        b, _, t, h, w = shape
        return b, self.out_channels, (t + self.reach - self.kernel_size[0]) // self.stride[0] + 1, h, w

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        return convolution_window(out[axis], sizes[axis], self.kernel_size[axis], self.stride[axis], self.pads[axis][0])

    def kept(self, element_bytes: int) -> int:
        return self.filter_bytes if self.filters else copied_bytes(self.weight, element_bytes)

    def preparing(self, element_bytes: int) -> int:
        return self.preparing_bytes if self.filters else self.kept(element_bytes)

    def flops(self, read: Shape, made: Shape) -> int:
        taps, *sides = self.kernel_size
        if made[2] == 1 and not self.repeats_first:
            taps = min(taps, read[2])  # the others meet zeros
        if self.filters:
            return self.filter_flops(made, taps)
        return 2 * prod(made) * self.in_channels * taps * prod(sides)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        if self.filters:
            return 0
        (before, after), *sides = place.missing
        t = place.windows[0].span.size
        if made[2] == 1 and not self.repeats_first:
            before = min(before, read[2] - t)
        padded = padded_elements((*read[:2], t, *read[3:]), ((before, after), *sides))
        return convolving_elements(self.weight, prod(read), padded, prod(made))


def _own(tile: Tile, place: Place) -> tuple[Tensor, int, Region]:
    """The input of a tile without the halo around its frames, its image, and where it lies in the chunk."""
    t, *windows = (w.span for w in place.windows)
    sides = place.region[1:]
    inside = [slice(s.start - w.start, s.stop - w.start) for s, w in zip(sides, windows, strict=True)]
    return tile.data[:, :, :, inside[0], inside[1]], tile.image, (t, *sides)


def _earlier(cache: OpCache, tile: Tile, place: Place) -> Tensor:
    """The frames before a tile that its window lacks, as many as are known."""
    count = min(place.missing[0][0], cache.frames)
    sides = tuple(w.span for w in place.windows[1:])
    return cache.earlier(tile.image, (Span(cache.frames - count, cache.frames), *sides))
