"""Which way is taken under which budget, and that a plan's numbers and tiles are what they must be."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import tiny_net

import vae_core
from vae_core.geometry import grid, tile_kinds
from vae_core.models import CLASSES
from vae_core.nets.trace import trace
from vae_core.plan import COSTS, Budget, Case, Plan, Planner
from vae_core.plan.planner import CLEARLY
from vae_core.spec import VARIANTS

NET = tiny_net("sdxl")
TRACE = trace(NET.decode_field, (1, 4, 128, 96))
ROOMY = replace(COSTS["cpu"], fresh_byte=0)
"""A machine on which new memory costs nothing, as on a GPU, so that nothing undercuts the whole run."""
CASE = Case(TRACE, itemsize=4, weight_bytes=1000, costs=ROOMY)
PLANNER = Planner(CASE)
APART = Planner(
    replace(
        CASE,
        trace=trace(copy.deepcopy(NET).to("meta").decode_field, TRACE.shapes[0]),
        costs=COSTS["cuda"],
        apart=True,
        input_home="host",
    )
)
"""The same where the device has a memory of its own, and convolutions are not those of a CPU."""

_TINY_NET = tiny_net("taesd")
TINY = Planner(Case(trace(_TINY_NET.decode_field, (1, 4, 64, 48)), costs=COSTS["cpu"]))
TINY_APART = Planner(replace(TINY.case, costs=COSTS["cuda"], apart=True, input_home="host"))

PLENTY = 1 << 40
WHOLE = PLANNER.plan(None).chosen


def test_without_a_budget_everything_runs_at_once() -> None:
    chosen = PLANNER.plan(None)
    assert chosen.rung == "whole" and chosen.tile is None and chosen.exact
    assert chosen.operations == TRACE.operations


@given(st.integers(1, 2 * WHOLE.device_bytes), st.integers(0, 1 << 30))
def test_the_cheapest_that_fits_is_taken(limit: int, disk: int) -> None:
    try:
        chosen = PLANNER.plan(Budget(limit, None, disk))
    except vae_core.BudgetError as refused:
        assert "needs" in str(refused) and "limit is" in str(refused)
        assert "streamed" in refused.table and "yes" not in refused.table
        return
    assert chosen.device_bytes <= limit and chosen.disk_bytes <= disk
    assert chosen.chosen.cost == min(rung.cost for rung in chosen.rungs if rung.fits)


@settings(max_examples=60)
@given(
    st.integers(10_000, 2 * WHOLE.device_bytes),
    st.floats(1.0, 3.0),
    st.integers(0, 1 << 28),
    st.integers(0, 1 << 28),
    st.sampled_from([PLANNER, APART, TINY, TINY_APART]),
)
def test_more_memory_is_never_slower(device: int, more: float, host: int, disk: int, planner: Planner) -> None:
    apart = planner.case.apart

    def cost(factor: float) -> float:
        memory = [int(n * factor) for n in (device, host, disk)]
        try:
            return planner.plan(Budget(memory[0], memory[1] if apart else None, memory[2])).chosen.cost
        except vae_core.BudgetError:
            return float("inf")

    assert cost(more) <= cost(1.0)


def test_fields_move_away_step_by_step_as_the_device_shrinks() -> None:
    seen = []
    device = APART.plan(None).device_bytes
    while True:
        try:
            chosen = APART.plan(Budget(device, PLENTY))
        except vae_core.BudgetError:
            break
        assert chosen.device_bytes <= device
        seen.append(chosen.rung)
        device = int(device * 0.8)
    assert list(dict.fromkeys(seen)) == ["whole", "streamed", "streamed, Fields on the host"]


def test_files_are_the_last_resort() -> None:
    device = APART.plan(Budget(PLENTY, PLENTY), tile=32).device_bytes // 2
    on_host = APART.plan(Budget(device, PLENTY, PLENTY))
    assert on_host.rung == "streamed, Fields on the host" and on_host.disk_bytes == 0
    in_files = APART.plan(Budget(device, on_host.host_bytes // 4, PLENTY))
    assert in_files.rung == "streamed, Fields in files"
    assert in_files.host_bytes <= on_host.host_bytes // 4 < in_files.disk_bytes + in_files.host_bytes
    with pytest.raises(vae_core.BudgetError, match="of host memory"):
        APART.plan(Budget(device, on_host.host_bytes // 8, 0))


def test_farther_places_are_listed_only_where_they_are_used() -> None:
    assert [rung.name for rung in PLANNER.plan(Budget(PLENTY, None, PLENTY)).rungs] == ["whole", "streamed"]
    tight = PLANNER.plan(Budget(WHOLE.device_bytes // 4, None, PLENTY))
    assert [rung.name for rung in tight.rungs] == ["whole", "streamed", "streamed, Fields in files"]


def test_a_refusal_says_what_is_missing() -> None:
    with pytest.raises(vae_core.BudgetError, match=r"needs .* with tiles of 32 cells, and the limit is .*; raise it"):
        PLANNER.plan(Budget(20_000))
    with pytest.raises(vae_core.BudgetError, match="is free; close programs"):
        PLANNER.plan(Budget(20_000, asked=False))
    with pytest.raises(vae_core.BudgetError, match=r"needs .* on the device .* of host memory \(there is"):
        APART.plan(Budget(20_000, 20_000))


def test_a_batch_that_does_not_fit_at_once_runs_image_by_image() -> None:
    planner = Planner(replace(CASE, images=3))
    at_once, one_by_one, *streamed = planner.plan(None).rungs
    assert (at_once.images, one_by_one.images) == (3, 1)
    assert one_by_one.device_bytes < at_once.device_bytes
    assert one_by_one.operations == at_once.operations == 3 * TRACE.operations
    assert planner.plan(Budget(one_by_one.device_bytes)).rung == "whole, image by image"
    assert all(rung.images == 1 for rung in streamed)


def test_a_tile_that_is_asked_for_is_the_only_one() -> None:
    chosen = PLANNER.plan(None, tile=48)
    assert chosen.tile == (48, 48) and all(rung.tile == (48, 48) for rung in chosen.rungs)


@settings(max_examples=15)
@given(st.integers(1, 300), st.integers(1, 30), st.integers(1, 30), st.integers(50_000, 5_000_000))
def test_tiles_partition_every_field(edge: int, h: int, w: int, limit: int) -> None:
    """Each pass's tiles cover its output once; their kinds count them all; edges are aligned."""
    traced = trace(NET.decode_field, (1, 4, h, w))
    planner, plans = Planner(Case(traced)), []
    plans.append(planner.plan(None, tile=edge))
    with suppress(vae_core.BudgetError):
        plans.append(planner.plan(Budget(limit, None, PLENTY)))
    for chosen in plans:
        for step, p in zip(chosen.steps, traced.passes, strict=True):
            covered = torch.zeros(p.shape[2:], dtype=torch.int8)
            for rows, columns in grid(p.shape[2:], step.tile):
                covered[rows.start : rows.stop, columns.start : columns.stop] += 1
            assert bool((covered == 1).all())
            assert sum(count for _, count in tile_kinds(p.shape[2:], step.tile)) == len([*grid(p.shape[2:], step.tile)])
            for cells, size in zip(step.tile, p.shape[2:], strict=True):
                assert 1 <= cells <= size
                assert cells % p.chain.align == 0 or cells == size


def freed(chosen: Plan) -> list[int]:
    return sorted(i for step in chosen.steps for i in (*step.frees, step.overwrites) if i is not None)


def test_every_field_is_given_back_once_and_taken_over_only_when_it_dies() -> None:
    last = TRACE.last_use()
    chosen = PLANNER.plan(None, tile=64)
    taken = [(i, step.overwrites) for i, step in enumerate(chosen.steps) if step.overwrites is not None]
    assert taken, "residual blocks add into their input's memory"
    assert all(last[index] == i for i, index in taken)
    assert freed(chosen) == list(range(1, len(TRACE.shapes) - 1)), "every Field but input and result"


def test_where_values_may_overflow_inputs_are_kept_and_every_pass_can_be_repeated() -> None:
    chosen = Planner(replace(CASE, itemsize=2, watched=True)).plan(None)
    assert chosen.rung == "streamed"
    assert all(step.overwrites is None for step in chosen.steps)
    assert chosen.steps[-1].statistics
    assert freed(chosen) == list(range(1, len(TRACE.shapes) - 1))


def test_networks_without_normalisation_may_run_depth_first() -> None:
    tiny = tiny_net("taesd")
    planner = Planner(Case(trace(tiny.decode_field, (1, 4, 256, 256)), costs=ROOMY))
    whole = planner.plan(None)
    streamed = planner.plan(None, tile=32)
    assert whole.rung == "whole"
    chosen = planner.plan(Budget(streamed.device_bytes // 2))
    assert chosen.rung == "depth first" and chosen.device_bytes <= streamed.device_bytes // 2
    assert whole.operations < chosen.operations < 2 * whole.operations
    assert "depth first" not in {rung.name for rung in PLANNER.plan(None).rungs}


def test_a_run_that_is_hardly_cheaper_and_takes_more_memory_is_not_taken_where_memory_costs_time() -> None:
    """Tiles of a large picture of the real width cost little beside its convolutions; those of a small one save little."""
    net = CLASSES["AutoencoderKL"](**VARIANTS["sdxl"].config)
    weights = sum(parameter.nbytes for parameter in net.parameters())
    for side, rung in ((32, "whole"), (128, "streamed")):
        traced = trace(net.decode_field, (1, 4, side, side))
        planner = Planner(Case(traced, weight_bytes=weights, costs=COSTS["cpu"]))
        chosen = planner.plan(None)
        assert chosen.rung == rung, chosen.table()
        assert chosen.steps == planner.plan(Budget(PLENTY), briefly=True).steps
        assert chosen.operations <= 1.05 * planner.case.trace.operations
        whole = planner.plan(None, whole=True)
        assert chosen.rung == "whole" or chosen.device_bytes <= CLEARLY * whole.device_bytes


def test_a_plan_is_integers_and_text() -> None:
    chosen = PLANNER.plan(Budget(WHOLE.device_bytes - 1))
    assert chosen.table().count("\n") == len(chosen.rungs)
    assert "→ streamed" in chosen.table()
    assert not any(isinstance(value, torch.Tensor) for step in chosen.steps for value in vars(step).values())


def test_a_brief_plan_is_the_same_plan() -> None:
    for budget in (Budget(PLENTY), Budget(WHOLE.device_bytes), Budget(WHOLE.device_bytes - 1, None, PLENTY)):
        brief, full = PLANNER.plan(budget, briefly=True), PLANNER.plan(budget)
        assert (brief.chosen, brief.steps) == (full.chosen, full.steps)
    assert len(PLANNER.plan(Budget(PLENTY), briefly=True).rungs) == 1 < len(PLANNER.plan(Budget(PLENTY)).rungs)
