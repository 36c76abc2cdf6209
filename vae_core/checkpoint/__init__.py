"""Checkpoints: from a file in any usual layout to what it is, its configuration and its tensors; and back to files."""

from __future__ import annotations

from .load import Checkpoint, open_checkpoint, open_state_dict
from .save import comfyui_names, save_diffusers, save_flax, save_ldm, save_taesd_pair
from .strict import assign

__all__ = [
    "Checkpoint",
    "assign",
    "comfyui_names",
    "open_checkpoint",
    "open_state_dict",
    "save_diffusers",
    "save_flax",
    "save_ldm",
    "save_taesd_pair",
]
