"""Clips to latents and back: how frames are gathered into the chunks that a causal model takes, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .clip_run import Clip, ClipRun, traces
from .errors import InputError
from .execution import Direction, Half, How, Planners, budget_of
from .models import ClipModel
from .nets.passes import CausalCache
from .nets.posterior import DiagonalGaussianDistribution
from .nets.trace import Trace
from .plan import Plan
from .report import Report
from .schedule import Home
from .stream import Homes, OnProgress

OUTLOOK_CHUNKS = 4
"""The first, two while the causal cache fills up, and the last."""

ROOM_FOR_CLIPS = 0.25
"""Share of the memory that a clip may take when it is put together; a longer one goes into a file."""

Chunk = tuple[Tensor, Sequence[CausalCache]]
"""A chunk's result, and the causal caches after it, one for each clip of the batch."""


class FramesIn(NamedTuple):
    """A clip to encode as it comes: pieces `c t h w` of any length, how many frames are announced, and how they are made to fit."""

    pieces: Iterable[Tensor]
    count: int | None
    pads: bool
    """Frames that are too few for a chunk are made up for with the last one, and not left out."""
    prepared: Callable[[Tensor], Tensor]
    """Checks and fits a piece, as `1 c t h w`."""


class ClipCodec:
    """Runs of a causal model. `half` gives one direction of it as it is now, and `tell` takes the report on each run."""

    def __init__(
        self,
        net: ClipModel,
        half: Callable[[Direction], Half],
        planners: Planners,
        tell: Callable[[Report | None], None] = lambda report: None,
    ):
        self.net, self.half, self.planners, self.tell = net, half, planners, tell

    # --- chunks -------------------------------------------------------------------------------------------------------

    def clip(self, direction: Direction, shape: Sequence[int], home: Home, dtype: torch.dtype) -> Clip:
        """A clip of `shape`, `b c t h w`, cut into the model's chunks."""
        chunks = self.net.decode_chunks if direction == "decode" else self.net.encode_chunks
        return Clip(tuple(shape), tuple(chunks(shape[2])), home, dtype)

    def endless(self, shape: Sequence[int], home: Home, dtype: torch.dtype) -> tuple[Clip, Iterator[int]]:
        """For frames to encode of which no one knows how many come: a short clip in their stead, and endless lengths of chunks.

        Raises InputError where chunks depend on how many frames there are.
        """
        lengths = self.net.endless_chunks()
        if lengths is None:
            raise InputError(
                f"{self.net.network} must be told how many frames the clip has (count=): its first chunk depends on it"
            )
        few = tuple(islice(self.net.endless_chunks() or (), OUTLOOK_CHUNKS))
        return Clip((*shape[:2], sum(few), *shape[3:]), few, home, dtype), lengths

    def half_of(self, direction: Direction) -> Callable[[bool], Half]:
        run = self.net.decode_chunk if direction == "decode" else self.net.encode_chunk
        return lambda first: replace(self.half(direction), forward=partial(run, first=first))

    def traces(self, direction: Direction, shape: Sequence[int]) -> list[Trace]:
        """Of each chunk of a clip of `shape`."""
        return traces(self.clip(direction, shape, "device", self.half(direction).dtype), self.half_of(direction))

    def run(
        self,
        direction: Direction,
        clip: Clip,
        how: How,
        progress: OnProgress | None = None,
        *,
        caches: Sequence[CausalCache] | None = None,
        start: int = 0,
        beside_bytes: int = 0,
        free: int | None = None,
    ) -> ClipRun:
        return ClipRun(
            self.half_of(direction),
            clip,
            how,
            self.planners,
            progress,
            caches=caches,
            start=start,
            beside_bytes=beside_bytes,
            free=free,
        )

    def plan(self, direction: Direction, shape: Sequence[int], how: How, free: int | None) -> Plan:
        """Of a clip of `shape`. Raises BudgetError."""
        half = self.half(direction)
        home: Home = "device" if half.device.type == "cpu" else "host"
        return self.run(direction, self.clip(direction, shape, home, half.dtype), how, free=free).plan()

    # --- encode and decode --------------------------------------------------------------------------------------------

    def decoded(
        self, latents: Tensor, how: How, progress: OnProgress | None, start: int, caches: list[CausalCache] | None
    ) -> Iterator[Chunk]:
        """Latents `b z t h w` from chunk number `start` on, with the causal caches before it → chunks of pixels."""
        clip = self.clip("decode", latents.shape, self._home("decode", latents), latents.dtype)
        if start < len(clip.lengths):
            run = self.run("decode", clip, how, progress, caches=caches, start=start)
            del caches  # what the run lets go of is gone
            for made in run.through(cut(latents, clip.lengths, start)):
                yield made, run.caches
                del made  # or it would be held while the next one is computed
            self.tell(run.report(clip.shape))

    def encoded(self, frames: FramesIn, how: How, progress: OnProgress | None) -> Iterator[Tensor]:
        """Frames as they come → chunks of latents `1 z t h w`, the posterior's mean. Raises InputError for what does not fit."""
        pieces = iter(frames.pieces)
        first = next(pieces, None)
        if first is None or first.ndim != 4:
            raise InputError(f"frames come as `c t h w`; got {'none' if first is None else tuple(first.shape)}")
        shape, home = frames.prepared(first[None]).shape, self._home("encode", first)
        if frames.count is None:
            (clip, lengths), least = self.endless(shape, home, first.dtype), 1
        else:
            taken = self.net.fitting(frames.count, more=frames.pads)
            clip = self.clip("encode", (*shape[:2], taken, *shape[3:]), home, first.dtype)
            lengths, least = clip.lengths, min(taken, frames.count)
        run = self.run("encode", clip, how, progress)
        reader = Gathering(chain([first], pieces), frames.prepared)
        yield from map(_mean, run.through(reader.chunks(lengths, pads=frames.pads, least=least)))
        left_out = reader.left_out if frames.count is None else frames.count - sum(clip.lengths)
        self.tell(self.noting(run.report(clip.shape), left_out))

    def put_together(
        self, direction: Direction, x: Tensor, shape: tuple[int, ...], how: How, progress: OnProgress | None
    ) -> Tensor:
        """All chunks of a clip, of `shape` together: in host memory, or in a file where they would take much of it."""
        half, clip = self.half(direction), self.clip(direction, x.shape, self._home(direction, x), x.dtype)
        if len(clip.lengths) == 1:
            run = self.run(direction, clip, how, progress)
            (result,) = run.through(cut(x, clip.lengths))
        else:
            result, beside = self._room(half, shape, how)
            run, done = self.run(direction, clip, how, progress, beside_bytes=beside), 0
            for made in run.through(cut(x, clip.lengths)):
                result[:, :, done : done + made.shape[2]].copy_(made)
                done += made.shape[2]
                del made  # or it would be held while the next one is computed
        self.tell(run.report(clip.shape))
        return result

    def _room(self, half: Half, shape: tuple[int, ...], how: How) -> tuple[Tensor, int]:
        """Memory for a clip, and how much of that is the device's."""
        needed, budget = prod(shape) * half.dtype.itemsize, budget_of(half, how.memory_limit)
        there = budget.device_bytes if budget.host_bytes is None else budget.host_bytes
        in_file = needed > there * ROOM_FOR_CLIPS
        room = Homes(torch.device("cpu")).empty(shape, half.dtype, "disk" if in_file else "device")
        return room, 0 if in_file or half.device.type != "cpu" else needed

    def _home(self, direction: Direction, x: Tensor) -> Home:
        return "device" if x.device == self.half(direction).device else "host"

    # --- frame counts -------------------------------------------------------------------------------------------------

    def fitted(self, pixels: Tensor, *, pads: bool) -> Tensor:
        """`b c t h w` with as many frames as the model takes: without the last ones, or with the last one repeated."""
        frames = pixels.shape[2]
        taken = self.net.fitting(frames, more=pads)
        if taken <= frames:
            return pixels[:, :, :taken]
        return torch.cat([pixels, pixels[:, :, -1:].expand(-1, -1, taken - frames, -1, -1)], dim=2)

    def noting(self, report: Report | None, left_out: int) -> Report | None:
        """The report with a sentence on frames that were left out at the end."""
        if report is None or left_out <= 0:
            return report
        few = [1]
        while len(few) < 4:
            few.append(self.net.fitting(few[-1] + 1, more=True))
        said = "the last frame is" if left_out == 1 else f"the last {left_out} frames are"
        said = f"{said} not encoded: the model takes {', '.join(map(str, few))}, … frames; padding repeats the last one instead"
        return replace(report, events=(*report.events, said))


@torch.inference_mode()
def _mean(moments: Tensor) -> Tensor:
    return DiagonalGaussianDistribution(moments).mode().clone()


def cut(clip: Tensor, lengths: Sequence[int], start: int = 0) -> Iterator[tuple[Tensor, bool]]:
    """The chunks of a clip `b c t h w` from number `start` on, each with whether it is the last."""
    parts = clip[:, :, : sum(lengths)].split([*lengths], dim=2)
    for i in range(start, len(parts)):
        yield parts[i], i + 1 == len(parts)


class Gathering:
    """Frames that come one after another, in pieces `c t h w` of any length, gathered into chunks.

    `prepared` is applied to each piece, as `1 c t h w`.
    """

    def __init__(self, frames: Iterable[Tensor], prepared: Callable[[Tensor], Tensor]):
        self.pieces, self.prepared = iter(frames), prepared
        self.rest: Tensor | None = None
        self.count = 0
        """Frames taken so far."""
        self.left_out = 0
        """Frames at the end that were too few for a chunk."""

    def chunks(self, lengths: Iterable[int], *, pads: bool, least: int = 1) -> Iterator[tuple[Tensor, bool]]:
        """Chunks `1 c t h w` of these lengths, each with whether it is the last.

        Where the frames end before the lengths do, the last chunk is filled with the last frame, or with `pads` False left out.
        Raises InputError where fewer than `least` frames came.
        """
        ahead: Tensor | None = None
        for length in lengths:
            chunk = self._take(length, pads=pads)
            if chunk is None:
                break
            if ahead is not None:
                yield ahead, False
            ahead = chunk
        if ahead is None or self.count < least:
            raise InputError(
                f"at least {least} frames were announced, and {self.count} came; give the number that there are"
            )
        yield ahead, True

    def _take(self, length: int, *, pads: bool) -> Tensor | None:
        """The next `length` frames; None where there are not so many."""
        taken, missing = [], length
        while missing and (piece := self._piece()) is not None:
            taken.append(piece[:, :, :missing])
            self.rest = piece[:, :, missing:] if piece.shape[2] > missing else None
            missing -= taken[-1].shape[2]
        self.count += length - missing
        if missing and not (pads and taken):
            self.left_out = length - missing
            return None
        if missing:
            taken.append(taken[-1][:, :, -1:].expand(-1, -1, missing, -1, -1))
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)

    def _piece(self) -> Tensor | None:
        if self.rest is not None:
            return self.rest
        piece = next(self.pieces, None)
        if piece is None:
            return None
        if piece.ndim != 4:
            raise InputError(f"frames come as `c t h w`, not as {tuple(piece.shape)}")
        return self.prepared(piece[None])
