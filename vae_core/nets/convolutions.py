"""Convolutions of pictures: plain, filtered or onto what is there, and of pictures that are enlarged first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import Region, Span, Window, convolution_window
from . import onednn
from .arithmetic import convolving_dtype
from .filtered import Filtered
from .layouts import dense, is_innermost, new_empty, stored
from .memory import current
from .passes import Field, OnTile, Place, Shape, Source, Tile
from .undrawn import Undrawn
from .winograd import PLAIN, UPSAMPLING, Pads

LANDING_ELEMENTS = 1 << 22
"""Of a result that is copied to where it belongs."""


class Convolution(Protocol):
    """One that may add what it makes to what is there."""

    out_channels: int

    @property
    def adds(self) -> bool: ...


def cleared(op: Convolution, tile: Tile, place: Place) -> Tensor | None:
    """Memory with zeros, for what an operation that `adds` makes of a tile; None where there is none to spare."""
    if tile.out is not None:
        return tile.out.zero_()
    spare = current().spares.cleared(_stored(op, tile, place), tile.data.dtype) if op.adds else None
    return None if spare is None else spare.movedim(-1, 1)


def holding_tiles(op: Convolution, added: Field, source: Source) -> OnTile:
    """The same, holding what it adds to: a tile of another Field."""
    is_there = source.overwrites(added)

    def on_tile(tile: Tile, place: Place) -> Tensor:
        if tile.out is not None and is_there:
            return tile.out
        there = _unwritten(op, tile, place) if tile.out is None else tile.out
        return there.copy_(source.part(added, tile.image, place.region))

    return on_tile


def _unwritten(op: Convolution, tile: Tile, place: Place) -> Tensor:
    """Memory for what an operation makes of a tile, spare if there is some."""
    return current().spares.empty(_stored(op, tile, place), tile.data.dtype).movedim(-1, 1)


def _stored(op: Convolution, tile: Tile, place: Place) -> Shape:
    return stored((len(tile.data), op.out_channels, *(span.size for span in place.region)))


def pad(x: Tensor, missing: Pads) -> Tensor:
    """Zeros beyond the borders of the trailing axes; `x` itself where none are missing."""
    if not any(before or after for before, after in missing):
        return x
    if torch.is_grad_enabled():
        return F.pad(x, [n for pair in reversed(missing) for n in pair])
    # torch fills all of the result with zeros first; here each element is written once.
    sizes = (n + before + after for n, (before, after) in zip(x.shape[2:], missing, strict=True))
    made = new_empty(x, (*x.shape[:2], *sizes))
    zero_borders(made, missing)
    inside = (slice(before, before + n) for n, (before, _) in zip(x.shape[2:], missing, strict=True))
    made[(..., *inside)].copy_(x)
    return made


def zero_borders(x: Tensor, borders: Pads) -> None:
    """Fill so many cells at both ends of the trailing axes with zeros."""
    for axis, (before, after) in enumerate(borders, start=x.ndim - len(borders)):
        if before:
            x.narrow(axis, 0, before).zero_()
        if after:
            x.narrow(axis, x.shape[axis] - after, after).zero_()


def split_pads(missing: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], Pads]:
    """What a convolution can pad by itself, equally on both sides of an axis, and what must be padded before it."""
    own = tuple(before if before == after else 0 for before, after in missing)
    rest = tuple((0, 0) if before == after else (before, after) for before, after in missing)
    return own, rest


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which statistics are kept: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A parameter in the dtype of a pass: itself, but for a pass that is repeated in a wider one."""
    return None if parameter is None else parameter.to(dtype)


def kernel(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's weight for a pass in `dtype`: in that, or in the wider one in which convolutions are computed."""
    weight = weight.to(dtype)
    return weight.to(convolving_dtype(weight))


def convolving_elements(weight: Tensor, read: int, padded: int, made: int) -> int:
    """Elements, of the weight's own size, that a convolution holds besides `read`, of which `padded` is a copy, and `made`."""
    if convolving_dtype(weight) == weight.dtype:
        return padded
    return max(3 * padded - made, 2 * (padded or read) + made)


class Conv2d(Undrawn, nn.Conv2d, Filtered):
    """A convolution with zero padding `pads = (before, after)`, the same on both axes."""

    filtering = PLAIN

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, pads: tuple[int, int] = (0, 0), bias: bool = True
    ):
        super().__init__(c_in, c_out, kernel, stride, bias=bias)
        self.pads = pads
        self.pixelwise = kernel == stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, (self.pads, self.pads), self.weight, self.bias)

    literal = forward

    def of(self, x: Tensor) -> Tensor:
        return self.at(x.dtype)(x)

    @property
    def geometry(self) -> Hashable:
        return self.name, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.pads, self.filters

    @property
    def filters(self) -> bool:
        return self.stride == (1, 1) and super().filters

    def filtered(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        return self.filter()(x, (self.pads, self.pads))

    @property
    def adds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.stride == (1, 1) and not self.filters and onednn.adds(self.weight)

    @property
    def lands(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.adds or super().lands

    def onto(self, there: Tensor, x: Tensor, past: Tensor | None = None) -> Tensor:
        weight = kernel(self.weight, x.dtype)
        return self._onto(there, x, (self.pads, self.pads), weight, cast(self.bias, weight.dtype))

    def _onto(self, there: Tensor, x: Tensor, missing: Pads, weight: Tensor, bias: Tensor | None) -> Tensor:
        own, rest = split_pads(missing)
        return onednn.convolve_onto(there, pad(x, rest), weight, bias, self.stride, own)

    def _convolve(self, x: Tensor, missing: Pads, weight: Tensor, bias: Tensor | None) -> Tensor:
        own, rest = split_pads(missing)
        if weight.dtype != x.dtype:
            return F.conv2d(pad(x, rest).to(weight.dtype), weight, bias, self.stride, own).to(x.dtype)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16 and self._makes_one_column(x, missing):
            # oneDNN (torch 2.13, AMX) returns garbage for a strided bfloat16 convolution with an output one column wide.
            wider = (*missing[:-1], (missing[-1][0], missing[-1][1] + self.stride[-1]))
            return F.conv2d(pad(x, wider), weight, bias, self.stride)[..., :1]
        return F.conv2d(pad(x, rest), weight, bias, self.stride, own)

    def _makes_one_column(self, x: Tensor, missing: Pads) -> bool:
        width = x.shape[-1] + sum(missing[-1])
        return self.stride[-1] > 1 and width < self.kernel_size[-1] + self.stride[-1]

    def bind(self, source: Source) -> OnTile:
        if self.filters:
            return self.bind_after((), source)
        weight = source.kernel(self.weight)
        bias = cast(self.bias, weight.dtype)

        def on_tile(tile: Tile, place: Place) -> Tensor:
            there = cleared(self, tile, place)
            if there is None:
                return self._convolve(tile.data, place.missing, weight, bias)
            return self._onto(there, tile.data, place.missing, weight, bias)

        return on_tile

    def bind_onto(self, added: Field, source: Source) -> OnTile:
        weight = source.kernel(self.weight)
        bias = cast(self.bias, weight.dtype)
        holding = holding_tiles(self, added, source)
        return lambda tile, place: self._onto(holding(tile, place), tile.data, place.missing, weight, bias)

    def at(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The convolution of whole tensors of `dtype`."""
        weight = kernel(self.weight, dtype)
        bias = cast(self.bias, weight.dtype)
        return lambda x: self._convolve(x, self._missing(x.shape), weight, bias)

    def _missing(self, shape: Shape) -> Pads:
        """The zeros around a whole input: of its padding, what the stride comes to."""
        if self.stride == (1, 1):
            return (self.pads, self.pads)
        region = tuple(Span(0, n) for n in self.out_shape(shape)[2:])
        return Place(region, tuple(self.window(axis, region, shape[2:]) for axis in range(len(region)))).missing

    def out_shape(self, shape: Shape) -> Shape:
        b, _, *sizes = shape
        return (
            b,
            self.out_channels,
            *((n + sum(self.pads) - self.kernel_size[0]) // self.stride[0] + 1 for n in sizes),
        )

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        return convolution_window(out[axis], sizes[axis], self.kernel_size[0], self.stride[0], self.pads[0])

    def flops(self, read: Shape, made: Shape) -> int:
        if self.filters:
            return self.filter_flops(made)
        return 2 * prod(made) * self.in_channels * prod(self.kernel_size)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        if self.filters:
            return 0
        return convolving_elements(self.weight, prod(read), padded_elements(read, place.missing), prod(made))

    def kept(self, element_bytes: int) -> int:
        return self.filter_bytes if self.filters else copied_bytes(self.weight, element_bytes)

    def preparing(self, element_bytes: int) -> int:
        return self.preparing_bytes if self.filters else self.kept(element_bytes)


def copied_bytes(weight: Tensor, element_bytes: int) -> int:
    """Of the copy of a weight that a pass works with: in a wider dtype, or with the channels innermost."""
    element_bytes = max(element_bytes, convolving_dtype(weight).itemsize)
    there = weight.element_size() == element_bytes and is_innermost(weight)
    return 0 if there else weight.numel() * element_bytes


def padded_elements(read: Shape, missing: Pads) -> int:
    """Elements of the padded copy that `pad` makes of what a convolution cannot pad by itself."""
    _, rest = split_pads(missing)
    if not any(before or after for before, after in rest):
        return 0
    return prod(read[:2]) * prod(n + before + after for n, (before, after) in zip(read[2:], rest, strict=True))


class UpsampleConv2d(Undrawn, nn.Conv2d, Filtered):
    """Nearest-neighbour upsampling by `factor` and a 3×3 convolution, as the one transposed convolution that they are.

    Upsampling repeats each cell factor × factor times; convolving that with w is convolving the cells themselves, spread out by
    `factor`, with w ∗ box. For factor 2 this takes 16 multiplications per cell and channel pair where the literal way takes 36, and
    the upsampled Field is never stored. Cells beyond the border are zero on either side of the equation.
    """

    pixelwise = False
    filtering = UPSAMPLING

    def __init__(self, c_in: int, c_out: int, factor: int = 2, bias: bool = True):
        super().__init__(c_in, c_out, 3, bias=bias)
        self.factor = factor
        self.align = factor

    @property
    def geometry(self) -> Hashable:
        return self.name, self.in_channels, self.out_channels, self.factor, self.filters

    @property
    def filters(self) -> bool:
        return self.factor == 2 and super().filters

    def filtered(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        return self.filter()(x, ((1, 1), (1, 1)))

    def transposed_kernel(self, dtype: torch.dtype | None = None) -> Tensor:
        """`c_in c_out k k` with k = factor + 2, summed in float32 or better; in `dtype`, by default the weight's.

        Output channels lie innermost, then those of the input: oneDNN brings such a kernel into its own order four times as fast as
        one whose input channels do.
        """
        c_out, c_in, *sides = self.weight.shape
        # As a plain matrix, which torch transposes quickly.
        taps = self.weight.movedim(1, -1).reshape(c_out, -1).t().contiguous()
        rows = self._boxes(taps.to(wide(taps.dtype)).view(*sides, c_in, c_out))
        columns = self._boxes(rows.transpose(0, 1)).to(dtype or self.weight.dtype)
        return columns.permute(2, 3, 1, 0)

    def _boxes(self, taps: Tensor) -> Tensor:
        """Sums of as many neighbours along the first axis as an upsampled cell has copies, the last first."""
        last = len(taps) + self.factor - 1
        return torch.stack([reduce(torch.add, taps[max(i - self.factor, 0) : i]) for i in range(last, 0, -1)])

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.transposed_kernel(), self.bias, self.factor, padding=1)

    def of(self, x: Tensor) -> Tensor:
        weight = self.transposed_kernel(convolving_dtype(x))
        return self._enlarged(x, ((1, 1), (1, 1)), weight, cast(self.bias, weight.dtype))

    def _enlarged(self, x: Tensor, missing: Pads, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of a window with one halo cell on each side that is not missing. What those contribute beyond the region is cropped."""
        beyond, rest = self._window_pads(x.shape, missing)
        width = (x.shape[-1] + sum(missing[-1]) - 2) * self.factor
        y = F.conv_transpose2d(
            pad(x, rest).to(weight.dtype), weight, bias, self.factor, padding=[b * self.factor + 1 for b in beyond]
        ).to(x.dtype)
        # Without gaps: statistics of a strided tile take several times as long as its copy.
        return y if y.shape[-1] == width else dense(y[..., :width], is_innermost(y))

    def _window_pads(self, shape: Sequence[int], missing: Pads) -> tuple[tuple[int, ...], Pads]:
        """Per axis how many halo cells there are on either side, the same on both, and the zeros that this takes around a window.

        oneDNN (torch 2.14, AMX) takes six times as long for a bfloat16 window of an odd width, which is made even.
        """
        beyond = tuple(0 if all(sides) else 1 for sides in missing)
        rest = [(0, 0) if all(sides) else sides for sides in missing]
        odd = (shape[-1] + sum(rest[-1])) % 2
        if odd and self.weight.device.type == "cpu" and convolving_dtype(self.weight) == torch.bfloat16:
            rest[-1] = (rest[-1][0], rest[-1][1] + 1)
        return beyond, tuple(rest)

    def literal(self, x: Tensor) -> Tensor:
        return F.conv2d(
            F.interpolate(x, scale_factor=float(self.factor), mode="nearest"), self.weight, self.bias, padding=1
        )

    def bind(self, source: Source) -> OnTile:
        if self.filters:
            return self.bind_after((), source)
        dtype = torch.promote_types(source.dtype, convolving_dtype(self.weight))
        weight = source.kernel(self.transposed_kernel(dtype))
        bias = cast(self.bias, weight.dtype)
        if not self.lands:
            return lambda tile, place: self._enlarged(tile.data, place.missing, weight, bias)

        def on_tile(tile: Tile, place: Place) -> Tensor:
            there = _unwritten(self, tile, place) if tile.out is None else tile.out
            top = place.region[0].start
            for band in self._bands(place.region):
                window = self._of_band(band, place.windows[0])
                inside = window.span.start - place.windows[0].span.start
                part = tile.data[:, :, inside : inside + window.span.size]
                missing = ((window.before, window.after), place.missing[1])
                there[:, :, band.start - top : band.stop - top].copy_(self._enlarged(part, missing, weight, bias))
            return there

        return on_tile

    @property
    def lands(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        here = self.weight.device.type == "cpu" and convolving_dtype(self.weight) == self.weight.dtype
        return here or super().lands

    def _bands(self, region: Region) -> list[Span]:
        """Rows of a region that are made at a time: so few that the system has memory for them at hand, and clears none."""
        rows, columns = region
        count = max(LANDING_ELEMENTS // (self.out_channels * columns.size) // self.factor, 1) * self.factor
        return [Span(start, min(start + count, rows.stop)) for start in range(rows.start, rows.stop, count)]

    def _of_band(self, band: Span, window: Window) -> Window:
        """The part of a tile's window of rows that a band of its rows needs."""
        start, stop = band.start // self.factor - 1, -(-band.stop // self.factor) + 1
        span = Span(max(start, window.span.start), min(stop, window.span.stop))
        return Window(span, span.start - start, stop - span.stop)

    def out_shape(self, shape: Shape) -> Shape:
        b, _, *sizes = shape
        return (b, self.out_channels, *(n * self.factor for n in sizes))

    def window(self, axis: int, out: Region, sizes: Sequence[int]) -> Window:
        under = Span(out[axis].start // self.factor, -(-out[axis].stop // self.factor))
        return convolution_window(under, sizes[axis], kernel=3, stride=1, pad_before=1)

    def flops(self, read: Shape, made: Shape) -> int:
        if self.filters:
            return self.filter_flops(made)
        return 2 * prod(read) * self.out_channels * (self.factor + 2) ** 2

    def cells(self, window: Window) -> int:
        # But for the column of zeros that makes a bfloat16 width even.
        one_side = bool(window.before) != bool(window.after)
        return window.span.size + (window.before + window.after if one_side else 0)

    def kept(self, element_bytes: int) -> int:
        if self.filters:
            return self.filter_bytes
        element_bytes = max(element_bytes, convolving_dtype(self.weight).itemsize)
        return self.weight.shape[:2].numel() * (self.factor + 2) ** 2 * element_bytes

    def preparing(self, element_bytes: int) -> int:
        if self.filters:
            return self.preparing_bytes
        # In the wide dtype: the weight, its sums along one axis, and those along both, before and after they are put together.
        k = self.factor + 2
        return self.weight.shape[:2].numel() * (9 + 3 * k + 2 * k * k) * max(element_bytes, 4)

    def landing(self, read: Shape, made: Shape, place: Place) -> int:
        if self.filters or not self.lands:
            return self.scratch(read, made, place)
        most, bands = 0, self._bands(place.region)
        for band in {*bands[:2], *bands[-2:]}:  # those between are like the second
            window = self._of_band(band, place.windows[0])
            sizes = (*read[:2], window.span.size, *read[3:]), (*made[:2], band.size, *made[3:])
            around = Place((band, place.region[1]), (window, place.windows[1]))
            most = max(most, prod(sizes[1]) + self.scratch(*sizes, around))
        return most

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        if self.filters:
            return 0
        beyond, rest = self._window_pads(read, place.missing)
        sizes = [n + sum(pair) for n, pair in zip(read[2:], rest, strict=True)]
        padded = prod(read[:2]) * prod(sizes) if any(map(any, rest)) else 0
        width = (sizes[-1] - 2 * beyond[-1]) * self.factor
        wider = prod(made[:-1]) * width
        return (wider if width > made[-1] else 0) + convolving_elements(self.weight, prod(read), padded, wider)
