"""Checkpoints: from a file in any usual layout to what it is, its configuration and its tensors; and back to files."""

from __future__ import annotations

from .load import Checkpoint, open_checkpoint
from .save import save_diffusers, save_flax, save_ldm, save_taesd_pair
from .strict import assign

__all__ = [
    "Checkpoint",
    "assign",
    "open_checkpoint",
    "save_diffusers",
    "save_flax",
    "save_ldm",
    "save_taesd_pair",
]
