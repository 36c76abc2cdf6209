"""VAE Plan: how a decode or encode would go, without doing it."""

from __future__ import annotations

from typing import Any

from ..vae_core import BudgetError
from ..vae_core.execution import Direction, How
from . import summary
from .hosted import Adopted
from .images import CATEGORY
from .inputs import MEMORY_LIMIT, VAE_INPUT, checked_limit, limit_of
from .running import connected
from .summary import Job

SIZE: tuple[str, dict[str, Any]] = ("INT", {"default": 1024, "min": 16, "max": 65536, "step": 8})


class ExactVAEPlan:
    """The rungs of the ladder for one size, and which of them would be taken."""

    DESCRIPTION = (
        "Shows how a picture or clip of this size would be decoded or encoded with the connected VAE: every way that was weighed, "
        "its peak memory and its operations, and which one would be taken. Nothing is run."
    )
    SEARCH_ALIASES = ["vae memory", "vram estimate", "tile size"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("plan",)
    OUTPUT_TOOLTIPS = ("The plan as a table.",)
    OUTPUT_NODE = True
    FUNCTION = "plan"

    def __init__(self) -> None:
        self.adopted = Adopted()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": VAE_INPUT,
                "width": (SIZE[0], SIZE[1] | {"tooltip": "Of the picture, in pixels."}),
                "height": (SIZE[0], SIZE[1] | {"tooltip": "Of the picture, in pixels."}),
            },
            "optional": {
                "direction": (["decode", "encode"], {"default": "decode", "tooltip": "What would be run."}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "Number of pictures."}),
                "memory_limit": MEMORY_LIMIT,
                "tile_size": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 64,
                        "tooltip": "Plan with tiles of this edge, as the tiled nodes have it; 0: with what fits best.",
                    },
                ),
                "frames": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 65536,
                        "tooltip": "Number of frames of the clip, for a video VAE; of no effect on others.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, memory_limit: Any = "auto") -> bool | str:
        return checked_limit(memory_limit)

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        # What is free changes from run to run.
        return float("nan")

    def plan(
        self,
        vae: Any,
        width: int,
        height: int,
        direction: Direction = "decode",
        batch_size: int = 1,
        memory_limit: str = "auto",
        tile_size: int = 0,
        frames: int = 1,
    ) -> dict[str, Any]:
        found = connected(self.adopted, vae)
        if isinstance(found, str):
            raise ValueError(f"no plan can be made for this VAE, which ComfyUI runs itself: {found}")
        hosted, patcher = found
        job = Job(direction, width, height, batch_size, frames if hosted.vae.spec.clip else 1)
        how = How(tile=tile_size or None, memory_limit=limit_of(memory_limit))
        try:
            plan = hosted.plan(direction, width, height, batch_size, how, patcher, job.frames)
        except BudgetError as refused:
            told = summary.of_refusal(hosted.vae, job, refused)
            return {"ui": {summary.KEY: [told]}, "result": (f"{refused}\n\n{refused.table}",)}
        return {"ui": {summary.KEY: [summary.of_plan(hosted.vae, job, plan)]}, "result": (plan.table(),)}
