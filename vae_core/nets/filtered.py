"""Convolutions that a run computes by Winograd's filtering, where that is faster."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..geometry import Span, Window
from . import winograd
from .layouts import Shape
from .passes import OnTile, Op, Place, Source, Tile, through


class Filtered(Op):
    """A 3×3 convolution that may be filtered: what such an operation tells a plan, and how it is made ready.

    Runs filter; a plain call of the layer, which may be differentiated or compiled, convolves.
    """

    filtering: winograd.Filtering
    weight: Tensor
    bias: Tensor | None

    @property
    def filters(self) -> bool:
        """A run computes it so."""
        return winograd.gains(self.weight, self.filtering)

    @property
    def strided(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.filters

    @property
    def lands(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.filters

    @property
    def workspace(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return winograd.workspace_elements(self.weight, self.filtering) if self.filters else 0

    @property
    def reads_parts(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.filters and not self.reach

    @property
    def part_elements(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What a head computes of one part."""
        return winograd.window_elements(self.weight, self.filtering)

    @property
    def filter_bytes(self) -> int:
        """Of the kernel that a pass works with."""
        return 4 * winograd.kernel_elements(self.weight, self.filtering)

    @property
    def preparing_bytes(self) -> int:
        """While that is made."""
        return 4 * winograd.preparing_elements(self.weight, self.filtering)

    def filter(self) -> winograd.Filter:
        """The convolution with its kernel made ready."""
        return winograd.Filter(self.weight, self.bias, self.filtering)

    def bind_after(self, head: Sequence[OnTile], source: Source) -> OnTile:
        convolve = self.filter()

        def on_tile(tile: Tile, place: Place) -> Tensor:
            def enter(image: int, part: Tensor, first: tuple[int, int]) -> Tensor:
                spans = tuple(
                    Span(w.span.start + i, w.span.start + i + n)
                    for w, i, n in zip(place.windows, first, part.shape[2:], strict=True)
                )
                there = Place(spans, tuple(map(Window, spans)))
                return through(Tile(part, tile.image + image, owned=False), ((f, there) for f in head)).data

            return convolve(tile.data, place.missing, head=enter if head else None, out=tile.out)

        return on_tile

    def filter_flops(self, made: Shape, taps: int = 1) -> int:
        """To make a tile `made`, of a kernel of which so many frames count."""
        return winograd.operations(self.weight.shape[1], taps, made, self.filtering)
