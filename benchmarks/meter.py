"""Counts the bytes of live tensor storages while torch runs: exact, per device, and the same on every machine."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Inside `with Meter(net) as meter:` every storage that an operation returns is counted while it lives, the weights' apart.

    Bytes are told by the storage's device type, those of a memory-mapped file as "disk".
    """

    def __init__(self, net: torch.nn.Module | None = None) -> None:
        super().__init__()
        tensors = () if net is None else (*net.parameters(), *net.buffers())
        self._ignored = {StorageWeakRef(t.untyped_storage()).cdata for t in tensors}
        self._live: dict[int, tuple[StorageWeakRef, int, str]] = {}
        self._seen: dict[str, int] = defaultdict(int)
        """Bytes seen since the dead were last sorted out: no less than what lives."""
        self.peak: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.see(result)
        return result

    def see(self, result: Any) -> None:
        """Count the storages of a result."""
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                ref = StorageWeakRef(storage)
                if ref.cdata in self._ignored or (ref.cdata in self._live and not self._live[ref.cdata][0].expired()):
                    continue
                home = "disk" if leaf.device.type == "cpu" and storage.filename else leaf.device.type
                self._live[ref.cdata] = (ref, storage.nbytes(), home)
                self._seen[home] += storage.nbytes()
        if any(count > self.peak[device] for device, count in self._seen.items()):
            self._seen = self.live()
            for device, count in self._seen.items():
                self.peak[device] = max(self.peak[device], count)

    def live(self) -> dict[str, int]:
        """Bytes per device type that are alive now."""
        count: dict[str, int] = defaultdict(int)
        for key, (ref, size, device) in list(self._live.items()):
            if ref.expired():
                del self._live[key]
            else:
                count[device] += size
        return count
