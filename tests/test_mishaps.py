"""Whatever goes wrong during a run, the result is right or the error is clear, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FailingAllocations, LittleMemory, PlantedNaN
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import relative_error, tiny_net
from tiny_vaes import tiny_vae
from torch import Tensor

import vae_core
from benchmarks.meter import Meter
from vae_core.spec import VARIANTS
from vae_core.stream.homes import SCRATCH_VARIABLE, remove_leftovers

EQUAL = 1e-5
"""Relative, float32: what tiles of another size change."""

ROOT = Path(__file__).resolve().parent.parent


def latents(vae: vae_core.VAE, h: int = 5, w: int = 8) -> Tensor:
    return torch.randn(1, vae.spec.latent_channels, h, w, generator=torch.Generator().manual_seed(0))


def allocations(vae: vae_core.VAE, z: Tensor, **how: Any) -> list[int]:
    """How many allocations an undisturbed run has made after each pass; the last number is that of the whole run."""
    after: dict[int, int] = {}

    with FailingAllocations(lambda number: False) as counter:

        def progress(done: int, total: int, info: vae_core.Progress) -> None:
            after[info.pass_index] = counter.number

        vae.decode(z, progress=progress, **how)
    return [*after.values(), counter.number]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary files in a folder of their own; none is there, or mapped, after the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(folder))
    yield folder
    gc.collect()
    assert [*folder.iterdir()] == []
    assert str(folder) not in Path("/proc/self/maps").read_text()


# --- memory that runs out ---------------------------------------------------------------------------------------------

WAYS: tuple[dict[str, Any], ...] = ({"tile": 30}, {})


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("name", ["sdxl", "taesd"])
def test_memory_that_runs_out_once_anywhere(name: str, how: dict[str, Any]) -> None:
    """In every pass, halfway through its allocations; and at the first and the last of the run."""
    vae = tiny_vae(name)
    z = latents(vae)
    expected = vae.decode(z, **how)
    after = allocations(vae, z, **how)
    for at in sorted({0, after[-1] - 1, *((a + b) // 2 for a, b in pairwise((0, *after)) if b > a)}):
        with FailingAllocations(lambda number, at=at: number == at) as faults:
            made = vae.decode(z, **how)
        assert faults.failed == 1
        assert relative_error(made, expected) <= EQUAL, at
        assert vae.last_report is not None and vae.last_report.retries == 1, at
        assert "ran out" in " ".join(vae.last_report.events)


def test_memory_that_runs_out_while_statistics_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile counts twice: all along a pass whose tiles' statistics are merged after every second one."""
    monkeypatch.setattr("vae_core.stream.moments.GATHERED", 1)
    vae = tiny_vae()
    z = latents(vae)
    expected = vae.decode(z, tile=30)
    start, stop, *_ = allocations(vae, z, tile=30)[-4:]
    for at in range(start, stop, 4):  # a merge makes more than four
        with FailingAllocations(lambda number, at=at: number == at) as faults:
            made = vae.decode(z, tile=30)
        assert faults.failed == 1 and relative_error(made, expected) <= EQUAL, at


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_memory_that_runs_out_for_good_at_every_pass(how: dict[str, Any]) -> None:
    """From the start of every second pass on, each further allocation fails."""
    vae = tiny_vae()
    z = latents(vae)
    for at in (0, *allocations(vae, z, **how)[:-1:2]):
        with Meter(vae.net) as meter:
            meter.see(z)
            before = dict(meter.live())
            with (
                FailingAllocations(lambda number, at=at: number >= at) as faults,
                pytest.raises(vae_core.BudgetError) as refused,
            ):
                vae.decode(z, **how)
            assert faults.failed >= 2, "it tried again"
            assert "ran out" in str(refused.value) and "process a smaller picture" in str(refused.value)
            del refused
            gc.collect()
            assert dict(meter.live()) == before, "everything is given back"


@settings(max_examples=10)
@given(st.sets(st.integers(0, 400), max_size=12), st.sampled_from([30, 64, None]))
def test_memory_that_runs_out_now_and_then(at: set[int], tile: int | None) -> None:
    vae = tiny_vae()
    z = latents(vae)
    expected = vae.decode(z)
    with FailingAllocations(lambda number: number in at):
        try:
            made = vae.decode(z, tile=tile)
        except vae_core.BudgetError as refused:
            assert "ran out" in str(refused)
            return
    assert relative_error(made, expected) <= EQUAL


def test_less_memory_than_was_planned_with() -> None:
    """The plan thinks that there is plenty; in truth there is less and less."""
    vae = tiny_vae()
    z = latents(vae, 16, 20)
    expected = vae.decode(z)
    assert vae.last_report is not None
    limit, fared = vae.last_report.plan.device_bytes, []
    while True:
        with LittleMemory(limit, vae.net) as memory:
            try:
                made = vae.decode(z)
            except vae_core.BudgetError as refused:
                assert "ran out" in str(refused)
                break
        assert relative_error(made, expected) <= EQUAL
        fared.append((memory.failed, memory.peak["disk"] > 0))
        del made
        limit = int(limit * 0.6)
    assert fared[0] == (0, False), "the whole run fits"
    assert any(failed for failed, _ in fared)
    assert fared[-1][1], "in the end Fields are in files"


def test_other_errors_pass_through() -> None:
    vae = tiny_vae()

    class Broken(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "conv" in func.name():
                raise RuntimeError("a cable is loose")
            return func(*args, **(kwargs or {}))

    for how in WAYS:
        with Broken(), pytest.raises(RuntimeError, match="a cable is loose"):
            vae.decode(latents(vae), **how)


# --- values that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", [{"tile": 30}, {}], ids=str)
@pytest.mark.parametrize("name", ["sdxl", "taesd"])
def test_a_nan_that_comes_up_once(name: str, how: dict[str, Any], value: float) -> None:
    """In the result of each convolution, linear map and attention in turn, in half precision: repaired."""
    half = tiny_vae(name, torch.float16)
    z = latents(half, 3, 4)
    expected = half.decode(z, **how)
    number = 0
    while True:
        with PlantedNaN(number, value) as planted:
            made = half.decode(z, **how)
        if not planted.planted:
            break
        assert half.last_report is not None and made.dtype == torch.float16
        if half.last_report.retries == 0:  # it lay in a halo that is cropped
            assert torch.equal(made, expected)
        # The rest of the run is in float32, so that it differs by the rounding of float16.
        assert relative_error(made, expected) <= 5e-3, number
        number += 1
    assert number > 20


def test_activations_that_overflow_float16() -> None:
    """As SDXL's do: finite in float32, infinite in float16, and without effect on the normalised result."""
    net: Any = tiny_net("sdxl")
    with torch.no_grad():
        for block in net.decoder.up_blocks[2].resnets:
            block.conv1.weight.mul_(3e4)
            block.conv1.bias.mul_(3e4)
    exact = vae_core.VAE.of(net, VARIANTS["sdxl"])
    z = latents(exact)
    expected = exact.decode(z)
    half = vae_core.VAE.of(net.half(), VARIANTS["sdxl"])
    made = half.decode(z)
    assert bool(torch.isfinite(made).all()) and relative_error(made, expected) < 0.02
    report = half.last_report
    assert report is not None and report.retries == 1 and report.plan.rung == "streamed"
    assert "not finite in float16; float32 from here on" in report.events[-1]


@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_what_cannot_be_repaired_is_named(dtype: torch.dtype, how: dict[str, Any]) -> None:
    vae: Any = tiny_vae("sdxl", dtype)
    bad = latents(vae)
    bad[0, 1, 2, 3] = float("nan")
    with pytest.raises(vae_core.NonFiniteError, match="the latents to decode hold NaN"):
        vae.decode(bad, **how)
    with torch.no_grad():
        vae.net.decoder.up_blocks[1].resnets[0].conv2.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(
        vae_core.NonFiniteError, match=r"decoder.up_blocks.1.resnets.0.conv2.weight holds NaN or infinite"
    ):
        vae.decode(latents(vae), **how)


def test_a_layer_that_overflows_float32_is_named() -> None:
    vae: Any = tiny_vae()
    with torch.no_grad():
        vae.net.decoder.up_blocks[1].resnets[0].conv2.weight.mul_(3e38)
    with pytest.raises(
        vae_core.NonFiniteError, match=r"decoder.up_blocks.1.resnets.0.conv2 gives NaN or infinite values in"
    ):
        vae.decode(latents(vae))


# --- cancelling, and being killed -------------------------------------------------------------------------------------


class Stop(Exception):
    """What a host raises to cancel."""


@pytest.mark.parametrize("limit", [None, "on the device", "in files"])
def test_cancelling_at_every_tenth_tile(limit: str | None) -> None:
    vae = tiny_vae()
    z = latents(vae, 16, 20)
    vae.decode(z)
    assert vae.last_report is not None
    peak = vae.last_report.plan.device_bytes
    how: dict[str, Any] = {None: {}, "on the device": {"tile": 48}, "in files": {"memory_limit": peak // 3}}[limit]
    tiles: list[int] = []
    vae.decode(z, progress=lambda *_: tiles.append(1), **how)
    assert ("in files" in vae.last_report.plan.rung) is (limit == "in files")
    for last in range(0, len(tiles), 10):
        with Meter(vae.net) as meter:
            meter.see(z)
            left = last

            def stop(done: int, total: int, info: vae_core.Progress) -> None:
                nonlocal left
                if left == 0:
                    raise Stop
                left -= 1

            with pytest.raises(Stop):
                vae.decode(z, progress=stop, **how)
            assert sum(meter.live().values()) == z.nbytes, last


KILLED = """
import os, signal, sys, torch
sys.path[:0] = [{root!r}, {root!r} + "/tests/support"]
import vae_core
from tiny_nets import tiny_net
from vae_core.stream import homes
if {linger}:
    homes._remove = lambda path: False  # as on Windows, where a mapped file keeps its name
vae = vae_core.VAE.of(tiny_net("sdxl"), vae_core.VARIANTS["sdxl"])
done = 0
def progress(*_):
    global done
    done += 1
    if done == 40:
        os.kill(os.getpid(), signal.SIGKILL)
vae.decode(torch.randn(1, 4, 16, 20), memory_limit={limit}, progress=progress)
"""


@pytest.mark.parametrize("linger", [False, True])
def test_the_next_run_removes_what_a_killed_one_left(linger: bool, scratch: Path) -> None:
    vae = tiny_vae()
    z = latents(vae, 16, 20)
    vae.decode(z)
    assert vae.last_report is not None
    limit = vae.last_report.plan.device_bytes // 3
    script = KILLED.format(root=str(ROOT), linger=linger, limit=limit)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert bool([*scratch.iterdir()]) is linger
    vae.decode(z, memory_limit=limit)
    assert "in files" in vae.last_report.plan.rung
    assert [*scratch.iterdir()] == []


def test_files_of_a_living_process_stay(scratch: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        living, dead = scratch / f"exact-vae-{other.pid}-0.field", scratch / "exact-vae-999999999-0.field"
        strange = scratch / "exact-vae-notes.txt"
        for path in (living, dead, strange):
            path.touch()
        assert remove_leftovers(scratch) == [dead]
        other.kill()
    while True:  # until the system has forgotten it
        try:
            os.kill(other.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    assert remove_leftovers(scratch) == [living]
    strange.unlink()


def test_a_full_disk_is_told() -> None:
    """A file that cannot be had in full is refused at once, not when its pages are written."""
    from vae_core.stream.homes import Scratch

    with pytest.raises(OSError, match=r"No space left|File too large"):
        Scratch().empty(1 << 52, torch.float32)
