"""What a plan tells a run: one step per pass of the network's forward, and where Fields can live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Home = Literal["device", "host", "disk"]
"""Where a Field lives: on the device that computes, in host memory, or in a memory-mapped temporary file. In a run on the CPU the
device is the host's memory, and "host" is not used."""

HOMES: tuple[Home, ...] = ("device", "host", "disk")
"""From near to far."""


@dataclass(frozen=True)
class Step:
    """How one pass is carried out. Fields are numbered in order of appearance; 0 is the network's input."""

    tile: tuple[int, ...]
    """Cells per axis of an output tile."""
    operations: int = 0
    """Of the pass in one piece: its share of the progress."""
    name: str = ""
    """What the pass computes, for people."""
    home: Home = "device"
    """Where the output Field lives."""
    overwrites: int | None = None
    """The Field whose memory the output takes over, cell by cell: its last use is this very pass."""
    frees: tuple[int, ...] = ()
    """Fields whose memory is given back after this pass."""
    statistics: bool = False
    """The output's statistics are kept: a later pass normalises by them, or they tell whether all is finite."""
    tokens: bool = False
    """The output is stored with its channels innermost, as attention reads it."""
    since: int | None = None
    """The pass is carried out depth first, together with those from this one on."""
    spare_bytes: int = 0
    """What the pass takes less than the run's peak: so much memory of dead Fields may be held for later ones meanwhile."""
    skipped: bool = False
    """The pass is carried out together with a later one, and what it makes is never stored whole."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Fields that are gone after this pass."""
        return self.frees if self.overwrites is None else (*self.frees, self.overwrites)


Steps = tuple[Step, ...]


class Held(NamedTuple):
    """A Field that exists while a run is planned anew from the middle."""

    home: Home
    bytes: int
    itemsize: int
    """Bytes of one element."""


Replan = Callable[[int, Sequence["Held | None"], int], "Steps | None"]
"""(first pass, Fields so far with None for those that are gone, bytes of an element from now on) → steps for all passes, of which
those from the first one on are new; None where no plan fits."""
