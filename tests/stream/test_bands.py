"""Whole runs on a CPU, whose passes begin band by band: the same result, in no more memory than is planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import relative_error, tiny_net

from benchmarks.meter import Meter
from vae_core import VAE
from vae_core.execution import Execution, Half, How, Planners
from vae_core.models import CLASSES
from vae_core.nets import bands, memory
from vae_core.nets.causal_convolution import CausalConv3d
from vae_core.nets.layers import Pointwise, plus
from vae_core.nets.layouts import innermost
from vae_core.nets.memory import Memory, Spares, shared
from vae_core.nets.passes import Whole
from vae_core.nets.trace import trace
from vae_core.plan import Case, Planner
from vae_core.stream import run_whole

EQUAL = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative: statistics are added up in another order."""


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """So small that tiny networks have many, and no Field too small for them; gives the shapes of Fields that were gone over so."""
    gone_over: list[tuple[int, ...]] = []
    band = bands.band

    def watched(shape: tuple[int, ...]) -> tuple[int, ...]:
        gone_over.append(shape)
        return band(shape)

    monkeypatch.setattr(bands, "band", watched)
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 1000)
    monkeypatch.setattr(memory, "AT_HAND_BYTES", 0)
    return gone_over


@pytest.mark.parametrize("dtype", EQUAL)
@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd"])
@torch.inference_mode()
def test_pictures(name: str, dtype: torch.dtype, small_bands: list[Any]) -> None:
    net = tiny_net(name, dtype)
    for run, shape in (
        (net.decode_field, (2, net.config.latent_channels, 11, 7)),
        (net.encode_field, (1, 3, 72, 40)),
    ):
        x = innermost(torch.randn(shape, dtype=dtype))
        steps = Planner(Case(trace(run, shape), images=shape[0])).plan(None, whole=True).steps
        made, plain = run_whole(run, x, steps), run(Whole(x.contiguous())).data
        assert relative_error(made, plain) < EQUAL[dtype]
    assert small_bands


@pytest.mark.parametrize("name", ["sdxl", "flux1"])
@torch.inference_mode()
def test_predicted_bytes(name: str, small_bands: list[Any]) -> None:
    net = tiny_net(name, torch.float32)
    weights = sum(p.numel() * p.element_size() for p in (*net.parameters(), *net.buffers()))
    for batch in (1, 2):
        x = torch.randn(batch, net.config.latent_channels, 25, 21)
        half = Half("decode", net.decode_field, net, x.device, net.dtype, may_overflow=False)
        with Meter(net) as meter:
            meter.see(x)
            _, report = Execution.of(half, How("whole"), Planners(), x).run(x)
        ratio = (report.plan.device_bytes - weights) / meter.peak["cpu"]
        assert 1.0 <= ratio <= 1.15, f"predicted / measured = {ratio:.3f}"
    assert small_bands


@pytest.mark.parametrize("how", [{"mode": "whole"}, {"tile": 16}, {"tile": 64}])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_predicted_bytes_of_a_clip_whose_norms_are_conditioned(
    direction: str, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 20_000)
    sizes = {"block_out_channels": (16, 16, 32, 32), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    vae = VAE.of(CLASSES["AutoencoderKLCogVideoX"](**sizes).eval())
    weights = sum(p.numel() * p.element_size() for p in vae.net.parameters())
    x = torch.randn((1, 4, 3, 12, 10) if direction == "decode" else (1, 3, 9, 96, 80))
    with Meter(vae.net) as meter:
        meter.see(x)
        getattr(vae, direction)(x, **how)
    assert vae.last_report is not None
    ratio = (vae.last_report.plan.device_bytes - weights) / meter.peak["cpu"]
    assert 1.0 <= ratio <= 1.05, f"predicted / measured = {ratio:.3f}"


CLIPS = {
    "AutoencoderKLCogVideoX": ({"block_out_channels": (16, 16, 32, 32), "latent_channels": 4, "norm_num_groups": 8}, 4),
    "AutoencoderKLWan": ({"base_dim": 8, "z_dim": 4, "latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}, 3),
}
"""Small networks, and latent frames that are two chunks."""


@pytest.mark.parametrize("name", CLIPS)
def test_frames_before_a_chunk_are_put_where_norms_have_left_room(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk's are zeros, or copies of its first frame; the second's come from the first chunk. Tiles copy them there."""
    sizes, frames = CLIPS[name]
    vae = VAE.of(CLASSES[name](**sizes).eval())
    z, rooms, in_room = torch.randn(1, 4, frames, 6, 5), [], CausalConv3d.in_room

    def watched(self: CausalConv3d, x: torch.Tensor, room: int, *rest: Any) -> torch.Tensor:
        rooms.append(room)
        return in_room(self, x, room, *rest)

    monkeypatch.setattr(CausalConv3d, "in_room", watched)
    whole = vae.decode(z, mode="whole")
    assert rooms and set(rooms) <= {1, 2}
    del rooms[:]
    assert relative_error(whole, vae.decode(z, tile=24)) <= EQUAL[torch.float32] and not rooms


def test_spare_memory_is_taken_once_and_only_for_as_many_bytes() -> None:
    spares, dead = Spares(), torch.randn(60)
    spares.add(dead)
    assert spares.empty((3, 19), torch.float32).data_ptr() != dead.data_ptr()
    assert spares.empty((5, 6), torch.float64).data_ptr() == dead.data_ptr()
    assert spares.empty((60,), torch.float32).data_ptr() != dead.data_ptr()


def test_memory_that_the_allocator_has_at_hand_is_not_cleared_but_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spares, dead = Spares(), torch.randn(60)
    spares.add(dead)
    cleared = spares.cleared((60,), torch.float32)
    assert cleared is not None and cleared.data_ptr() == dead.data_ptr() and not cleared.any()
    spares.add(dead)
    monkeypatch.setattr(memory, "AT_HAND_BYTES", 60 * 4)
    assert spares.cleared((60,), torch.float32) is None and spares.take((60,), torch.float32) is None


def test_spare_memory_that_is_not_needed_is_let_go() -> None:
    spares, dead = Spares(), [torch.randn(60) for _ in range(4)]
    for tensor in (*dead, torch.randn(7)):
        spares.add(tensor)
    spares.keep_only([240, 28], beside=2 * 240)  # three of the four, and the other one
    there = {spares.empty((60,), torch.float32).data_ptr() for _ in range(4)}
    assert len(there & {tensor.data_ptr() for tensor in dead}) == 3
    spares.add(dead[0])
    spares.keep_only()
    assert spares.empty((60,), torch.float32).data_ptr() != dead[0].data_ptr()


def test_memory_that_is_still_read_is_not_spare() -> None:
    """An operation may return its input: when that Field is let go, what lies in the same memory lives on."""
    same = Pointwise("same", lambda x: x)
    double = Pointwise("double", lambda x: x * 2)
    x = torch.randn(1, 4, 40, 40)

    def forward(field: Any) -> Any:
        first = field.through(double)
        second = first.through(same)
        return second.through(double).through(plus(second))

    with shared(Memory()) as memory:
        given: list[torch.Tensor] = []
        memory.spares.add = given.append  # type: ignore[method-assign]
        steps = Planner(Case(trace(forward, tuple(x.shape)))).plan(None, whole=True).steps
        made = run_whole(forward, x, steps)
    assert torch.equal(made, 6 * x)
    assert len({id(tensor) for tensor in given}) == 2, "the first two Fields together, and the third"
    assert len({tensor.data_ptr() for tensor in given}) == 2
