"""The depth-first run: one tile of the result at a time through the whole network, with a halo as wide as its reach.

For networks that neither normalise over the picture nor attend to all of it. Nothing but input and result is stored whole; what the
halos of neighbouring tiles share is computed for each of them, by the same operations on the same values, so the result is exact.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ..device import ran_out_of, release
from ..errors import BudgetError
from ..geometry import Region, Span, cells, cut_again, grid, slices
from ..nets.passes import Field, OnTile, Op, OpCache, Shape, Tile
from ..nets.trace import Trace, TracedField, TracedPass
from .journal import Journal
from .progress import Finished, OnProgress, Progress
from .run import SMALLEST_TILE

KIND = "depth first"


class _Source:
    """What the passes offer to their operations: patches of Fields, each about the tile under way (nets.passes.Source)."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.patches: dict[int, tuple[Tensor, Region]] = {}

    @property
    def entering_shape(self) -> Shape:
        raise AssertionError("no pass that runs depth first asks for it")

    def statistics(self) -> tuple[Tensor, Tensor]:
        raise AssertionError("a network that normalises cannot run depth first")

    def everything(self, field: Field) -> Tensor:
        raise AssertionError("a network with attention cannot run depth first")

    def part(self, field: Field, image: int, region: Region) -> Tensor:
        assert isinstance(field, TracedField)
        return self.view(field.index, region)

    def cache(self, op: Op) -> OpCache | None:
        return None

    def view(self, index: int, region: Region) -> Tensor:
        data, held = self.patches[index]
        return data[slices(tuple(Span(r.start - h.start, r.stop - h.start) for r, h in zip(region, held, strict=True)))]


def run_depth_first(
    trace: Trace,
    x: Tensor,
    tile: int,
    result: Tensor,
    device: torch.device,
    progress: OnProgress | None = None,
    *,
    dtype: torch.dtype,
    journal: Journal | None = None,
) -> None:
    """The passes of a trace over one image `x`, into `result`; either may live in another memory than the device's.

    `tile` is the edge of a tile of the result. Raises BudgetError when memory runs out for good.
    """
    run = _Run(trace, x, result, device, dtype, journal or Journal())
    todo = deque(grid(result.shape[2:], [min(tile, n) for n in result.shape[2:]]))
    total, done = cells(tuple(Span(0, n) for n in result.shape[2:])), 0
    started = time.perf_counter()
    while todo:
        region = todo[0]
        try:
            run.tile(region)
        except Exception as error:
            if ran_out_of(error, device) is None:
                raise
            tile = tile // 2
        else:
            todo.popleft()
            done += cells(region)
            run.journal.sample()
            if progress is not None:
                finished = Finished(0, region, result[slices(region)])
                progress(
                    trace.operations * done // total, trace.operations, Progress(0, 1, done, total, KIND, finished)
                )
            continue
        run.source.patches.clear()
        release(device)
        if tile < SMALLEST_TILE:
            raise BudgetError(f"memory ran out with tiles of {tile * 2} cells; free some, or process a smaller picture")
        run.journal.again(f"memory ran out; went on with tiles of {tile} cells")
        todo = deque(part for region in todo for part in cut_again(region, (tile,) * len(region)))
    run.journal.clock(KIND, started)


class _Run:
    def __init__(
        self, trace: Trace, x: Tensor, result: Tensor, device: torch.device, dtype: torch.dtype, journal: Journal
    ):
        self.trace, self.x, self.result, self.device, self.dtype = trace, x, result, device, dtype
        self.journal = journal
        self.source = _Source(dtype)
        self.bound = [[op.bind(self.source) for op in p.chain.ops] for p in trace.passes]
        self.last = trace.last_use()

    def tile(self, region: Region) -> None:
        """One tile of the result."""
        needs = self.trace.needs(region)
        patches = self.source.patches
        patches[0] = (self.x[slices(needs[0])].to(self.device).to(self.dtype), needs[0])
        for i, p in enumerate(self.trace.passes):
            patches[p.makes] = (self._patch(p, self.bound[i], needs[p.makes]), needs[p.makes])
            for f in {p.enters, *p.reads}:
                if self.last[f] == i:
                    del patches[f]
        made = self.trace.passes[-1].makes
        self.result[slices(region)].copy_(self.source.view(made, region))
        del patches[made]

    def _patch(self, p: TracedPass, on_tiles: Sequence[OnTile], region: Region) -> Tensor:
        places = p.chain.places(region, p.stages)
        view = self.source.view(p.enters, tuple(w.span for w in places[0].windows))
        tile = Tile(view if p.chain.strided else view.contiguous(), 0, owned=False)
        del view
        for on_tile, place in zip(on_tiles, places, strict=True):
            tile = Tile(on_tile(tile, place), 0, owned=True)
        return tile.data.contiguous()
