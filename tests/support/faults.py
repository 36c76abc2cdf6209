"""Things that go wrong on purpose: memory that runs out, values that are not finite. They strike real operations of real runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.meter import Meter

OUT_OF_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
)
"""What torch says on a CPU."""


class FailingAllocations(TorchDispatchMode):
    """Operations that return new memory fail where `fails(number)` says so; `number` counts them from 0."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        super().__init__()
        self.fails, self.number, self.failed = fails, 0, 0
        self.seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = False
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                ref = StorageWeakRef(leaf.untyped_storage())
                known = self.seen.get(ref.cdata)
                new |= known is None or known.expired()
                self.seen[ref.cdata] = ref
        if new:
            self.number += 1
            if self.fails(self.number - 1):
                self.failed += 1
                raise RuntimeError(OUT_OF_MEMORY)
        return result


class LittleMemory(Meter):
    """No more than `limit` bytes of memory in use at a time; files do not count."""

    def __init__(self, limit: int, net: torch.nn.Module | None = None) -> None:
        super().__init__(net)
        self.limit, self.failed = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.live()["cpu"] > self.limit:
            self.failed += 1
            raise RuntimeError(OUT_OF_MEMORY)
        return result


class PlantedNaN(TorchDispatchMode):
    """The first element of what the `number`-th convolution, linear map or attention returns becomes NaN, or `value`, once."""

    def __init__(self, number: int, value: float = float("nan")) -> None:
        super().__init__()
        self.left, self.value, self.planted = number, value, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if "conv" in name or "linear" in name or "addmm" in name or "attention" in name:
            if self.left == 0:
                leaf = tree_leaves(result)[0]
                leaf[(0,) * leaf.ndim] = self.value
                self.planted = True
            self.left -= 1
        return result
