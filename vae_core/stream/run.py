"""The streamed run: each pass reads its input tile by tile with the halo that its operations need, and writes the output Field.

A tile is written last, when nothing can fail any more. So a pass that runs out of memory goes on with the tiles that are left,
smaller ones, and nothing is computed twice, even where the output takes over the memory of an input.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar, cast

import torch
from torch import Tensor

from ..device import Ferry, channels_innermost, ran_out_of, release
from ..errors import BudgetError
from ..geometry import Region, cells, slices
from ..nets import heads
from ..nets.chain import Chain
from ..nets.layouts import dense
from ..nets.memory import current
from ..nets.passes import Carry, Field, OnTile, Op, Shape, Tile, through
from ..nets.segments import Segment
from ..nets.trace import Trace
from ..schedule import HOMES, Held, Home, Replan, Step, Steps
from .causal import CausalCaches, StreamedCache
from .depth_first import DepthFirst
from .fields import SkippedField, StreamField
from .homes import Homes
from .journal import Journal
from .moments import Moments, Part, moments_of
from .progress import Finished, OnProgress, ProgressMeter
from .tiled_pass import Inputs, TiledPass, TileSource

Made = TypeVar("Made")


class NonFinite(Exception):
    """NaN or infinite values came up in a pass and could not be repaired by repeating it alone."""

    def __init__(self, pass_index: int):
        super().__init__(pass_index)
        self.pass_index = pass_index


class Streamed:
    """One run of one network over one input. Values only: two runs never meet.

    The steps say what each pass does; `dtype` is what the weights are in. The last pass writes into `result`, if given.
    `progress(done, total, info)` is called after every tile, in operations; whatever it raises ends the run. `replan` is asked for
    new steps when the dtype has changed under way; `widened` begins in float32, whatever the weights are in. `trace`, of one image
    through the same network, is needed where steps go depth first.
    """

    def __init__(
        self,
        steps: Steps,
        homes: Homes,
        dtype: torch.dtype,
        *,
        result: Tensor | None = None,
        progress: OnProgress | None = None,
        journal: Journal | None = None,
        replan: Replan | None = None,
        widened: bool = False,
        carry: Carry | None = None,
        trace: Trace | None = None,
    ):
        self.carry, self.trace = carry, trace
        self.steps, self.homes, self.device = steps, homes, homes.device
        self.weights_dtype, self.dtype = dtype, torch.float32 if widened and dtype.itemsize < 4 else dtype
        self.result, self.replan = result, replan
        self.meter = ProgressMeter(steps, progress)
        self.journal = journal or Journal()
        self.ferry = Ferry(homes.device)
        self.caches = CausalCaches(carry, homes, self.ferry)
        self.fields: list[StreamField] = []
        self.nearest: Home = "device"
        """New Fields are put no nearer than this."""

    @property
    def position(self) -> int:
        """The pass under way."""
        return len(self.fields) - 1

    def enter(self, data: Tensor) -> StreamField:
        """The network's input, `b c …`, as the first Field; it is never written."""
        self.fields.append(StreamField(self, 0, data, "device" if data.device == self.device else "host"))
        return self.fields[0]

    def remember(self, x: StreamField, op: Op) -> None:
        """Put the last frames of a Field into the causal cache."""
        if self.carry is not None:
            self.caches.remember(op, x.all)
            self.carry.passed([op])

    def through(self, x: StreamField, ops: Sequence[Op]) -> StreamField:
        """One pass."""
        started, step, chain = time.perf_counter(), self._step(), Chain(tuple(ops))
        stages = chain.stages(x.shape)
        if step.skipped:
            return self._skipped(stages[-1])
        segment = self._segment(step)
        work = TiledPass.begin(x if segment is None else self.fields[segment.enters], chain, stages, step, segment)
        self._insist(work, self._tiles)
        widened = step.statistics and not self._insist(work, TiledPass.finite)
        if widened:
            work = self._in_float32(work)
        out = self._done(work)
        if self.carry is not None:
            passes = [chain] if segment is None else [p.chain for p in segment.passes]
            self.carry.passed([op for one in passes for op in one.ops])
        if widened:
            self._plan_the_rest()
        self.journal.clock(step.name, started)
        return out

    def whole(self, x: StreamField, function: Callable[[Tensor], Tensor]) -> StreamField:
        """A pass in one piece, on the device, in the dtype of the network's own weights."""
        started, step = time.perf_counter(), self._step()
        work = TiledPass.begin(x, Chain(()), [x.shape], replace(step, tile=x.shape[2:]))
        self._insist(work, lambda work: self._piece(work, function))
        if step.statistics and not self._insist(work, TiledPass.finite):
            raise NonFinite(self.position)
        self.journal.clock(step.name, started)
        return self._done(work)

    # --- one pass -----------------------------------------------------------------------------------------------------

    def _tiles(self, work: TiledPass) -> None:
        """Compute all tiles that are left."""
        if work.segment is not None:
            return self._tiles_depth_first(work, work.segment)
        out, caches = self._output(work), self.caches.of_pass(work.chain.ops, work.stages, self.dtype)
        source = TileSource(work, self.homes, self.dtype, caches)
        on_tiles = heads.bind(work.chain, source)
        fetches = work.fetches(self.device)
        ahead: Inputs | None = None
        if work.landed is not None:
            self._finish_landed(work, out)
        while work.todo:
            image, region = work.todo[0]
            # What one tile was made in is memory for the next, if that is as large.
            current().spares.keep_only([work.stages[-1][1] * cells(region) * self.dtype.itemsize])
            inputs = ahead or self._inputs(work, image, region)
            source.parts = inputs.parts
            place = out.part(image, region)
            lands = None if self._is_last else work.lands(region, self.dtype)
            data = self._computed(on_tiles, inputs, place, lands).to(out.all.dtype)
            if data is place:
                # From here on it must not be computed again, where it was added to what was there.
                work.landed = work.todo.popleft()
                self._finish_landed(work, out)
                continue
            parts = None if out.moments is None else out.moments.gathered(image, data)
            # What the next tile reads travels while this one is computed.
            ahead = self._inputs(work, *work.todo[1]) if fetches and len(work.todo) > 1 else None
            self._finish(work, out, data, parts)
            if work.chain.reuses and not self._is_last:
                current().spares.add(data)
            del inputs, data
        current().spares.keep_only()
        self.ferry.dock()

    def _tiles_depth_first(self, work: TiledPass, segment: Segment) -> None:
        x, out = work.x, self._output(work)
        caches: dict[Op, StreamedCache] = {}
        for p in segment.passes:
            caches.update(self.caches.of_pass(p.chain.ops, p.stages, self.dtype))
        run = DepthFirst(
            segment,
            lambda region: self._arrived(x.all[slices(region)], x.index),
            caches,
            self.dtype,
            innermost=self.homes.innermost,
        )
        while work.todo:
            image, region = work.todo[0]
            data = run.tile(region[-2:]).to(out.all.dtype)
            self._finish(work, out, data, None if out.moments is None else out.moments.gathered(image, data))
            del data
        self.ferry.dock()

    def _finish(self, work: TiledPass, out: StreamField, data: Tensor, parts: list[Part] | None) -> None:
        """Store a tile that is computed, and its moments."""
        image, region = work.todo[0]
        self.ferry.store(data, out.part(image, region))
        if out.moments is not None and parts is not None:
            out.moments.images[image] = parts
        work.todo.popleft()
        self._told(work, cells(region), Finished(image, region, data) if self._is_last else None)

    def _finish_landed(self, work: TiledPass, out: StreamField) -> None:
        """The same of a tile that is there already; never of the result, which may be laid out in another way."""
        assert work.landed is not None
        image, region = work.landed
        data = out.part(image, region)
        if out.moments is not None:
            out.moments.images[image] = out.moments.gathered(image, data)
        work.landed = None
        self._told(work, cells(region))

    def _inputs(self, work: TiledPass, image: int, region: Region) -> Inputs:
        places = work.chain.places(region, work.stages)
        window = work.x.part(image, tuple(w.span for w in places[0].windows))
        data = self._arrived(window, work.x.index)
        if data is window and not work.chain.strided:
            data = dense(window, self.homes.innermost)
        parts = {}
        for op, place in zip(work.chain.ops, places, strict=True):
            for other in cast("tuple[StreamField, ...]", op.reads()):
                part = other.part(image, place.region)
                arrived = self._arrived(part, other.index)
                if arrived is not part:
                    parts[other.index] = arrived
        return Inputs(places, [Tile(data, image, owned=data is not window)], parts)

    def _arrived(self, part: Tensor, slot: int) -> Tensor:
        """A part of a Field on the device and in the dtype of the pass: a copy, or `part` itself."""
        return (part if part.device == self.device else self.ferry.fetch(part, slot)).to(self.dtype)

    def _computed(
        self, on_tiles: Sequence[tuple[int, OnTile]], inputs: Inputs, out: Tensor, lands: int | None
    ) -> Tensor:
        """A tile; operation `lands` puts it into `out`."""
        tile = inputs.tile.pop()
        for i, on_tile in on_tiles:
            tile = through(tile._replace(out=out if i == lands else None), [(on_tile, inputs.places[i])])
        return tile.data

    def _piece(self, work: TiledPass, function: Callable[[Tensor], Tensor]) -> None:
        out = self._output(work)
        data = function(work.x.all.to(self.device, self.weights_dtype))
        moments = None if out.moments is None else moments_of(data)
        out.all.copy_(data)
        if moments is not None:
            out.moments = moments
        work.todo.clear()
        self._told(work, data.shape[0] * prod(data.shape[2:]))

    @property
    def _is_last(self) -> bool:
        return self.position == len(self.steps) - 1

    def _told(self, work: TiledPass, done: int, finished: Finished | None = None) -> None:
        """A tile of `done` cells is done: measure, and tell the progress."""
        work.tiles_done += 1
        work.cells_done += done
        self.journal.sample()
        total = work.stages[-1][0] * prod(work.stages[-1][2:])
        tiles = work.tiles_done + len(work.todo)
        self.meter.tile(self.position, work.tiles_done, tiles, (work.cells_done, total), finished)

    def _segment(self, step: Step) -> Segment | None:
        """The passes that are carried out together with the one under way."""
        if step.since is None:
            return None
        assert self.trace is not None, "a plan with passes that go depth first needs the trace"
        return Segment(self.trace, step.since, self.position + 1)

    def _skipped(self, shape: Shape) -> SkippedField:
        skipped = SkippedField(self, len(self.fields), shape)
        self.fields.append(skipped)
        return skipped

    def _step(self) -> Step:
        assert self.position < len(self.steps), "the forward has more passes than the plan; was another network traced?"
        return self.steps[self.position]

    def _output(self, work: TiledPass) -> StreamField:
        """The Field that a pass writes: the result, the memory of a Field that dies, or new memory."""
        if work.out is not None:
            return work.out
        shape, step, home = work.stages[-1], work.step, _farther(work.step.home, self.nearest)
        dying = None if step.overwrites is None else self.fields[step.overwrites]
        if self.result is not None and self._is_last:
            data = self.result
        elif dying is not None and dying.all.dtype == self.dtype:
            data, home, work.overwritten = work.taken_over(dying), dying.home, dying
        else:
            data = self.homes.empty(shape, self.dtype, home, step.tokens)
        self.homes.spares.keep_only()
        moments = Moments(shape[0]) if step.statistics else None
        work.out = StreamField(self, len(self.fields), data, home, moments, step.tokens)
        return work.out

    def _done(self, work: TiledPass) -> StreamField:
        out, step = self._output(work), work.step
        self.fields.append(out)
        for index in step.ends:
            dead, self.fields[index].data = self.fields[index].data, None
            if dead is not None and index != step.overwrites and self.fields[index].home != "disk":
                self.homes.recycle(dead)
        return out

    # --- mishaps ------------------------------------------------------------------------------------------------------

    def _insist(self, work: TiledPass, attempt: Callable[[TiledPass], Made]) -> Made:
        """Attempt a pass until it is done, making room whenever memory runs out. Raises BudgetError when no room is left."""
        while True:
            try:
                return attempt(work)
            except Exception as error:
                memory = ran_out_of(error, self.device)
                if memory is None:
                    raise
            # Only here, where the error and with it the attempt's frames are gone, is its memory free.
            self.ferry.dock()
            release(self.device)
            self._make_room(work, memory)

    def _make_room(self, work: TiledPass, memory: Home) -> None:
        """Smaller tiles; then Fields farther away; then the end."""
        where = "the device's memory" if memory == "device" else "host memory" if memory == "host" else "the disk"
        said = f"pass {self.position + 1} ({work.step.name}): {where} ran out"
        if memory != "disk" and work.out is not None and work.halve():
            self.journal.again(f"{said}; went on with tiles of {max(work.tile)} cells")
            return
        if memory != "disk" and (to := self._move_out(work, memory)) is not None:
            self.journal.again(f"{said}; moved Fields to {'host memory' if to == 'host' else 'the disk'}")
            return
        raise BudgetError(
            f"{said}, with tiles of {max(work.tile)} cells and no Field left to move; close other programs or models that "
            "use it, or process a smaller picture"
        )

    def _move_out(self, work: TiledPass, home: Home) -> Home | None:
        """Move every Field that lives at `home` farther away, and put new ones there as well; None where there is no such place."""
        to = self.homes.beyond(home)
        while to is not None and _farther(to, self.nearest) == to != self.nearest:
            try:
                self._move_all(work, home, to)
                self.nearest = to
                return to
            except Exception as error:
                if ran_out_of(error, self.device) is None:
                    raise
            to = self.homes.beyond(to)
        return None

    def _move_all(self, work: TiledPass, home: Home, to: Home) -> None:
        for one in (*self.fields[1:], *((work.out,) if work.out is not None else ())):
            if one.data is None or one.home != home or one.data is self.result:
                continue
            if one is work.out and work.overwritten is not None:
                one.data = work.taken_over(work.overwritten)
            else:
                one.data = self.homes.empty(one.shape, one.data.dtype, to, one.tokens).copy_(one.data)
            one.home = to
        self.caches.move(home, to)

    def _in_float32(self, work: TiledPass) -> TiledPass:
        """Repeat a pass whose output is not finite, and go on, in float32. Raises NonFinite where that cannot help."""
        if self.dtype.itemsize > 2 or work.overwritten is not None:
            raise NonFinite(self.position)
        narrow = str(self.dtype).removeprefix("torch.")
        self.journal.again(f"pass {self.position + 1} ({work.step.name}): not finite in {narrow}; float32 from here on")
        self.dtype = torch.float32
        again = TiledPass.begin(work.x, work.chain, work.stages, work.step, work.segment)
        work.out = None
        self._insist(again, self._tiles)
        if not self._insist(again, TiledPass.finite):
            raise NonFinite(self.position)
        return again

    def _plan_the_rest(self) -> None:
        """Fields are larger from now on than the plan thought."""
        held = [
            None if f.data is None else Held(f.home, f.data.untyped_storage().nbytes(), f.data.element_size())
            for f in self.fields
        ]
        steps = None if self.replan is None else self.replan(self.position, held, self.dtype.itemsize)
        if steps is not None:
            self.steps = self.meter.steps = steps


def _farther(a: Home, b: Home) -> Home:
    return a if HOMES.index(a) > HOMES.index(b) else b


def run_streamed(
    forward: Callable[[Field], Field],
    x: Tensor,
    steps: Steps,
    device: torch.device,
    progress: OnProgress | None = None,
    *,
    dtype: torch.dtype | None = None,
    result: Tensor | None = None,
    journal: Journal | None = None,
    replan: Replan | None = None,
    widened: bool = False,
    carry: Carry | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """`forward` over tiles, as the steps say: the result where the last step puts it, or in `result`.

    `x` may be elsewhere and in another dtype than the weights' `dtype` (by default that of `x`). Raises BudgetError when memory
    runs out for good, NonFinite for values that cannot be repaired.
    """
    run = Streamed(
        steps,
        Homes(device, channels_innermost(device, dtype or x.dtype, x.ndim)),
        dtype or x.dtype,
        result=result,
        progress=progress,
        journal=journal,
        replan=replan,
        widened=widened,
        carry=carry,
        trace=trace,
    )
    try:
        return cast(StreamField, forward(run.enter(x))).all
    finally:
        run.homes.spares.keep_only()
        run.fields.clear()  # they refer to the run, and would keep their tensors until the garbage collector comes by
