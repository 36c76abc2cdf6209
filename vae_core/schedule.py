"""What a plan tells a run: one step per pass of the network's forward."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """How one pass is carried out. Fields are numbered in order of appearance; 0 is the network's input."""

    tile: tuple[int, ...]
    """Cells per axis of an output tile."""
    operations: int = 0
    """Of the pass in one piece: its share of the progress."""
    name: str = ""
    """What the pass computes, for people."""
    on_host: bool = False
    """The output Field lives in host memory instead of on the device."""
    overwrites: int | None = None
    """The Field whose memory the output takes over, cell by cell: its last use is this very pass."""
    frees: tuple[int, ...] = ()
    """Fields whose memory is given back after this pass."""
    statistics: bool = False
    """A later pass normalises by this output's statistics."""


Steps = tuple[Step, ...]
