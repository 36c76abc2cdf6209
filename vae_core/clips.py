"""Clips to latents and back: how frames are gathered into the chunks that a causal model takes, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from .clip_run import Clip, ClipRun
from .errors import InputError
from .execution import Direction, Half, How, Planners
from .models import ClipModel
from .nets.passes import CausalCache
from .schedule import Home
from .stream import OnProgress

OUTLOOK_CHUNKS = 4
"""The first, two while the causal cache fills up, and the last."""


class ClipCodec:
    """Runs of a causal model; `half` gives one direction of it as it is now."""

    def __init__(self, net: ClipModel, half: Callable[[Direction], Half], planners: Planners):
        self.net, self.half, self.planners = net, half, planners

    def lengths(self, direction: Direction, count: int) -> tuple[int, ...]:
        """Frames, or latents, of each chunk of so many."""
        return tuple(self.net.decode_chunks(count) if direction == "decode" else self.net.encode_chunks(count))

    def made(self, direction: Direction, count: int) -> int:
        """How many frames so many latents become, or latents so many frames."""
        return self.net.frames_of(count) if direction == "decode" else self.net.latents_of(count)

    def clip(self, direction: Direction, shape: Sequence[int], home: Home, dtype: torch.dtype) -> Clip:
        """A clip of `shape`, `b c t h w`, cut into the model's chunks."""
        return Clip(tuple(shape), self.lengths(direction, shape[2]), home, dtype)

    def outlook(self, shape: Sequence[int], home: Home, dtype: torch.dtype) -> tuple[Clip, Iterator[int]]:
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
