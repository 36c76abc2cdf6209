"""Networks whose convolutions are filtered (nets/winograd.py): equal to plain ones, in the memory and operations that are planned.

The tiny networks are made to filter, by a lower threshold, and to do so in several parts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clips import streamed
from clips import whole as whole_clip
from test_causal import CHUNKS, latents, network
from tiny_nets import relative_error, tiny_net

from benchmarks.meter import Meter
from benchmarks.operations import operations_counter
from vae_core.execution import Execution, Half, How, Planners
from vae_core.nets import bands, memory, winograd
from vae_core.nets.attention import Attention
from vae_core.nets.passes import Whole

EQUAL = 1e-5
"""Relative, float32: rounding carried through some 30 norms (as in test_exactness.py)."""

TOPOLOGIES = ("sdxl", "flux1", "flux2", "x4-upscaler", "taesd", "taef2")

DECODE_SIZES = ((1, 1), (3, 5), (9, 16))
ENCODE_SIZES = ((8, 40), (65, 83), (97, 33))
TILES = (None, 16, 30)


@pytest.fixture(autouse=True)
def filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "DEPTH", 8)
    monkeypatch.setattr(winograd, "PART_ELEMENTS", 1)
    monkeypatch.setattr(winograd, "PART_PAIRS", 96)
    monkeypatch.setattr(winograd, "PART_WIDTH", 12)


def half_of(net: Any, direction: str) -> Half:
    forward = net.decode_field if direction == "decode" else net.encode_field
    return Half(direction, forward, net, torch.device("cpu"), net.dtype, may_overflow=False)  # type: ignore[arg-type]


def inputs(net: Any, direction: str, batch: int = 1) -> list[torch.Tensor]:
    sizes = DECODE_SIZES if direction == "decode" else ENCODE_SIZES
    channels = net.config.latent_channels if direction == "decode" else 3
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, channels, h, w, generator=generator).to(net.dtype) for h, w in sizes]


def run(half: Half, x: torch.Tensor, tile: int | None) -> tuple[torch.Tensor, Any]:
    return Execution.of(half, How("whole" if tile is None else "exact", tile), Planners(), x).run(x)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", TOPOLOGIES)
@torch.inference_mode()
def test_whole_and_streamed_equal_plain_convolutions(name: str, direction: str) -> None:
    net = tiny_net(name)
    half = half_of(net, direction)
    assert any(op.workspace for p in half.trace((1, *inputs(net, direction)[0].shape[1:])).passes for op in p.chain.ops)
    for x in (*inputs(net, direction), *inputs(net, direction, batch=2)[:2]):
        plain = half.forward(Whole(x)).data  # type: ignore[attr-defined]
        for tile in TILES:
            made, _ = run(half, x, tile)
            assert made.shape == plain.shape
            error = relative_error(made, plain)
            assert error <= EQUAL, f"{tuple(x.shape)} with tiles of {tile}: {error:.1e}"


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("depth_first", [False, True])
@pytest.mark.parametrize(("h", "w", "tile"), [(6, 5, 20), (1, 9, 15)])
@torch.inference_mode()
def test_clips_equal_plain_convolutions(name: str, h: int, w: int, tile: int, depth_first: bool) -> None:
    decode, z = network(name, torch.float32).decode_chunk, latents(h, w, torch.float32)
    for chunks in CHUNKS[name]:
        expected = whole_clip(decode, z, chunks)
        assert relative_error(streamed(decode, z, chunks, tile, depth_first=depth_first), expected) < EQUAL


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("sdxl", torch.float32), ("flux2", torch.float32), ("sdxl", torch.bfloat16)]
)
@torch.inference_mode()
def test_predicted_bytes(name: str, dtype: torch.dtype, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 1000)  # less than the Fields, as it is in life
    monkeypatch.setattr(memory, "AT_HAND_BYTES", 0)
    net = tiny_net(name, dtype)
    weights = sum(p.numel() * p.element_size() for p in (*net.parameters(), *net.buffers()))
    for batch, tiles in ((1, TILES), (2, (None, 16))):
        x = inputs(net, direction, batch)[-1]
        for tile in tiles:
            with Meter(net) as meter:
                meter.see(x)
                _, report = run(half_of(net, direction), x, tile)
            ratio = (report.plan.device_bytes - weights) / meter.peak["cpu"]
            assert 1.0 <= ratio <= 1.15, f"tile {tile}, {tuple(x.shape)}: predicted / measured = {ratio:.3f}"


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", ["sdxl", "flux2"])
@torch.inference_mode()
def test_predicted_operations(name: str, direction: str) -> None:
    """Torch does not count the fused attention of the CPU, so attention is left out on both sides.

    Of what torch counts, making kernels, the only plain products of matrices, is not the tiles', and so not the plan's.
    """
    net = tiny_net(name)
    for module in net.modules():
        if isinstance(getattr(module, "attentions", None), torch.nn.ModuleList):
            module.attentions = torch.nn.ModuleList()
    assert not any(isinstance(m, Attention) for m in net.modules())
    for x in inputs(net, direction):
        for tile in TILES:
            with operations_counter() as counter:
                _, report = run(half_of(net, direction), x, tile)
            kernels = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
            assert kernels > 0 and report.plan.operations == counter.get_total_flops() - kernels
