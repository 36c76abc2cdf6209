"""Depth first, tile by tile through the whole network: equal to the whole run, in the bytes and operations that were predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from segments import depth_first_steps
from tiny_nets import relative_error, tiny_net

from benchmarks.meter import Meter
from benchmarks.operations import operations_counter
from vae_core.device import Ferry
from vae_core.nets.passes import Whole
from vae_core.nets.segments import segments
from vae_core.nets.trace import trace
from vae_core.plan.depth_first import DepthFirstTiling
from vae_core.plan.footprint import Reading
from vae_core.stream import run_streamed

SIZES = {"decode": ((1, 1), (3, 5), (13, 22), (2, 60)), "encode": ((8, 200), (16, 16), (65, 83), (97, 33))}


def forward(net: Any, direction: str) -> Any:
    return net.decode_field if direction == "decode" else net.encode_field


def an_input(net: Any, direction: str, h: int, w: int, dtype: torch.dtype) -> torch.Tensor:
    channels = net.config.latent_channels if direction == "decode" else 3
    return torch.randn(1, channels, h, w, generator=torch.Generator().manual_seed(h + w), dtype=dtype)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", ["taesd", "taef1"])
@torch.inference_mode()
def test_equals_the_whole_run(name: str, direction: str) -> None:
    net = tiny_net(name, torch.float64)
    for h, w in SIZES[direction]:
        x = an_input(net, direction, h, w, torch.float64)
        traced = trace(forward(net, direction), tuple(x.shape))
        assert [(s.first, s.stop) for s in segments(traced)] == [(0, len(traced.passes))]
        whole = forward(net, direction)(Whole(x)).data
        for tile in (16, 30, 64):
            made = torch.full_like(whole, torch.nan)
            run_streamed(
                forward(net, direction), x, depth_first_steps(traced, tile, 8), x.device, result=made, trace=traced
            )
            assert relative_error(made, whole) <= 1e-12, (h, w, tile)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@torch.inference_mode()
def test_predicted_bytes(direction: str) -> None:
    net = tiny_net("taesd")
    h, w = (25, 21) if direction == "decode" else (200, 168)
    x = an_input(net, direction, h, w, torch.float32)
    traced = trace(forward(net, direction), tuple(x.shape))
    for tile in (16, 64):
        result = torch.empty(traced.shapes[-1])
        here, steps = Reading(away=False, itemsize=4), depth_first_steps(traced, tile, 4)
        planned = DepthFirstTiling(segments(traced)[0], steps[-1].tile)
        with Meter(net) as meter, operations_counter() as counter:
            meter.see((x, result))
            run_streamed(forward(net, direction), x, steps, x.device, result=result, trace=traced)
        given = 4 * (x.numel() + result.numel())
        assert 1.0 <= (planned.need(here, here, 4).device + given) / meter.peak["cpu"] <= 1.15
        assert planned.operations == counter.get_total_flops() >= traced.operations


@pytest.mark.parametrize(
    ("name", "whole", "any_at_all"), [("taesd", True, True), ("taef2", False, True), ("sdxl", False, False)]
)
def test_as_far_as_nothing_is_normalised_over_the_picture(name: str, whole: bool, any_at_all: bool) -> None:
    net = tiny_net(name)
    found = segments(trace(net.decode_field, (1, net.config.latent_channels, 8, 8)))
    assert bool(found) == any_at_all and any(s.is_all for s in found) == whole


def test_the_ferry_is_a_plain_copy_where_there_is_one_memory() -> None:
    ferry, field = Ferry(torch.device("cpu")), torch.zeros(1, 2, 4, 4)
    ferry.store(torch.ones(1, 2, 2, 2), field[..., :2, :2])
    assert field.sum() == 8
