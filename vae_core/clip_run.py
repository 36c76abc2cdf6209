"""A clip through a causal network: chunk after chunk, each an execution of its own, and the causal cache between them.

Memory does not grow with the clip: a chunk goes in, its result comes out, and only the causal cache stays. Where that lives, on the
device, in host memory or in files, is decided once, for a chunk in the middle of the clip, by what the whole chunk then costs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from .errors import BudgetError
from .execution import Execution, Half, How, Planners
from .nets.passes import Carry, CausalCache, Op
from .nets.trace import Cached, Trace
from .plan import Plan, Rung, whole_bytes
from .report import Report, joined
from .schedule import HOMES, Home
from .stream import OnProgress, Progress

HalfOf = Callable[[bool], Half]
"""(whether the chunk is the first) → the half of the network that runs it."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the causal cache's bytes: how much of it may live away from the device."""


@dataclass(frozen=True)
class Clip:
    """What goes in: `shape` is `b c t h w` in all, cut into chunks of so many frames."""

    shape: tuple[int, ...]
    lengths: tuple[int, ...]
    home: Home
    dtype: torch.dtype

    @property
    def starts(self) -> list[int]:
        """Where each chunk begins, and where the last one ends."""
        return [0, *accumulate(self.lengths)]

    def chunk_shape(self, length: int) -> tuple[int, ...]:
        """Of one clip of the batch."""
        return (1, self.shape[1], length, *self.shape[3:])


def traces(clip: Clip, half_of: HalfOf) -> list[Trace]:
    """The trace of each chunk; most are alike, and then the same one."""
    known: dict[object, Trace] = {}
    past: Mapping[Op, int] = {}
    made = []
    for i, length in enumerate(clip.lengths):
        keeps = i + 1 < len(clip.lengths)
        key = (i == 0, length, keeps, *past.items())
        if key not in known:
            known[key] = half_of(i == 0).trace(clip.chunk_shape(length), past, keeps=keeps)
        made.append(known[key])
        past = {op: cached.kept[2] for op, cached in known[key].cached.items()}
    return made


def hardest(made: Sequence[Trace]) -> int:
    """The chunk that needs most memory when it is run at once, its causal cache included."""
    distinct = {id(trace): trace for trace in made}
    needs = {number: whole_bytes(trace, itemsize=1) for number, trace in distinct.items()}
    return max(range(len(made)), key=lambda i: (needs[id(made[i])], i))


class ClipRun:
    """One clip, or a batch of them, on its way through one half of a network.

    `outlook` is the clip, or one like it where its length is not known beforehand; `caches`, one for each clip of the batch, are
    what the chunks before number `start` have left. `beside_bytes` on the device are held by the caller meanwhile.
    """

    def __init__(
        self,
        half_of: HalfOf,
        outlook: Clip,
        how: How,
        planners: Planners,
        progress: OnProgress | None = None,
        *,
        caches: Sequence[CausalCache] | None = None,
        start: int = 0,
        beside_bytes: int = 0,
        free: int | None = None,
    ):
        self.half_of = functools.cache(half_of)
        self.outlook, self.how, self.planners, self.progress = outlook, how, planners, progress
        self.number, self.beside_bytes, self.free = start, beside_bytes, free
        given = caches or [{} for _ in range(outlook.shape[0])]
        self.caches: list[CausalCache] = []
        self.reports: list[Report] = []
        self.traces = traces(outlook, half_of)
        self.hardest = hardest(self.traces)
        self.widened = any(_wider(data, half_of(False).dtype) for cache in given for data in cache.values())
        self.homes = self._choose_homes()
        self.caches += [{op: self._put(op, data) for op, data in cache.items()} for cache in given]
        self.before = [0, *accumulate(trace.operations for trace in self.traces)]

    # --- plan ---------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """How the chunk that needs most is run, with the operations of all of them."""
        plan, most = self._planned(self.homes, briefly=False), self.traces[self.hardest]
        share = self.before[-1] / max(most.operations, 1) * self.outlook.shape[0]
        return replace(plan, chosen=_scaled(plan.chosen, share), rungs=tuple(_scaled(r, share) for r in plan.rungs))

    def _planned(self, homes: dict[Op, Home], *, briefly: bool) -> Plan:
        """Of the chunk that needs most. Raises BudgetError."""
        number = self.hardest
        shape = self.outlook.chunk_shape(self.outlook.lengths[number])
        carry = Carry(homes=homes, keeps=number + 1 < len(self.traces))
        execution = self._execution(number, shape, self.outlook.home, self.outlook.dtype, carry, 0)
        execution.past = {op: cached.past[2] for op, cached in self.traces[number].cached.items()}
        return execution.plan(briefly=briefly)

    def _choose_homes(self) -> dict[Op, Home]:
        """Where each causal cache lives: the largest away from the device, as many of them as makes the chunk cheapest.

        Raises BudgetError where no choice fits.
        """
        caches = self.traces[self.hardest].cached
        apart = self.half_of(False).device.type != "cpu"
        choices = [_homes(caches, share, "host" if apart else "disk") for share in SHARES]
        choices += [_homes(caches, 1.0, "disk")] if apart else []
        found: list[tuple[int, dict[Op, Home]]] = []
        refused: BudgetError | None = None
        for homes in choices if self.traces[self.hardest].carries else choices[:1]:
            try:
                plan = self._planned(homes, briefly=True)
            except BudgetError as error:
                refused = error
                continue
            if plan.rung == "whole":
                return homes
            found.append((plan.chosen.cost, homes))
        if refused is not None and not found:
            raise refused
        return min(found, key=lambda pair: pair[0])[1]

    def _put(self, op: Op, data: Tensor) -> Tensor:
        """A causal cache that came from elsewhere, where it is to live; files are for those that are made here."""
        return data.to(self.half_of(False).device if self.homes[op] == "device" else "cpu")

    # --- run ----------------------------------------------------------------------------------------------------------

    def through(self, parts: Iterable[tuple[Tensor, bool]]) -> Iterator[Tensor]:
        """The results of chunks `b c t h w` in order; with each comes whether it is the last."""
        for part, last in parts:
            yield self._chunk(part, last)
            self.number += 1

    def report(self, shape: tuple[int, ...]) -> Report | None:
        """On all chunks so far, of a clip of `shape`."""
        return joined(self.reports, shape) if self.reports else None

    @torch.inference_mode()
    def _chunk(self, part: Tensor, last: bool) -> Tensor:
        made: list[Tensor] = []
        home: Home = "device" if part.device == self.half_of(False).device else "host"
        for i, one in enumerate(part.split(1)):
            carry = Carry(self.caches[i], self.homes, keeps=not last)
            self.caches[i] = {}  # what the chunk lets go of is gone
            beside = sum(n.untyped_storage().nbytes() for n in made if n.device == one.device)
            execution = self._execution(self.number, one.shape, home, one.dtype, carry, beside)
            result, report = execution.run(one.contiguous(), self._told(i))
            self.widened |= execution.widened or any(_wider(x, execution.half.dtype) for x in carry.after.values())
            self.caches[i] = carry.after
            self.reports.append(report)
            made.append(result)
        return made[0] if len(made) == 1 else torch.cat(made)

    def _execution(
        self, number: int, shape: Sequence[int], home: Home, dtype: torch.dtype, carry: Carry, beside: int
    ) -> Execution:
        half = self.half_of(number == 0)
        held = dict.fromkeys(HOMES, 0)
        for cache in (carry.before, *self.caches):
            for op, data in cache.items():
                held[self.homes[op]] += data.untyped_storage().nbytes()
        others = sum(
            x.untyped_storage().nbytes()
            for cache in self.caches
            for op, x in cache.items()
            if self.homes[op] == "device"
        )
        return Execution(
            half,
            self.how,
            self.planners,
            shape,
            home,
            dtype,
            self.free,
            carry=carry,
            beside_bytes=self.beside_bytes + beside + others,
            held=held,
            widened=self.widened,
        )

    def _told(self, image: int) -> OnProgress | None:
        """Progress of one chunk, told as that of all clips. Of a clip whose length is not known, of what has come so far."""
        progress, images = self.progress, self.outlook.shape[0]
        if progress is None:
            return None
        start = self._operations(self.number) * images
        total = max(self.before[-1], self._operations(self.number + 1)) * images

        def told(done: int, of: int, info: Progress) -> None:
            if info.finished is not None:
                info = info._replace(finished=info.finished._replace(image=image))
            progress(start + image * of + done, total, info._replace(chunk=self.number))

        return told

    def _operations(self, chunks: int) -> int:
        """Of so many chunks; beyond the outlook, all are as its last but one."""
        known = len(self.traces)
        beyond = max(chunks - known, 0) * self.traces[max(known - 2, 0)].operations
        return self.before[min(chunks, known)] + beyond


def _homes(caches: Mapping[Op, Cached], share: float, away: Home) -> dict[Op, Home]:
    """The largest caches away, until they are a share of all."""
    sizes = {op: prod(cached.past) + prod(cached.kept) for op, cached in caches.items()}
    left = share * sum(sizes.values())
    homes: dict[Op, Home] = dict.fromkeys(sizes, HOMES[0])
    for op, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if left > 0:
            homes[op], left = away, left - size
    return homes


def _scaled(rung: Rung, share: float) -> Rung:
    """A chunk's rung with the operations of so many chunks."""
    return replace(
        rung,
        operations=round(rung.operations * share),
        moved_bytes=round(rung.moved_bytes * share),
        cost=round(rung.cost * share),
    )


def _wider(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype.itemsize > dtype.itemsize
