"""A long decode that was interrupted, or crashed, goes on when the same graph is queued again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..vae_core import VAE
from ..vae_core.resume import forget
from . import host

MIN_LATENTS = 64
"""Of a clip that is worth it: shorter ones are decoded anew as fast as their chunks are kept."""

KEPT_S = 7 * 24 * 3600
"""How long the finished chunks of a decode that no one has taken up again are kept."""


class Resumable:
    """Where one run keeps the finished chunks of its clips: in ComfyUI's output folder, since the temporary one is emptied when
    ComfyUI starts."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def folder(self, vae: VAE, latents: Tensor) -> Path | None:
        """Where those of a clip are, made or to be made; None for a short one."""
        if latents.shape[2 if latents.ndim == 5 else 0] <= MIN_LATENTS:
            return None
        root = host.unfinished_folder()
        _tidy(root)
        self.folders.append(root / vae.resume_key(latents))
        return self.folders[-1]

    def shortened(self, events: Sequence[str]) -> list[str]:
        """Events of the run, in which a folder is named after the one that holds all of them: its own name is a long number."""
        for folder in self.folders:
            root = folder.parent
            events = [event.replace(str(folder), f"{root.parent.name}/{root.name}") for event in events]
        return [*events]

    def forget(self) -> None:
        """They are not needed any more: what was decoded is in a file of its own."""
        for folder in self.folders:
            forget(folder)
        self.folders.clear()


def _tidy(root: Path) -> None:
    """Forgets what has not been touched for a week."""
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_S:
            forget(folder)
