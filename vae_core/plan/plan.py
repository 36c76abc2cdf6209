"""What a plan is: integers, printable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..nets import memory
from ..schedule import Home, Steps


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may use, weights included."""

    device_bytes: int
    host_bytes: int | None = None
    """None where device and host are one memory."""
    disk_bytes: int = 0
    """Of temporary files."""
    asked: bool = True
    """The user set a limit; else it is what is free, less a reserve."""


@dataclass(frozen=True)
class Costs:
    """What other things cost, measured in operations. They weigh plans against each other, and no plan's memory depends on them."""

    tile: int
    """One tile of one pass: launching its kernels, reading its halo."""
    host_byte: float
    """A byte between device and host memory."""
    disk_byte: float
    """A byte between memory and a temporary file."""
    copied_byte: int = 0
    """A byte that is copied within memory: of a tile's window, behind what a causal convolution needs before it, and of a tile
    that is not made where it is to lie."""
    fresh_byte: float = 0
    """A byte of memory that the system has to hand out anew: the peak of a run once, as memory of dead Fields is used again,
    and what each tile needs for itself, where that is more than the system keeps at hand."""

    def fresh(self, size: int, pieces: int = 1) -> int:
        """What it costs to allocate so many bytes, in so many pieces."""
        return int(size * self.fresh_byte) if size > pieces * memory.AT_HAND_BYTES else 0


COSTS = {
    "cuda": Costs(2 * 10**10, 3_000, 100_000),
    "cpu": Costs(2 * 10**7, 1_000, 1_000, copied_byte=50, fresh_byte=100),
}
"""Orders of magnitude. A tile costs some 1 ms where a GPU computes, whose kernels Python launches one by one (0.8 ms measured),
and 0.1 ms on a CPU. A GPU of the kind that is short of memory makes some 20 T operations a second (an H200 80 T, measured) and
moves 6 GB through pinned buffers; a CPU makes 0.3 T, gets 3 GB of new memory and copies 6 (a Xeon with AMX 10 to 12, measured).
A disk is taken to move 0.2 GB a second: some are faster, and files are for want of anything else."""


@dataclass(frozen=True)
class Rung:
    """One way of running, what it is predicted to need and cost, and whether it fits."""

    name: str
    tile: tuple[int, int] | None
    """Smallest and largest edge of a tile, in cells of each pass's output; None for everything at once."""
    images: int
    """Images of the batch that run at once."""
    device_bytes: int
    """Predicted peak on the device, weights included."""
    host_bytes: int
    """Predicted peak in host memory where that is another memory, else 0."""
    disk_bytes: int
    """Predicted peak of temporary files."""
    operations: int
    """Floating-point operations as torch counts them: two per multiply-add."""
    moved_bytes: int
    """Copied between the device and where Fields live."""
    cost: int
    """All of it, in operations: the least of what fits is chosen, or where memory costs too, one that is hardly more."""
    fits: bool
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """How a decode or encode is run: the rung taken, the steps that carry it out, and all that were weighed."""

    chosen: Rung
    steps: Steps
    """One per pass; none for depth-first and for overlap-and-blend, which go tile by tile."""
    limit_bytes: int | None
    rungs: tuple[Rung, ...]
    """Every rung that was weighed."""
    uploads: bool = True
    """The input is copied to the device first; else its tiles are fetched from where it is."""
    result_home: Home = "device"
    """Where the result is stored."""

    @property
    def rung(self) -> str:
        return self.chosen.name

    @property
    def tile(self) -> tuple[int, int] | None:
        return self.chosen.tile

    @property
    def images(self) -> int:
        return self.chosen.images

    @property
    def device_bytes(self) -> int:
        return self.chosen.device_bytes

    @property
    def host_bytes(self) -> int:
        return self.chosen.host_bytes

    @property
    def disk_bytes(self) -> int:
        return self.chosen.disk_bytes

    @property
    def operations(self) -> int:
        return self.chosen.operations

    @property
    def exact(self) -> bool:
        return self.chosen.exact

    def table(self) -> str:
        """The rungs as text, one line each, the chosen one marked."""
        return table(self.rungs, self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; without the steps."""
        chosen = asdict(self.chosen)
        return {
            "rung": chosen.pop("name"),
            **chosen,
            "limit_bytes": self.limit_bytes,
            "rungs": [*map(asdict, self.rungs)],
        }


def table(rungs: Sequence[Rung], chosen: Rung | None = None) -> str:
    """Rungs as text, one line each, the chosen one marked. `cost` is relative to that of the first rung."""
    rows = [
        f"{'':2}{'rung':<30}{'tiles':>10}{'device':>12}{'host':>12}{'disk':>12}{'moved':>12}"
        f"{'operations':>14}{'cost':>8}  fits"
    ]
    for rung in rungs:
        mark = "→ " if rung is chosen else "  "
        rows.append(
            f"{mark}{rung.name:<30}{tiles_text(rung.tile):>10}{readable(rung.device_bytes):>12}"
            f"{_or_dash(rung.host_bytes):>12}{_or_dash(rung.disk_bytes):>12}{_or_dash(rung.moved_bytes):>12}"
            f"{rung.operations / 1e12:>11.3f} T  {rung.cost / max(rungs[0].cost, 1):>7.2f}  {'yes' if rung.fits else 'no'}"
        )
    return "\n".join(rows)


def tiles_text(tile: tuple[int, int] | None) -> str:
    """(64, 512) → "64–512", (64, 64) → "64"."""
    if tile is None:
        return "-"
    return str(tile[0]) if tile[0] == tile[1] else f"{tile[0]}–{tile[1]}"


def readable(count: int) -> str:
    """Bytes for people: "1.25 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _or_dash(count: int) -> str:
    return readable(count) if count else "-"
