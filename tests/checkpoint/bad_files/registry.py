"""Where a function that makes a bad file says how the file must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vae_core.errors import CheckpointError

Make = Callable[[Path], Path]
BAD: dict[str, tuple[Make, type[CheckpointError], str]] = {}


def bad(error: type[CheckpointError], words: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        BAD[make.__name__] = (make, error, words)
        return make

    return add
