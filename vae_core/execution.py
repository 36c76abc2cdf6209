"""One decode or encode from plan to result: where plan/ and stream/ meet, and where a run that failed is taken up again.

The order of things when something goes wrong: a pass that runs out of memory goes on with smaller tiles, then with Fields farther
away (stream/run.py); a whole or depth-first run that does is planned again without that rung. A pass that gives non-finite values
is repeated in float32 (stream/run.py); where that is too late, the run starts over in float32. Never is a result approximate that
was not asked to be.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .device import (
    MeasuredPeak,
    channels_innermost,
    disk_bytes,
    free_bytes,
    host_bytes,
    known_problems,
    parse_limit,
    ran_out_of,
    release,
    total_bytes,
)
from .errors import BudgetError, InputError, NonFiniteError
from .nets.layouts import innermost
from .nets.memory import Memory, shared
from .nets.passes import Carry, Field, Op
from .nets.trace import Trace, trace
from .nets.weights import weight_bytes
from .plan import COSTS, Budget, Case, Plan, Planner, Tilings
from .report import Report
from .schedule import Held, Home, Steps
from .stream import (
    Homes,
    Journal,
    NonFinite,
    OnProgress,
    along,
    run_streamed,
    run_whole,
    scratch_folder,
    share,
)

Mode = Literal["exact", "whole", "blend"]
Direction = Literal["decode", "encode"]

RESERVE = 0.1
"""Share of the free memory that stays free: for the workspaces of libraries, and for whoever else uses it meanwhile."""

KEPT_PLANNERS = 16

NO_TRACE = Trace()

log = logging.getLogger("vae_core")
log.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class How:
    """How a caller wants a run: the parameters of that name of `VAE.decode`."""

    mode: Mode = "exact"
    tile: int | None = None
    memory_limit: int | str | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"mode {self.mode!r} is not known; expected one of {', '.join(get_args(Mode))}")
        if self.tile is not None and self.tile < 1:
            raise InputError(f"tile {self.tile} must be at least one cell")
        if self.overlap is not None and (self.mode != "blend" or self.overlap < 0):
            raise InputError(f'overlap {self.overlap} must be zero or more pixels, and goes with mode="blend" only')


@dataclass
class Half:
    """One direction of a network: what decodes, or what encodes."""

    direction: Direction
    forward: Callable[[Field], Field]
    net: nn.Module
    """The whole network, for its weights' bytes and its layers' names."""
    device: torch.device
    dtype: torch.dtype
    may_overflow: bool
    """Its activations are known to overflow this dtype."""

    @cached_property
    def weight_bytes(self) -> int:
        """Of the whole network: both halves lie on the device."""
        return weight_bytes(self.net)

    def trace(self, shape: Sequence[int], past: Mapping[Op, int] | None = None, *, keeps: bool = True) -> Trace:
        """Of an input of this shape; of a clip's chunk with the causal cache that it finds, in frames."""
        return trace(self.forward, tuple(shape), past, keeps=keeps)

    def layer(self, ops: Sequence[object]) -> str:
        """The name of the last of a pass's operations that is a layer of the network."""
        names = {id(module): name for name, module in self.net.named_modules()}
        return next((names[id(op)] for op in reversed(ops) if id(op) in names), "attention")


def budget_of(
    half: Half, limit: int | str | None, free: int | None = None, held: Mapping[Home, int] | None = None
) -> Budget:
    """What a run may use: the user's limit, but no more than what is free, less a reserve.

    `free` bytes are those that weights and run have together; default: what is free on the device, and what the weights occupy.
    `held` bytes are there already and belong to the run: a clip's causal cache.
    """
    held = held or {}
    if free is None:
        free = free_bytes(half.device) + half.weight_bytes + held.get("device", 0)
    free = _spared(free)
    asked = None if limit is None else parse_limit(limit, total_bytes(half.device))
    host = None if half.device.type == "cpu" else _spared(host_bytes() + held.get("host", 0))
    disk = _spared(disk_bytes(scratch_folder()) + held.get("disk", 0))
    return Budget(free if asked is None else min(asked, free), host, disk, asked=asked is not None and asked <= free)


def _spared(free: int) -> int:
    """Less the reserve, in round numbers: where a little comes and goes, as it always does, plans stay as they are."""
    left = int(free * (1 - RESERVE))
    return left - left % (1 << max(left.bit_length() - 8, 0))


class Planners:
    """The last few planners, so that the same picture size is not worked out again."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, Case], Planner] = {}

    def of(self, case: Case) -> Planner:
        """The planner of a case; a network that has changed has another trace."""
        geometry = tuple((p.chain.geometry, p.enters, p.others) for p in case.trace.passes)
        traced = (geometry, case.trace.shapes[0], *case.trace.cached.values())
        key = (traced, replace(case, trace=NO_TRACE))
        planner = self._kept.pop(key, None) or Planner(case, self._tilings_of(traced))
        self._kept[key] = planner
        while len(self._kept) > KEPT_PLANNERS:
            del self._kept[next(iter(self._kept))]
        return planner

    def _tilings_of(self, traced: object) -> Tilings | None:
        """Of another case of the same trace: with other homes for its causal caches, say."""
        return next((planner.tilings for (other, _), planner in self._kept.items() if other == traced), None)


class Execution:
    """One decode or encode of one input."""

    def __init__(
        self,
        half: Half,
        how: How,
        planners: Planners,
        shape: Sequence[int],
        home: Home,
        dtype: torch.dtype,
        free: int | None = None,
        *,
        carry: Carry | None = None,
        beside_bytes: int = 0,
        held: Mapping[Home, int] | None = None,
        widened: bool = False,
    ):
        """`carry` is the causal cache of a clip's chunk, which is then the only image; `held` the bytes of it, and of what else the
        clip holds meanwhile, `beside_bytes` on the device. `widened` begins in float32."""
        self.half, self.how, self.planners, self.free = half, how, planners, free
        self.carry, self.beside_bytes, self.held = carry, beside_bytes, held
        self.past = {} if carry is None else {op: frames.shape[2] for op, frames in carry.before.items()}
        self.shape, self.input_dtype = tuple(shape), dtype
        self.home: Home = home
        self.journal = Journal()
        self.watched = half.may_overflow and how.mode != "whole"
        """Every pass is looked at for non-finite values, so that it can be repeated."""
        self.widened = widened
        """Computed in float32, whatever the weights are in."""
        self.failed: list[str] = []
        """Rungs that ran out of memory."""

    @classmethod
    def of(cls, half: Half, how: How, planners: Planners, x: Tensor, **clip: Any) -> Execution:
        """For an input as it lies; `clip` is what the constructor takes for a clip's chunk."""
        home: Home = "device" if x.device == half.device else "host"
        return cls(half, how, planners, x.shape, home, x.dtype, **clip)

    def plan(self, *, briefly: bool = False) -> Plan:
        """How the input is run, as things stand; `briefly` without weighing what is not needed. Raises BudgetError."""
        whole = self.how.mode == "whole" and not self.watched
        try:
            return self._planner().plan(
                self._budget(), tile=self.how.tile, whole=whole, without=self.failed, briefly=briefly
            )
        except BudgetError as refused:
            if not self.failed:
                raise
            raise BudgetError(
                f"memory ran out in every way that should have fitted ({'; '.join(self.failed)}); close programs or models "
                "that use it, or process a smaller picture",
                refused.table,
                refused.rungs,
                refused.limit_bytes,
            ) from None

    def run(self, x: Tensor, progress: OnProgress | None = None) -> tuple[Tensor, Report]:
        """The result, in the network's dtype, where the plan has put it. Raises BudgetError, NonFiniteError."""
        measured, started = MeasuredPeak(self.half.device), time.perf_counter()
        self.journal = Journal(measured.sample, [*known_problems(self.half.device)])
        made, plan = self._made(x, progress)
        device, host = measured.read()
        report = Report(
            direction=self.half.direction,
            shape=self.shape,
            device=str(self.half.device),
            dtype=str(self.half.dtype).removeprefix("torch."),
            plan=plan,
            measured_device_bytes=device,
            measured_host_bytes=host,
            retries=self.journal.retries,
            events=tuple(self.journal.events),
            seconds=time.perf_counter() - started,
            seconds_by_pass=dict(self.journal.seconds),
        )
        for event in report.events:
            log.warning("%s", event)
        log.info("%s", report.line())
        return made, report

    def _made(self, x: Tensor, progress: OnProgress | None) -> tuple[Tensor, Plan]:
        while True:
            plan = self.plan(briefly=True)
            if self.carry is not None:
                self.carry.again(consumes=plan.tile is not None and not self.watched)
            try:
                made = self.carried_out(plan, x, progress)
                # A streamed run looks at every pass itself.
                good = plan.tile is not None or finite(made)
            except NonFinite as error:
                self._widen(error.pass_index, x)
            except Exception as error:
                if ran_out_of(error, self.half.device) is None:
                    raise
                self._give_up(plan)
            else:
                if good:
                    return made, plan
                del made
                self.watched = True
                self.journal.again(f"{plan.rung}: the result is not finite; run again, watching every pass")
            release(self.half.device)

    def carried_out(self, plan: Plan, x: Tensor, progress: OnProgress | None = None) -> Tensor:
        """The run that a plan says, image by image unless all of them go at once."""
        with shared(Memory(self._trace.workspace_bytes)):
            return self._carried_out(plan, x, progress)

    def _carried_out(self, plan: Plan, x: Tensor, progress: OnProgress | None) -> Tensor:
        half, journal, progress = self.half, self.journal, along(progress, plan.rung)
        if plan.uploads:
            x = x.to(half.device, self._dtype())
        if plan.tile is None and plan.images == len(x):
            x = self._laid_out(x)
            # Contiguous, whatever the layout inside, as callers expect and safetensors demands.
            return run_whole(half.forward, x, plan.steps, progress, journal, self.carry).contiguous()
        result = self._result(plan)
        for i, (one, place) in enumerate(zip(x.split(1), result.split(1), strict=True)):
            told = share(progress, i, len(x))
            if plan.tile is None:
                place.copy_(run_whole(half.forward, self._laid_out(one), plan.steps, told, journal))
            else:
                self._streamed(plan, one, place, told)
        return result

    def _laid_out(self, x: Tensor) -> Tensor:
        """The input of a whole run; every pass keeps its layout."""
        half = self.half
        return innermost(x) if channels_innermost(half.device, half.dtype, x.ndim) else x

    def _streamed(self, plan: Plan, x: Tensor, result: Tensor, progress: OnProgress | None) -> None:
        steps = tuple(replace(step, statistics=True) for step in plan.steps) if self.widened else plan.steps
        stored = Held(plan.result_home, result.untyped_storage().nbytes(), result.element_size())

        def replan(first: int, held: Sequence[Held | None], itemsize: int) -> Steps | None:
            return self._planner().rest(self._budget(), steps, first, held, itemsize, stored)

        run_streamed(
            self.half.forward,
            x,
            steps,
            self.half.device,
            progress,
            dtype=self.half.dtype,
            result=result,
            journal=self.journal,
            replan=replan,
            widened=self.widened,
            carry=self.carry,
            trace=self._trace,
        )

    def _result(self, plan: Plan) -> Tensor:
        """Memory for the results of all images."""
        shape = (self.shape[0], *self._trace.shapes[-1][1:])
        return Homes(self.half.device).empty(shape, self.half.dtype, plan.result_home)

    # --- planning -----------------------------------------------------------------------------------------------------

    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.widened and self.half.dtype.itemsize < 4 else self.half.dtype

    @cached_property
    def _trace(self) -> Trace:
        return self.half.trace((1, *self.shape[1:]), self.past, keeps=self.carry is None or self.carry.keeps)

    def _planner(self) -> Planner:
        half, traced = self.half, self._trace
        homes = {} if self.carry is None else self.carry.homes
        return self.planners.of(
            Case(
                traced,
                images=self.shape[0],
                itemsize=self._dtype().itemsize,
                # A widened run casts each pass's weights as it comes to them.
                weight_bytes=half.weight_bytes * (2 if self.widened else 1),
                costs=COSTS["cuda" if half.device.type == "cuda" else "cpu"],
                apart=half.device.type != "cpu",
                input_home=self.home,
                input_itemsize=self.input_dtype.itemsize,
                input_converts=self.input_dtype != self._dtype(),
                watched=self.watched or self.widened,
                cache_homes=tuple(homes.get(op, "device") for op in traced.cached),
                beside_bytes=self.beside_bytes,
            )
        )

    def _budget(self) -> Budget:
        return budget_of(self.half, self.how.memory_limit, self.free, self.held)

    # --- mishaps ------------------------------------------------------------------------------------------------------

    def _give_up(self, plan: Plan) -> None:
        """A rung ran out of memory: take another one, if the caller leaves a choice."""
        if self.how.mode == "whole":
            size = "×".join(map(str, self.shape))
            raise BudgetError(f'memory ran out in a whole run of {size}; mode="exact" needs less') from None
        self.failed.append(plan.rung)
        self.journal.again(f"{plan.rung}: memory ran out; planned again without that")

    def _widen(self, pass_index: int, x: Tensor) -> None:
        """A pass was not finite and could not be repaired alone: start over in float32, if that is not what it was."""
        layer = self.half.layer(self._trace.passes[pass_index].chain.ops)
        if self._dtype().itemsize >= 4:
            raise NonFiniteError(self._blame(layer, x)) from None
        if self.carry is not None and self.carry.consumed:
            raise NonFiniteError(f"{layer}: not finite in {self.half.dtype}; run the clip in float32") from None
        self.widened = True
        self.journal.again(f"{layer}: not finite in {self.half.dtype}; everything is computed again, in float32")

    def _blame(self, layer: str, x: Tensor) -> str:
        """Whose fault non-finite values are, in a sentence."""
        what = "latents" if self.half.direction == "decode" else "pixels"
        if not finite(x):
            return f"the {what} to {self.half.direction} hold NaN or infinite values; look at where they were made"
        bad = [name for name, weight in self.half.net.named_parameters() if not finite(weight)]
        if bad:
            return f"the weight {bad[0]} holds NaN or infinite values; the checkpoint is damaged, get it anew"
        return f"{layer} gives NaN or infinite values in float32 too; these {what} are far from what the network knows"


def finite(x: Tensor) -> bool:
    """Whether every element is. One read, no copy; waits for the device."""
    low, high = torch.aminmax(x)
    return bool((torch.isfinite(low) & torch.isfinite(high)).item())
