"""What a plan is: integers, printable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..schedule import Steps


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may use, weights included. `host_bytes` is None where device and host are one memory."""

    device_bytes: int
    host_bytes: int | None = None


@dataclass(frozen=True)
class Rung:
    """One way of running, what it is predicted to need, and whether that fits."""

    name: str
    tile: int | None
    """Cells along the edge of a tile of each pass's output; None for everything at once."""
    images: int
    """Images of the batch that run at once."""
    device_bytes: int
    """Predicted peak on the device, weights included."""
    host_bytes: int
    """Predicted peak in host memory where that is another memory, else 0."""
    operations: int
    """Floating-point operations as torch counts them: two per multiply-add."""
    fits: bool
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """How a decode or encode is run: the rung taken, the steps that carry it out, and all that were weighed."""

    chosen: Rung
    steps: Steps
    """One per pass; none for overlap-and-blend, which has no passes."""
    limit_bytes: int | None
    rungs: tuple[Rung, ...]
    """Every rung that was weighed, best first."""

    @property
    def rung(self) -> str:
        return self.chosen.name

    @property
    def tile(self) -> int | None:
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
    """Rungs as text, one line each, the chosen one marked."""
    rows = [f"{'':2}{'rung':<28}{'tile':>6}{'device':>12}{'host':>12}{'operations':>14}  fits"]
    for rung in rungs:
        mark = "→ " if rung is chosen else "  "
        tile = "-" if rung.tile is None else str(rung.tile)
        rows.append(
            f"{mark}{rung.name:<28}{tile:>6}{readable(rung.device_bytes):>12}{readable(rung.host_bytes):>12}"
            f"{rung.operations / 1e12:>11.3f} T   {'yes' if rung.fits else 'no'}"
        )
    return "\n".join(rows)


def readable(count: int) -> str:
    """Bytes for people: "1.25 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
