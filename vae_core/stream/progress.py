"""How far a run has come, in operations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from ..geometry import Region
from ..schedule import Steps


class Finished(NamedTuple):
    """A tile of the result."""

    image: int
    """Which image of the batch."""
    region: Region
    """Where in the result it lies."""
    data: Tensor
    """`1 c …`, to be read before the callback returns; not to be written."""


class Progress(NamedTuple):
    """What a progress callback is told besides operations done and in all."""

    pass_index: int
    passes: int
    tile_index: int
    tiles: int
    name: str
    finished: Finished | None = None
    """The tile that was just done, where it is one of the result; never in whole runs."""
    rung: str = ""
    """The way that the run takes, as its plan calls it."""
    chunk: int = 0
    """Which chunk of a clip; `finished.region` counts its frames from the chunk's first."""


OnProgress = Callable[[int, int, Progress], None]


class ProgressMeter:
    """Turns "tile 3 of 8 of pass 5" into operations done, and tells them."""

    def __init__(self, steps: Steps, progress: OnProgress | None):
        self.steps, self.progress = steps, progress
        self.before = [0, *accumulate(step.operations for step in steps)]

    def tile(
        self,
        pass_index: int,
        number: int,
        tiles: int,
        cells: tuple[int, int] | None = None,
        finished: Finished | None = None,
    ) -> None:
        """After the `number`-th of a pass's tiles; `cells` done and in all, where tiles are not equal."""
        if self.progress is None:
            return
        start, stop = self.before[pass_index], self.before[pass_index + 1]
        part, total = cells or (number, tiles)
        done = start + (stop - start) * part // total
        name = self.steps[pass_index].name
        self.progress(done, self.before[-1], Progress(pass_index, len(self.steps), number, tiles, name, finished))


def along(progress: OnProgress | None, rung: str) -> OnProgress | None:
    """Progress that says on which rung."""
    if progress is None:
        return None
    return lambda done, total, info: progress(done, total, info._replace(rung=rung))


def share(progress: OnProgress | None, part: int, parts: int) -> OnProgress | None:
    """Progress of one of several equal parts, told as progress of them all."""
    if progress is None or parts == 1:
        return progress

    def told(done: int, total: int, info: Progress) -> None:
        if info.finished is not None:
            info = info._replace(finished=info.finished._replace(image=part))
        progress(part * total + done, parts * total, info)

    return told
