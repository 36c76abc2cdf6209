"""Streamed over tiles equals the whole run: every variant, odd sizes, several tiles, in the tightest tolerance its dtype allows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_nets import NAMES, relative_error, tiny_net

from vae_core.nets import arithmetic
from vae_core.nets.convolutions import UpsampleConv2d
from vae_core.nets.layouts import innermost
from vae_core.nets.passes import Field, Whole
from vae_core.nets.trace import trace
from vae_core.plan import Case, Planner
from vae_core.spec import TINY, VARIANTS
from vae_core.stream import run_streamed

# float32: the tiles' statistics are merged and convolutions block differently; the rest is rounding carried through some 30 norms.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}

DECODE_SIZES = ((1, 1), (3, 5), (8, 8), (9, 16), (2, 79), (13, 9))
"""Latent (h, w); 8 times as many pixels: single cells, smaller than a tile, odd, narrow."""
ENCODE_SIZES = ((8, 632), (16, 16), (65, 83), (40, 24), (97, 33), (72, 128))
TILES = (16, 30, 56)
"""Cells along the edge; 30 and 56 divide none of the sizes."""


def forward(net: Any, direction: str) -> Any:
    return net.decode_field if direction == "decode" else net.encode_field


def over_tiles(net: Any, direction: str, x: torch.Tensor, tile: int) -> torch.Tensor:
    chosen = Planner(Case(trace(forward(net, direction), tuple(x.shape)))).plan(None, tile=tile)
    return run_streamed(forward(net, direction), x, chosen.steps, x.device)


def inputs(net: Any, direction: str, dtype: torch.dtype, batch: int = 1, seed: int = 1) -> list[torch.Tensor]:
    sizes = DECODE_SIZES if direction == "decode" else ENCODE_SIZES
    channels = net.config.latent_channels if direction == "decode" else 3
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, h, w, generator=generator, dtype=dtype) for h, w in sizes]


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_streamed_equals_whole(name: str, dtype: torch.dtype, direction: str) -> None:
    net = tiny_net(name, dtype)
    for x in inputs(net, direction, dtype):
        whole = forward(net, direction)(Whole(x)).data
        for tile in TILES:
            streamed = over_tiles(net, direction, x, tile)
            assert streamed.shape == whole.shape
            error = relative_error(streamed, whole)
            assert error <= TOLERANCE[dtype], f"{tuple(x.shape)} with tiles of {tile}: {error:.1e}"


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", ["sdxl", "taesd", "taef2"])
@torch.inference_mode()
def test_batches(name: str, direction: str) -> None:
    net = tiny_net(name, torch.float64)
    for x in inputs(net, direction, torch.float64, batch=3)[2:4]:
        assert relative_error(over_tiles(net, direction, x, 30), forward(net, direction)(Whole(x)).data) <= 1e-12


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", ["sdxl", "flux1", "flux2", "x4-upscaler", "taesd", "taef2"])
@torch.inference_mode()
def test_bfloat16_is_no_farther_from_float32_than_the_whole_run(name: str, direction: str) -> None:
    """Over several pictures together: of a single one, rounding takes either run up to a sixth nearer, by chance."""
    exact, half = tiny_net(name), tiny_net(name, torch.bfloat16)
    exact.load_state_dict(half.float().state_dict())
    half = half.bfloat16()
    squares = dict.fromkeys((None, *TILES), 0.0)
    for seed in range(4):
        for x in inputs(exact, direction, torch.bfloat16, seed=seed)[2:]:
            truth = forward(exact, direction)(Whole(x.float())).data
            squares[None] += relative_error(forward(half, direction)(Whole(x)).data, truth) ** 2
            for tile in TILES:
                squares[tile] += relative_error(over_tiles(half, direction, x, tile), truth) ** 2
    for tile in TILES:
        assert squares[tile] ** 0.5 <= 1.1 * squares[None] ** 0.5, f"tile {tile}"


@torch.inference_mode()
def test_a_picture_with_a_strong_gradient() -> None:
    """Where the tiles' means differ most, averaging variances would be farthest off."""
    net = tiny_net("sdxl", torch.float64)
    ramp = torch.linspace(-30, 30, 40, dtype=torch.float64)
    z = (ramp[:, None] + ramp[None, :]).expand(1, 4, 40, 40).contiguous()
    whole = forward(net, "decode")(Whole(z)).data
    assert relative_error(over_tiles(net, "decode", z, 16), whole) <= 1e-12


@torch.inference_mode()
def test_the_input_is_not_written() -> None:
    for name in ("sdxl", "taesd"):
        net = tiny_net(name)
        for direction in ("decode", "encode"):
            x = inputs(net, direction, torch.float32)[3]
            before = x.clone()
            over_tiles(net, direction, x, 16)
            assert torch.equal(x, before)


def test_every_variant_is_covered() -> None:
    assert {VARIANTS[name].network for name in NAMES} >= {"AutoencoderKL", "AutoencoderKLFlux2", TINY}


@pytest.mark.parametrize("width", [6, 7, 9])
@torch.inference_mode()
def test_upsampling_in_bfloat16_of_even_and_odd_widths(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of an odd width are made even where the CPU has a unit for bfloat16."""
    monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype: True)
    layer, x = UpsampleConv2d(8, 8).bfloat16(), innermost(torch.randn(1, 8, 9, width).bfloat16())
    torch.nn.init.normal_(layer.weight)
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias)
    wide = copy.deepcopy(layer).float().literal(x.float())

    def run(x: Field) -> Field:
        return x.through(layer)

    case = Case(trace(run, tuple(x.shape)), itemsize=2)
    for tile in (4, 6, 32):
        made = run_streamed(run, x, Planner(case).plan(None, tile=tile).steps, x.device)
        assert relative_error(made.float(), wide) < 2**-6
    assert relative_error(layer.of(x).float(), wide) < 2**-6
