"""What tiles need, worked out once for all plans that ask."""

from __future__ import annotations

from collections.abc import Hashable

from ..nets.segments import Segment
from ..nets.trace import TracedPass
from .depth_first import DepthFirstTiling
from .footprint import Tiling


class Tilings:
    """The passes and segments of one network and one size of its input, cut into tiles: nothing here depends on a budget or on
    where anything lives."""

    def __init__(self) -> None:
        self._passes: dict[Hashable, Tiling] = {}
        self._segments: dict[Hashable, DepthFirstTiling] = {}

    def of(self, p: TracedPass, tile: tuple[int, ...]) -> Tiling:
        """One pass, for one image."""
        key = (p.kind, tile)
        if key not in self._passes:
            self._passes[key] = Tiling(p, tile)
        return self._passes[key]

    def of_segment(self, segment: Segment, tile: tuple[int, ...]) -> DepthFirstTiling:
        """Several passes that go depth first."""
        key = (segment.first, segment.stop, tile)
        if key not in self._segments:
            self._segments[key] = DepthFirstTiling(segment, tile[-2:])
        return self._segments[key]
