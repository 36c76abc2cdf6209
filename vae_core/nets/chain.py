"""The operations of one pass together: their geometry, what they hold, and which of them work hand in hand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..geometry import Region
from .layouts import Shape
from .passes import Field, OnTile, Op, Place, Source


@dataclass(frozen=True)
class Chain:
    """The operations of one pass, as geometry."""

    ops: tuple[Op, ...]

    def stages(self, shape: Shape) -> list[Shape]:
        """The whole shape before each operation, and after the last."""
        shapes = [tuple(shape)]
        for op in self.ops:
            shapes.append(op.out_shape(shapes[-1]))
        return shapes

    @property
    def align(self) -> int:
        align = 1
        for op in self.ops:
            align *= op.align
        return align

    def places(self, region: Region, stages: Sequence[Shape]) -> list[Place]:
        """For each operation, its output region and input windows, so that the last one makes `region`."""
        places: list[Place] = []
        for op, shape in zip(reversed(self.ops), reversed(stages[:-1]), strict=True):
            windows = tuple(op.window(axis, region, shape[2:]) for axis in range(len(region)))
            places.append(Place(region, windows))
            region = tuple(window.span for window in windows)
        return places[::-1]

    def reads(self) -> tuple[Field, ...]:
        """Every other Field that is read."""
        return tuple(field for op in self.ops for field in (*op.reads(), *op.reads_all()))

    @cached_property
    def geometry(self) -> Hashable:
        """All that its windows, bytes and operations depend on."""
        return tuple(op.geometry for op in self.ops)

    @cached_property
    def fused(self) -> int:
        """How many operations it begins with that the next one computes part by part: what they make is nowhere as a whole."""
        count = self._leading
        return count if count and self.ops[count].reads_parts else 0

    @cached_property
    def _leading(self) -> int:
        """How many operations it begins with that `fuse` with what comes next; 0 where nothing does."""
        return next((i for i, op in enumerate(self.ops) if not op.fuses), 0)

    @cached_property
    def adding(self) -> int | None:
        """The number of the operation that can add its result to the Field that the next one adds."""
        pairs = zip(self.ops, self.ops[1:], strict=False)
        return next((i for i, (op, then) in enumerate(pairs) if op.adds and then.added is not None), None)

    @cached_property
    def reuses(self) -> bool:
        """What it makes of a tile lies in memory of its own, where the next tile may be made."""
        own = [i for i, op in enumerate(self.ops) if op.lands]
        return bool(own) and all(op.in_place for op in self.ops[own[-1] + 1 :])

    def lands(self, dense: bool, overwrites: Callable[[Field], bool] | None) -> int | None:
        """The number of the operation that can put a tile where it lies in the pass's output, as all after it are in place.

        `dense`: tiles lie there without gaps. `overwrites` says whether the output takes over a Field's memory; None where that is
        new. What is there already can only be added to, last of all, as a tile is then not computed again.
        """
        if not self.reuses or sum(op.lands for op in self.ops) > 1:
            return None
        i = next(i for i, op in enumerate(self.ops) if op.lands)
        if self.ops[i].adds and not dense:
            return None
        if overwrites is None:
            return i
        after = self.ops[i + 1 :]
        added = after[0].added if after else None
        if added is None or not overwrites(added) or not all(op.fuses for op in after[1:]):
            return None
        return i if self.ops[i].adds else i + 1

    @cached_property
    def banded(self) -> int:
        """How many operations it begins with that tiles go through band by band, into memory that a convolution reads as it is."""
        count = self._leading
        in_memory = count and self.ops[0].fills and all(op.in_place for op in self.ops[1:count])
        return count if in_memory and self.ops[count].adds and not self.ops[count].reach else 0

    def kept(self, element_bytes: int) -> int:
        """Bytes that its operations hold for the whole pass."""
        return self._bytes(element_bytes)[0]

    def preparing(self, element_bytes: int) -> int:
        """Bytes that they need at most while they prepare for it."""
        return self._bytes(element_bytes)[1]

    def _bytes(self, element_bytes: int) -> tuple[int, int]:
        """Worked out once, since a planner asks for every tile and every home."""
        if element_bytes not in self._known_bytes:
            kept = sum(op.kept(element_bytes) for op in self.ops)
            self._known_bytes[element_bytes] = kept, sum(op.preparing(element_bytes) for op in self.ops)
        return self._known_bytes[element_bytes]

    @cached_property
    def _known_bytes(self) -> dict[int, tuple[int, int]]:
        return {}

    def bind(self, source: Source) -> list[tuple[int, OnTile]]:
        """Prepare for one pass: what computes one tile, each with the number of its operation."""
        n, bound = self.fused, []
        if n:
            bound = [(n, self.ops[n].bind_after([op.bind(source) for op in self.ops[:n]], source))]
            n += 1
        added = None if self.adding is None else self.ops[self.adding + 1].added
        for i, op in enumerate(self.ops[n:], start=n):
            if i == self.adding and added is not None:
                bound.append((i, op.bind_onto(added, source)))
            elif i - 1 != self.adding:
                bound.append((i, op.bind(source)))
        return bound

    @property
    def strided(self) -> bool:
        """It can begin with a strided view."""
        return not self.ops or self.ops[0].strided

    @property
    def pixelwise(self) -> bool:
        return all(op.pixelwise for op in self.ops)

    def __str__(self) -> str:
        return " · ".join(str(op.name) for op in self.ops) or "foreign function"
