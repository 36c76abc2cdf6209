"""Tiles on their way between the device that computes and Fields that live elsewhere.

On CUDA a copy overlaps computing only from and to pinned memory, in one contiguous piece and on a stream of its own. A tile is a
strided part of its Field, so it goes through a pinned buffer of its size; Fields themselves stay in ordinary memory or in a file,
since pinning gigabytes is slow and takes them from everyone else.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nets.layouts import stored


class _Storing(NamedTuple):
    part: Tensor
    staged: Tensor
    event: Any


class Ferry:
    """Copies tiles to and from `device`. One for each run; buffers are kept from tile to tile until `dock`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pinned = device.type == "cuda"
        self.side = torch.cuda.Stream(device) if self.pinned and torch.cuda.is_available() else None
        self._buffers: dict[object, Tensor] = {}
        self._last: dict[object, Any] = {}
        self._storing: dict[object, _Storing] = {}

    def fetch(self, part: Tensor, slot: object) -> Tensor:
        """A contiguous copy on the device of a part of a Field that lives elsewhere; `slot` names the buffer to go through.

        Whatever is launched afterwards waits for it, what was launched before goes on meanwhile.
        """
        if not self.pinned:
            return part.to(self.device)
        if slot in self._last:
            self._last.pop(slot).synchronize()
        staged = self._staged(slot, part)
        staged.copy_(part)
        if self.side is None:
            return torch.empty_like(staged, device=self.device).copy_(staged)
        with torch.cuda.stream(self.side):
            made = torch.empty_like(staged, device=self.device).copy_(staged, non_blocking=True)
            self._last[slot] = self.side.record_event()
        main = torch.cuda.current_stream(self.device)
        main.wait_event(self._last[slot])
        made.record_stream(main)
        return made

    def store(self, data: Tensor, part: Tensor, slot: object = "out") -> None:
        """Copy a tile into a part of its Field; complete after `finish`, where the Field lives elsewhere."""
        if part.device == data.device or not self.pinned:
            part.copy_(data)
            return
        self._complete(slot)
        staged = self._staged(slot, data)
        if self.side is None:
            staged.copy_(data)
            self._storing[slot] = _Storing(part, staged, None)
            return
        done = torch.cuda.current_stream(self.device).record_event()
        self.side.wait_event(done)
        with torch.cuda.stream(self.side):
            staged.copy_(data, non_blocking=True)
            data.record_stream(self.side)
            self._storing[slot] = _Storing(part, staged, self.side.record_event())

    def finish(self) -> None:
        """Complete what `store` began."""
        for slot in [*self._storing]:
            self._complete(slot)

    def _complete(self, slot: object) -> None:
        storing = self._storing.pop(slot, None)
        if storing is not None:
            if storing.event is not None:
                storing.event.synchronize()
            storing.part.copy_(storing.staged)

    def dock(self) -> None:
        """Complete everything and give the buffers back."""
        self.finish()
        for event in self._last.values():
            event.synchronize()
        self._last.clear()
        self._buffers.clear()

    def _staged(self, slot: object, like: Tensor) -> Tensor:
        """A pinned buffer of the shape, layout and dtype of `like`."""
        count, old = prod(like.shape), self._buffers.get(slot)
        if old is None or old.numel() < count or old.dtype != like.dtype:
            self._buffers.pop(slot, None)
            del old
            self._buffers[slot] = torch.empty(count, dtype=like.dtype, pin_memory=True)
        flat = self._buffers[slot][:count]
        if like.stride(1) != 1 or like.is_contiguous():
            return flat.view(like.shape)
        return flat.view(stored(tuple(like.shape))).movedim(-1, 1)
