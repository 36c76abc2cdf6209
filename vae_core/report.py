"""What a run did: the way it took, what was predicted and what was measured, mishaps, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .plan import Plan, readable, tiles_text


@dataclass(frozen=True)
class Report:
    """Of one decode or encode. Bytes are peaks."""

    direction: str
    shape: tuple[int, ...]
    """Of the input: latents or pixels, `b c h w`, or `b c t h w`."""
    device: str
    dtype: str
    plan: Plan
    """The last one: what was finally done. Of a clip, that of the chunk that needs most, with the operations of all chunks."""
    measured_device_bytes: int | None
    """On CUDA what torch allocated at most, weights included; None elsewhere."""
    measured_host_bytes: int | None
    """By how much the process's own memory grew, looked at after every tile; None where the system does not tell."""
    retries: int
    events: tuple[str, ...]
    """Sentences on everything that did not go as planned, and on known problems of this build of torch."""
    seconds: float
    seconds_by_pass: dict[str, float]
    """By kind of pass."""

    def line(self) -> str:
        """The report in one line."""
        plan, size = self.plan, "×".join(map(str, self.shape))
        tiles = "" if plan.tile is None else f", tiles of {tiles_text(plan.tile)} cells"
        host = f" and {readable(plan.host_bytes)} of host memory" if plan.host_bytes else ""
        disk = f" and {readable(plan.disk_bytes)} of files" if plan.disk_bytes else ""
        measured = f", {readable(self.measured_device_bytes)} measured" if self.measured_device_bytes else ""
        again = f", {self.retries} {'retry' if self.retries == 1 else 'retries'}" if self.retries else ""
        return (
            f"{self.direction} {size} in {self.dtype} on {self.device}: {plan.rung}{tiles}, {readable(plan.device_bytes)}"
            f"{host}{disk} predicted{measured}, {self.seconds:.1f} s{again}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "direction": self.direction,
            "shape": list(self.shape),
            "device": self.device,
            "dtype": self.dtype,
            "plan": self.plan.to_dict(),
            "measured_device_bytes": self.measured_device_bytes,
            "measured_host_bytes": self.measured_host_bytes,
            "retries": self.retries,
            "events": list(self.events),
            "seconds": round(self.seconds, 3),
            "seconds_by_pass": {kind: round(value, 3) for kind, value in self.seconds_by_pass.items()},
        }


def joined(reports: Sequence[Report], shape: tuple[int, ...]) -> Report:
    """One report on a clip of `shape` from those on its chunks: the rung of the one that costs most, the peaks of all."""
    most = max(reports, key=lambda report: report.plan.chosen.cost)
    chosen = [report.plan.chosen for report in reports]
    totals = {name: sum(getattr(rung, name) for rung in chosen) for name in ("operations", "moved_bytes", "cost")}
    peaks = {name: max(getattr(rung, name) for rung in chosen) for name in ("device_bytes", "host_bytes", "disk_bytes")}
    seconds: Counter[str] = Counter()
    for report in reports:
        seconds.update(report.seconds_by_pass)
    return replace(
        most,
        shape=shape,
        plan=replace(most.plan, chosen=replace(most.plan.chosen, **totals, **peaks)),
        measured_device_bytes=_largest([r.measured_device_bytes for r in reports]),
        measured_host_bytes=_largest([r.measured_host_bytes for r in reports]),
        retries=sum(r.retries for r in reports),
        events=tuple(dict.fromkeys(event for r in reports for event in r.events)),
        seconds=sum(r.seconds for r in reports),
        seconds_by_pass=dict(seconds),
    )


def _largest(measured: Sequence[int | None]) -> int | None:
    return max((n for n in measured if n is not None), default=None)
