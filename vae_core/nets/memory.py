"""Memory that the operations of one run pass on to each other, in place of new memory.

On CPUs the system clears each page of new memory first, which takes as long as many operations do. So a run keeps one workspace
for all tiles of all its passes, and a tensor takes over the memory of another that has just died.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from .layouts import Shape

AT_HAND_BYTES = 1 << 25
"""How much freed memory the allocator of a CPU process keeps, as glibc does at most; what is beyond goes back to the system, which
clears each page before it hands it out again."""


class Spares:
    """The memory of tensors that no one reads any more, for next ones that are as large."""

    def __init__(self) -> None:
        self._kept: list[torch.UntypedStorage] = []

    def add(self, dead: Tensor) -> None:
        """On CPUs only: devices have caches for this."""
        if dead.device.type == "cpu":
            self._kept.append(dead.untyped_storage())

    def keep_only(self, sizes: Sequence[int] = (), beside: int = 0) -> None:
        """Let go of all but what tensors of so many bytes each need, and `beside` bytes of more such tensors.

        What is kept beside is held while all else is allocated.
        """
        kept = [storage for storage in map(self._take, sizes) if storage is not None]
        for storage in self._kept:
            if storage.nbytes() in sizes and storage.nbytes() <= beside:
                beside -= storage.nbytes()
                kept.append(storage)
        self._kept = kept

    def empty(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        """An unwritten contiguous tensor on the CPU, in spare memory if there is any of that size."""
        spare = self.take(shape, dtype)
        return torch.empty(shape, dtype=dtype) if spare is None else spare

    def take(self, shape: Shape, dtype: torch.dtype) -> Tensor | None:
        """The same; None where there is no such memory."""
        storage = self._take(prod(shape) * dtype.itemsize)
        if storage is None:
            return None
        return cast(Any, torch.empty(0, dtype=dtype)).set_(storage, 0, shape)

    def cleared(self, shape: Shape, dtype: torch.dtype) -> Tensor | None:
        """The same, with zeros to add to: clearing it costs less than pages of new memory do.

        What the allocator has at hand costs neither: it gets back so small a piece, which it can hand out next.
        """
        spare = self.take(shape, dtype)
        return None if spare is None or spare.nbytes <= AT_HAND_BYTES else spare.zero_()

    def _take(self, size: int) -> torch.UntypedStorage | None:
        found = next((i for i, storage in enumerate(self._kept) if storage.nbytes() == size), None)
        return None if found is None else self._kept.pop(found)


class Memory:
    """What one run's operations share."""

    def __init__(self, workspace_bytes: int = 0):
        self.spares = Spares()
        self._workspace = torch.empty(workspace_bytes // 4)

    def workspace(self, elements: int) -> Tensor:
        """Unwritten float32, for one operation on one tile; what the run did not foresee is new."""
        return self._workspace[:elements] if elements <= len(self._workspace) else torch.empty(elements)


_current: ContextVar[Memory] = ContextVar("memory")


def current() -> Memory:
    """The memory of the run under way; outside of one, nothing is shared."""
    return _current.get(None) or Memory()


@contextmanager
def shared(memory: Memory) -> Iterator[Memory]:
    """Have the operations of a run share `memory`."""
    token = _current.set(memory)
    try:
        yield memory
    finally:
        _current.reset(token)
