"""Clips in chunks: through a causal network whole, and streamed over tiles, the causal cache carried from chunk to chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from segments import depth_first_steps
from torch import Tensor

from vae_core.nets.passes import Carry, CausalCache, Field, Op, Whole
from vae_core.nets.trace import trace
from vae_core.plan import Case, Planner
from vae_core.stream import run_streamed

OnChunk = Callable[[Field, bool], Field]
"""(chunk, whether it is the first) → result."""


def whole(network: OnChunk, clip: Tensor, chunks: Sequence[int]) -> Tensor:
    """`b c t h w`, cut into chunks of so many frames, each run at once."""
    made, before = [], None
    for i, part in enumerate(clip.split(list(chunks), dim=2)):
        carry = Carry(before)
        result = network(Whole(part, carry=carry), i == 0)
        assert isinstance(result, Whole)
        made.append(result.data)
        before = carry.after
    return torch.cat(made, dim=2)


def streamed(network: OnChunk, clip: Tensor, chunks: Sequence[int], tile: int, *, depth_first: bool = False) -> Tensor:
    """The same over tiles of that edge, in time as well; the trace foretells the causal cache.

    With `depth_first`, what can go depth first does.
    """
    made: list[Tensor] = []
    before: CausalCache = {}
    past: Mapping[Op, int] = {}
    for i, part in enumerate(clip.split(list(chunks), dim=2)):

        def forward(x: Field, first: bool = i == 0) -> Field:
            return network(x, first)

        traced = trace(forward, tuple(part.shape), past)
        if depth_first:
            steps = depth_first_steps(traced, tile, clip.element_size())
        else:
            steps = Planner(Case(traced, itemsize=clip.element_size())).plan(None, tile=tile).steps
        carry = Carry(before)
        made.append(run_streamed(forward, part.contiguous(), steps, clip.device, carry=carry, trace=traced))
        before = carry.after
        assert {op: tuple(kept.shape) for op, kept in before.items()} == {
            op: cached.kept for op, cached in traced.cached.items()
        }
        past = {op: cached.kept[2] for op, cached in traced.cached.items()}
    return torch.cat(made, dim=2)
