"""The ladder: which rung is taken under which budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import tiny_net

import vae_core
from vae_core.plan import Budget, Trace, plan, trace

NET = tiny_net("sdxl")
TRACE = trace(NET.decode_field, (1, 4, 128, 96))


def planned(budget: Budget | None, traced: Trace = TRACE, **options: object) -> vae_core.Plan:
    return plan(traced, budget, weight_bytes=1000, element_bytes=4, **options)  # type: ignore[arg-type]


EVERYTHING = planned(None).rungs


def test_without_a_budget_everything_runs_at_once() -> None:
    chosen = planned(None)
    assert chosen.rung == "whole" and chosen.tile is None and chosen.exact


def test_smaller_tiles_need_less_and_cost_no_less() -> None:
    needed = [rung.device_bytes for rung in EVERYTHING]
    assert needed == sorted(needed, reverse=True) and len(needed) > 3
    operations = [rung.operations for rung in EVERYTHING]
    assert operations == sorted(operations)


@given(st.integers(0, 2 * EVERYTHING[0].device_bytes))
def test_the_first_rung_that_fits_is_taken(limit: int) -> None:
    fitting = [rung for rung in EVERYTHING if rung.device_bytes <= limit]
    if not fitting:
        with pytest.raises(vae_core.BudgetError) as refused:
            planned(Budget(limit))
        assert "at least" in str(refused.value) and "the limit is" in str(refused.value)
        assert "streamed" in refused.value.table
        return
    chosen = planned(Budget(limit))
    assert (chosen.rung, chosen.tile) == (fitting[0].name, fitting[0].tile)
    assert chosen.device_bytes <= limit


def test_fields_move_to_the_host_when_the_device_is_too_small() -> None:
    """Where the device has a memory of its own; the smallest rung on the device alone does not fit here."""
    budget = Budget(EVERYTHING[-1].device_bytes // 2, host_bytes=1 << 40)
    chosen = planned(budget)
    assert chosen.rung == "streamed, Fields on the host"
    assert chosen.device_bytes <= budget.device_bytes
    assert chosen.host_bytes >= 2 * 4 * 16 * (8 * 128) * (8 * 96)  # two Fields of the last level
    with pytest.raises(vae_core.BudgetError, match="of host memory"):
        planned(Budget(budget.device_bytes, host_bytes=chosen.host_bytes - 1))


def test_a_batch_that_does_not_fit_at_once_runs_image_by_image() -> None:
    batch = trace(NET.decode_field, (3, *TRACE.shapes[0][1:]))
    at_once, one_by_one, *streamed = planned(None, batch, one=TRACE).rungs
    assert (at_once.images, one_by_one.images) == (3, 1)
    assert one_by_one.device_bytes < at_once.device_bytes
    assert one_by_one.operations == at_once.operations == 3 * TRACE.operations
    chosen = planned(Budget(one_by_one.device_bytes), batch, one=TRACE)
    assert chosen.rung == "whole, image by image"
    assert all(rung.images == 1 for rung in streamed)


def test_a_tile_that_is_asked_for_is_the_only_rung() -> None:
    chosen = planned(None, tile=48)
    assert chosen.rungs == (chosen.chosen,) and chosen.tile == 48


@given(st.integers(1, 300))
def test_tiles_are_aligned_and_never_larger_than_their_field(edge: int) -> None:
    chosen = planned(None, tile=edge)
    for step, p in zip(chosen.steps, TRACE.passes, strict=True):
        for cells, size in zip(step.tile, p.shape[2:], strict=True):
            assert 1 <= cells <= size
            assert cells % p.chain.align == 0 or cells == size


def test_memory_is_taken_over_only_from_fields_that_die() -> None:
    last = TRACE.last_use()
    steps = planned(None, tile=64).steps
    taken = [(i, step.overwrites) for i, step in enumerate(steps) if step.overwrites is not None]
    assert taken, "residual blocks add into their input's memory"
    assert all(last[index] == i for i, index in taken)
    freed = [index for step in steps for index in (*step.frees, step.overwrites) if index is not None]
    assert sorted(freed) == list(range(1, len(TRACE.shapes) - 1)), "every Field but input and result is given back once"


def test_a_plan_is_integers_and_text() -> None:
    chosen = planned(Budget(EVERYTHING[2].device_bytes))
    assert chosen.table().count("\n") == len(chosen.rungs)
    assert "→ streamed" in chosen.table()
    assert not any(isinstance(value, torch.Tensor) for step in chosen.steps for value in vars(step).values())
