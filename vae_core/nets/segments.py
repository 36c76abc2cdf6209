"""Runs of passes that can go depth first: one tile at a time through all of them, with a halo as wide as their reach together.

A segment's passes neither normalise over the picture nor attend to all of it; one Field enters it and one leaves. Regions are those
of pictures, (h, w): of a clip's Fields all frames of the chunk go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..geometry import Region, aligned, bounding
from ..geometry import whole as everything
from .passes import Shape
from .trace import Trace, TracedPass, field_index

SHORTEST = 4
"""Passes. Of fewer, streaming stores so few Fields that halos do not pay."""


@dataclass(frozen=True)
class Segment:
    """The passes first, first + 1, … stop - 1 of a trace of one image or chunk."""

    trace: Trace
    first: int
    stop: int

    @property
    def passes(self) -> list[TracedPass]:
        return self.trace.passes[self.first : self.stop]

    @property
    def enters(self) -> int:
        """The Field that it reads."""
        return self.passes[0].enters

    @property
    def makes(self) -> int:
        """The Field that it writes."""
        return self.stop

    @property
    def shape(self) -> Shape:
        """Of what it writes."""
        return self.trace.shapes[self.makes]

    @property
    def operations(self) -> int:
        """In one piece."""
        return sum(p.operations for p in self.passes)

    @property
    def is_all(self) -> bool:
        """It is the whole network."""
        return self.first == 0 and self.stop == len(self.trace.passes)

    def last_use(self) -> Mapping[int, int]:
        """Per Field of the segment the last of its passes, counted from its first, that reads it."""
        return {f: i for i, p in enumerate(self.passes) for f in (p.enters, *p.reads)}

    def needs(self, region: Region) -> Mapping[int, Region]:
        """Per Field of the segment the region that is needed of it to make `region` of what the segment writes."""
        needs = {self.makes: self._aligned(self.makes, region)}
        for p in reversed(self.passes):
            places = p.chain.places(in_field(p.shape, needs[p.makes]), p.stages)
            read = [(p.enters, tuple(w.span for w in places[0].windows))]
            read += [
                (field_index(f), place.region)
                for op, place in zip(p.chain.ops, places, strict=True)
                for f in op.reads()
            ]
            for index, wider in read:
                old = needs.get(index)
                sides = wider[-2:] if old is None else bounding(old, wider[-2:])
                needs[index] = self._aligned(index, sides)
        return needs

    def _aligned(self, index: int, region: Region) -> Region:
        """Out to what the pass that makes a Field is aligned to; of the one that enters, any part can be read."""
        align = 1 if index == self.enters else self.trace.passes[index - 1].chain.align  # pass i makes Field i + 1
        return aligned(region, align, self.trace.shapes[index][-2:])


def in_field(shape: Shape, region: Region) -> Region:
    """A region of pictures in a Field of `shape`: of a clip, in all of its frames."""
    return (*everything(shape[2:-2]), *region)


def elements(shape: Shape, region: Region) -> int:
    """Of a region of pictures in a Field of `shape`."""
    return prod(shape[:-2]) * prod(span.size for span in region)


def segments(trace: Trace) -> list[Segment]:
    """The longest segments, in order."""
    found, first = [], 0
    while first < len(trace.passes):
        stops = range(len(trace.passes), first + SHORTEST - 1, -1)
        stop = next((stop for stop in stops if _is_segment(trace, first, stop)), None)
        if stop is not None:
            found.append(Segment(trace, first, stop))
        first = stop or first + 1
    return found


def _is_segment(trace: Trace, first: int, stop: int) -> bool:
    last, passes = trace.last_use(), trace.passes[first:stop]
    entering = {f for p in passes for f in (p.enters, *p.reads) if f <= first}
    leaving = {f for f in range(first + 1, stop + 1) if last[f] >= stop}
    local = all(map(trace.is_local, passes)) and trace.shapes[stop][0] == 1
    return local and len(entering) == 1 and leaving == {stop}
