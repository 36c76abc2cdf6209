"""The causal cache while a chunk streams through: read and written tile by tile, wherever it lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..device import Ferry
from ..geometry import Region, slices
from ..nets.passes import Carry, Op, Shape, kept_frames
from ..schedule import Home
from .homes import Homes


class StreamedCache:
    """One operation's causal cache during one pass (nets.passes.OpCache)."""

    def __init__(self, op: Op, past: Tensor | None, kept: Tensor | None, length: int, ferry: Ferry, dtype: torch.dtype):
        """`kept` is where the chunk's last frames go, `length` how many frames the chunk has there."""
        self.op, self.past, self.kept, self.ferry, self.dtype = op, past, kept, ferry, dtype
        self.frames = 0 if past is None else past.shape[2]
        self.first = 0 if kept is None else length - kept.shape[2]

    def earlier(self, image: int, region: Region) -> Tensor:
        assert self.past is not None
        part = self.past[image : image + 1][slices(region)]
        arrived = part if part.device == self.ferry.device else self.ferry.fetch(part, ("past", self.op))
        return arrived.to(self.dtype)

    def keep(self, tile: Tensor, image: int, region: Region) -> None:
        t, *sides = region
        start = max(t.start, self.first)
        if self.kept is None or start >= t.stop:
            return
        place = self.kept[image : image + 1, :, start - self.first : t.stop - self.first][slices(tuple(sides))]
        last = tile[:, :, start - t.start :]
        self.ferry.store(last if place.device == last.device else last.contiguous(), place, ("kept", self.op))


class CausalCaches:
    """The causal cache of a network during one streamed chunk."""

    def __init__(self, carry: Carry | None, homes: Homes, ferry: Ferry):
        self.carry, self.homes, self.ferry = carry, homes, ferry
        self.moved: dict[Home, Home] = {}
        """Where what should live at a place goes instead."""

    def move(self, home: Home, to: Home) -> None:
        """Put what lives at one place, and what would go there, to another that is farther away."""
        if self.carry is None:
            return
        self.moved[home] = to
        self.carry.homes.update({op: to for op, at in self.carry.homes.items() if at == home})
        where = self.homes.device if home == "device" else torch.device("cpu")
        for cache in (self.carry.before, self.carry.after):
            for op, data in cache.items():
                if data.device == where:
                    cache[op] = self.homes.empty(tuple(data.shape), data.dtype, to).copy_(data)

    def of_pass(self, ops: Sequence[Op], stages: Sequence[Shape], dtype: torch.dtype) -> Mapping[Op, StreamedCache]:
        """For each operation of a pass that looks back; memory for what is kept of it is there afterwards."""
        carry = self.carry
        if carry is None:
            return {}
        caches = {}
        for op, shape in zip(ops, stages, strict=False):
            if op.reach:
                kept = self._kept(carry, op, shape, dtype) if carry.keeps else None
                caches[op] = StreamedCache(op, carry.before.get(op), kept, shape[2], self.ferry, dtype)
        return caches

    def remember(self, op: Op, x: Tensor) -> None:
        """The last frames of a Field into the causal cache of an operation that begins with the next chunk."""
        if self.carry is not None and self.carry.keeps:
            count = min(op.reach, x.shape[2])
            kept = self._kept(self.carry, op, tuple(x.shape), x.dtype)
            kept[:, :, kept.shape[2] - count :].copy_(x[:, :, -count:])

    def _kept(self, carry: Carry, op: Op, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Room for the last frames that enter an operation; of a short chunk, with those of the chunk before it."""
        b, c, t, *sizes = shape
        past = carry.before.get(op)
        count = kept_frames(op, t, 0 if past is None else past.shape[2])
        kept = carry.after.get(op)
        if kept is None or kept.dtype != dtype:
            kept = carry.after[op] = self.homes.empty((b, c, count, *sizes), dtype, self._home(carry, op))
            if past is not None and t < count:
                kept[:, :, : count - t].copy_(past[:, :, t - count :])
        return kept

    def _home(self, carry: Carry, op: Op) -> Home:
        home = carry.homes.get(op, "device")
        while home in self.moved:
            home = self.moved[home]
        return home
