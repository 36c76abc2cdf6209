"""Progress of a run is told from its start to its end, and neither the end nor a cancelled run leaves memory behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tiny_vaes import DIRECTIONS, HOWS, an_input, run, some_latents, tiny_vae

import vae_core
from benchmarks.meter import Meter


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@DIRECTIONS
def test_progress(how: dict[str, Any], batch: int, direction: str, x: tuple[int, ...]) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, info: vae_core.Progress) -> None:
        assert 0 <= info.pass_index < info.passes and 1 <= info.tile_index <= info.tiles and info.name
        told.append((done, total))

    vae = tiny_vae()
    run(vae, direction, an_input((batch, *x[1:])), progress=progress, **how)
    done, total = [d for d, _ in told], {t for _, t in told}
    assert len(total) == 1 and len(told) > 3
    assert done == sorted(done) and done[0] >= 0 and done[-1] == total.pop()


def test_progress_of_a_foreign_processor() -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    vae: Any = tiny_vae()
    vae.net.set_attn_processor(AttnProcessor2_0())
    for how in HOWS:
        told: list[tuple[int, int]] = []
        vae.decode(some_latents(vae, 9, 14), progress=lambda d, t, _, told=told: told.append((d, t)), **how)
        assert told[-1][0] == told[-1][1] and told == sorted(told)


class Stop(Exception):
    """What a host raises to cancel."""


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_cancelling_leaves_no_memory(how: dict[str, Any]) -> None:
    vae: Any = tiny_vae()
    z = some_latents(vae, 12, 12, batch=2)
    calls = 0

    def progress(done: int, total: int, info: vae_core.Progress) -> None:
        nonlocal calls
        calls += 1
        if done > total // 2:
            raise Stop

    with Meter(vae.net) as meter:
        kept = z.clone()
        before = dict(meter.live())
        with pytest.raises(Stop):
            vae.decode(kept, progress=progress, **how)
        gc.collect()
        assert meter.peak["cpu"] > 10 * before["cpu"]
        assert dict(meter.live()) == before
    assert calls > 1
    assert torch.equal(kept, z)
    assert vae.decode(z, **how).isfinite().all(), "the next run is not disturbed"


def test_nothing_is_left_after_a_run() -> None:
    vae: Any = tiny_vae()
    z = some_latents(vae, 12, 12)
    for how in HOWS:
        with Meter(vae.net) as meter:
            vae.decode(z, **how)
            assert sum(meter.live().values()) <= z.nbytes, how  # the input itself, seen through its views
