"""Depth first, tile by tile through the whole network: equal to the whole run, in the bytes and operations that were predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import relative_error, tiny_net
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.meter import Meter
from vae_core.device import Ferry
from vae_core.nets.passes import Whole
from vae_core.nets.trace import trace
from vae_core.plan.footprint import Reading, depth_first
from vae_core.stream import run_depth_first

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
        whole = forward(net, direction)(Whole(x)).data
        for tile in (16, 30, 64):
            made = torch.full_like(whole, torch.nan)
            run_depth_first(traced, x, tile, made, x.device, dtype=x.dtype)
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
        predicted, operations = depth_first(traced, (tile, tile), 4, Reading(away=False, itemsize=4))
        with Meter(net) as meter, FlopCounterMode(display=False) as counter:
            meter.see((x, result))
            run_depth_first(traced, x, tile, result, x.device, dtype=x.dtype)
        given = 4 * (x.numel() + result.numel())
        assert 1.0 <= (predicted + given) / meter.peak["cpu"] <= 1.15
        assert operations == counter.get_total_flops() >= traced.operations


def test_only_local_networks() -> None:
    assert trace(tiny_net("taesd").decode_field, (1, 4, 8, 8)).local
    for name in ("sdxl", "taef2"):
        net = tiny_net(name)
        assert not trace(net.decode_field, (1, net.config.latent_channels, 8, 8)).local


def test_the_ferry_is_a_plain_copy_where_there_is_one_memory() -> None:
    ferry, field = Ferry(torch.device("cpu")), torch.zeros(1, 2, 4, 4)
    ferry.store(torch.ones(1, 2, 2, 2), field[..., :2, :2])
    assert field.sum() == 8
