"""How many bytes a pass needs: the Fields that live while it runs, and the workspace of its largest tile.

The workspace mirrors what stream/run.py allocates; tests compare both with a meter that counts live storages.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ..geometry import Region, tile_kinds, whole
from ..schedule import Step, Steps
from .trace import Trace, TracedPass


class Footprint(NamedTuple):
    """Peak bytes beyond the weights."""

    device: int
    host: int


def workspace(p: TracedPass, regions: Sequence[Region], images: int, copied: bool, element_bytes: int) -> int:
    """Bytes that a pass allocates besides Fields, at most, over the given tiles of `images` images each.

    `copied` tells that the input's window comes from another memory and is a copy, where it is else a view.
    """
    kept = sum(op.kept(element_bytes) for op in p.chain.ops)
    preparing = sum(op.preparing(element_bytes) for op in p.chain.ops)
    tile = max(_tile_elements(p, region, images, copied) for region in regions) * element_bytes
    return max(kept + tile, preparing)


def _tile_elements(p: TracedPass, region: Region, images: int, copied: bool) -> int:
    places = p.chain.places(region, p.stages)
    peak = held = 0
    for i, (op, place) in enumerate(zip(p.chain.ops, places, strict=True)):
        read = (images, p.stages[i][1], *(w.span.size for w in place.windows))
        made = (images, p.stages[i + 1][1], *(span.size for span in place.region))
        if i == 0 and copied:
            held = prod(read)
        new = 0 if op.in_place and held else prod(made)
        copied_parts = sum(prod(made) for _ in op.reads()) if copied else 0
        peak = max(peak, held + new + copied_parts + op.scratch(read, made, place))
        held = new or held
    return max(peak, held)


def streamed(trace: Trace, steps: Steps, element_bytes: int, one_memory: bool) -> Footprint:
    """Peaks of a streamed run. `one_memory`: device and host are the same, so everything counts as the device."""
    on_host: list[bool] = [not one_memory and any(s.on_host for s in steps)]
    size = [prod(trace.shapes[0]) * element_bytes]
    live = {0}
    peak = [size[0] if not on_host[0] else 0, size[0] if on_host[0] else 0]
    for p, step in zip(trace.passes, steps, strict=True):
        away = step.on_host and not one_memory
        if step.overwrites is None:
            size.append(prod(p.shape) * element_bytes)
        else:
            size.append(size[step.overwrites])
            live.discard(step.overwrites)
        on_host.append(away)
        live.add(p.makes)
        fields = [sum(size[i] for i in live if on_host[i] is host) for host in (False, True)]
        peak[0] = max(
            peak[0], fields[0] + _pass_bytes(p, step, any(on_host[i] for i in (p.enters, *p.reads)), element_bytes)
        )
        peak[1] = max(peak[1], fields[1])
        live -= set(step.frees)
    return Footprint(*peak)


def _pass_bytes(p: TracedPass, step: Step, copied: bool, element_bytes: int) -> int:
    if not p.chain.ops:  # a foreign function over the whole Field
        return 2 * prod(p.shape) * element_bytes
    regions = [region for region, _ in tile_kinds(p.shape[2:], step.tile)]
    return workspace(p, regions, 1, copied, element_bytes)


def whole_run(trace: Trace, element_bytes: int) -> Footprint:
    """Peaks of a run over plain tensors: every pass is one tile of all images, and a pass's result is a Field by itself."""
    last = trace.last_use()
    live = {0}
    peak = 0
    for i, p in enumerate(trace.passes):
        held = sum(prod(trace.shapes[f]) for f in live) * element_bytes
        if p.chain.ops:
            inside = workspace(p, [whole(p.shape[2:])], p.shape[0], False, element_bytes)
        else:
            inside = 2 * prod(p.shape) * element_bytes
        peak = max(peak, held + inside)
        live = {f for f in (*live, p.makes) if last[f] > i or f == 0}  # the caller holds the input
    return Footprint(peak, 0)
