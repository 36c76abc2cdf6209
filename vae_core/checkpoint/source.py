"""A file of tensors seen through its header: names, shapes, dtypes; bytes only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Read = Callable[[str], Tensor]
"""Gives the tensor stored under a file's key, on the CPU, in the stored dtype."""


class Stored(NamedTuple):
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None: a number format that torch has no plain tensors for (the packed 4- and 6-bit floats of safetensors)."""


@dataclass(frozen=True, eq=False)
class Source:
    """One file, whatever its container."""

    path: Path
    container: str
    """For people: "safetensors", "torch pickle", "Flax msgpack"."""
    tensors: Mapping[str, Stored]
    opener: Callable[[], AbstractContextManager[Read]]
    """Opens the file for reading; the tensors stay valid after it is closed."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    """Keys that hold something that is no tensor, with the name of its type."""
    nesting: tuple[str, ...] = ()
    """The keys that were followed to reach the tensors: ("state_dict",)."""
