"""What the panel on a node shows: plain values, sent with the node's result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..vae_core import VAE, BudgetError, Plan, Report
from ..vae_core.checkpoint import Checkpoint
from ..vae_core.execution import Direction
from ..vae_core.plan import Rung

KEY = "exact_vae"
"""Of the panel's values in a node's `ui`."""


@dataclass(frozen=True)
class Job:
    """What is decoded or encoded, in pixels: so many pictures, or clips of so many frames."""

    direction: Direction
    width: int
    height: int
    images: int
    frames: int = 1

    @classmethod
    def of(cls, direction: Direction, image: Tensor) -> Job:
        """Of an IMAGE `b h w c`, or `b t h w c` of clips."""
        frames = image.shape[1] if image.ndim == 5 else 1
        return cls(direction, image.shape[-2], image.shape[-3], image.shape[0], frames)

    def values(self) -> dict[str, Any]:
        return asdict(self)


def of_run(vae: VAE, job: Job, report: Report | None, seconds: float, notes: Sequence[str]) -> dict[str, Any]:
    """A run by our core. Overlap-and-blend has no report."""
    common = {
        "kind": "run",
        "by": "exact",
        "title": vae.spec.title,
        **job.values(),
        "notes": [*notes],
        "seconds": seconds,
    }
    if report is None:
        dtype = vae.dtype if job.direction == "decode" else vae.encode_dtype
        return common | {
            "device": str(vae.device),
            "dtype": str(dtype).removeprefix("torch."),
            "rung": "blend",
            "tiles": None,
            "exact": False,
            "device_bytes": None,
            "host_bytes": None,
            "disk_bytes": None,
            "measured_bytes": None,
            "limit_bytes": None,
            "retries": 0,
            "events": [],
        }
    plan = report.plan
    return common | {
        "device": report.device,
        "dtype": report.dtype,
        "rung": plan.rung,
        "tiles": None if plan.tile is None else [*plan.tile],
        "exact": plan.exact,
        "device_bytes": plan.device_bytes,
        "host_bytes": plan.host_bytes,
        "disk_bytes": plan.disk_bytes,
        "measured_bytes": report.measured_device_bytes,
        "limit_bytes": plan.limit_bytes,
        "retries": report.retries,
        "events": [*report.events],
    }


def of_core_run(title: str, job: Job, seconds: float, tiled: bool, notes: Sequence[str]) -> dict[str, Any]:
    """A run by ComfyUI's own code, of a VAE that is none of ours: how it went is not known."""
    return {
        "kind": "run",
        "by": "comfyui",
        "title": title,
        **job.values(),
        "device": None,
        "dtype": None,
        "rung": "tiled by ComfyUI" if tiled else "by ComfyUI",
        "tiles": None,
        "exact": not tiled,
        "device_bytes": None,
        "host_bytes": None,
        "disk_bytes": None,
        "measured_bytes": None,
        "limit_bytes": None,
        "seconds": seconds,
        "retries": 0,
        "events": [],
        "notes": [*notes],
    }


def of_loaded(opened: Checkpoint, vae: VAE) -> dict[str, Any]:
    """What a loaded file was recognised as."""
    return {
        "kind": "loader",
        "title": vae.spec.title,
        "file": opened.path.name,
        "layout": opened.layout,
        "why": [*opened.why],
        "candidates": [*opened.candidates],
        "dtype": str(vae.dtype).removeprefix("torch."),
    }


def of_plan(vae: VAE, job: Job, plan: Plan) -> dict[str, Any]:
    """A plan that was asked for."""
    rungs = [_rung(rung, plan.rungs[0].cost, rung is plan.chosen) for rung in plan.rungs]
    found = {"limit_bytes": plan.limit_bytes, "error": None, "grid_px": grid_px(plan, job), "rungs": rungs}
    return {"kind": "plan", "title": vae.spec.title, **job.values(), "device": str(vae.device), **found}


def of_refusal(vae: VAE, job: Job, refused: BudgetError) -> dict[str, Any]:
    """Nothing fits: what was weighed, and why not."""
    rungs = [_rung(rung, refused.rungs[0].cost, chosen=False) for rung in refused.rungs]
    found = {"limit_bytes": refused.limit_bytes, "error": str(refused), "grid_px": None, "rungs": rungs}
    return {"kind": "plan", "title": vae.spec.title, **job.values(), "device": str(vae.device), **found}


def grid_px(plan: Plan, job: Job) -> tuple[int, int] | None:
    """Width and height of the tiles in which the picture is made or read, in pixels; None for everything at once."""
    if plan.tile is None:
        return None
    if not plan.steps:
        return max(plan.tile), max(plan.tile)
    h, w = plan.steps[-1 if job.direction == "decode" else 0].tile[-2:]
    return w, h


def _rung(rung: Rung, first_cost: int, chosen: bool) -> dict[str, Any]:
    return {
        "name": rung.name,
        "tiles": None if rung.tile is None else [*rung.tile],
        "device_bytes": rung.device_bytes,
        "host_bytes": rung.host_bytes,
        "disk_bytes": rung.disk_bytes,
        "operations": rung.operations,
        "cost": rung.cost / max(first_cost, 1),
        "fits": rung.fits,
        "exact": rung.exact,
        "chosen": chosen,
    }
