"""Winograd's filtering is the convolution: against float64, for any size, border, layout and number of frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_core.nets import arithmetic, winograd
from vae_core.nets.causal_convolution import CausalConv3d
from vae_core.nets.convolutions import Conv2d, UpsampleConv2d
from vae_core.nets.layouts import innermost
from vae_core.nets.memory import Memory, shared
from vae_core.nets.winograd import PLAIN, UPSAMPLING, Filter, Filtering

CLOSE = 2e-6
"""Of the largest value, in float32: sums of some hundred products, whose rounding grows as their root."""

sides = st.integers(1, 19)
borders = st.tuples(st.integers(0, 2), st.integers(0, 2))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small pictures have several."""
    monkeypatch.setattr(winograd, "PART_ELEMENTS", 1)
    monkeypatch.setattr(winograd, "PART_PAIRS", 12)
    monkeypatch.setattr(winograd, "PART_WIDTH", 4)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, pads: winograd.Pads, how: Filtering) -> Tensor:
    """In float64, as the definition has it. The zeros around an upsampled picture are upsampled too, and cut to one cell."""
    x, weight = x.double(), weight.double()
    bias = None if bias is None else bias.double()
    (top, bottom), (left, right) = pads
    padded = F.pad(x, (left, right, top, bottom))
    if how.upsamples:
        padded = F.interpolate(padded, scale_factor=2.0, mode="nearest")[..., 1:-1, 1:-1]
    return F.conv2d(padded, weight, bias)


def error(made: Tensor, expected: Tensor) -> float:
    return float((made.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("how", [PLAIN, UPSAMPLING], ids=["plain", "upsampling"])
@settings(max_examples=60)
@given(st.data())
@torch.inference_mode()
def test_pictures(how: Filtering, data: st.DataObject) -> None:
    h, w, pads = data.draw(sides), data.draw(sides), (data.draw(borders), data.draw(borders))
    if h + sum(pads[0]) < 3 or w + sum(pads[1]) < 3:
        return
    i, o, batch = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 2))
    x, weight = torch.randn(batch, i, h, w), torch.randn(o, i, 3, 3)
    if data.draw(st.booleans()):
        x = innermost(x)
    if data.draw(st.booleans()):
        x = torch.randn(batch, i, h + 3, w + 2)[..., 2 : 2 + h, 1 : 1 + w]
    bias = torch.randn(o) if data.draw(st.booleans()) else None
    made = Filter(weight, bias, how)(x, pads)
    expected = convolved(x, weight, bias, pads, how)
    assert made.shape == expected.shape and made.dtype == x.dtype
    assert error(made, expected) < CLOSE


@settings(max_examples=40)
@given(st.data())
@torch.inference_mode()
def test_clips(data: st.DataObject) -> None:
    """Frames before the first are known, zero, or the first one again."""
    h, w, t, known = data.draw(sides), data.draw(sides), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    repeats = data.draw(st.booleans())
    layer = CausalConv3d(6, 5, 3, repeats_first=repeats)
    x, past = torch.randn(2, 6, t, h, w), torch.randn(2, 6, known, h, w) if known else None
    made = layer.filtered(x, past)
    expected = layer.double().of_after(x.double(), None if past is None else past.double())
    assert made.shape == expected.shape and error(made, expected) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(1, 32, 9, 14).to(dtype), torch.randn(8, 32, 3, 3).to(dtype), torch.randn(8).to(dtype)
    expected = convolved(x, weight, bias, ((1, 1), (1, 1)), PLAIN)
    made = Filter(weight, bias, PLAIN)(x, ((1, 1), (1, 1)))
    assert made.dtype == dtype
    # Half a unit in the last place of the result, and what float32 errs by.
    off = (made.double() - expected).abs()
    assert bool((off <= expected.abs() * torch.finfo(dtype).eps / 2 + CLOSE * expected.abs().max()).all())


@pytest.mark.parametrize("layer", [Conv2d(16, 12, 3, pads=(1, 1)), UpsampleConv2d(16, 12)], ids=["conv", "upsample"])
@torch.inference_mode()
def test_what_is_not_a_number_spreads_no_farther_than_by_a_plain_convolution(layer: Any) -> None:
    for row, column in ((0, 0), (4, 7), (5, 3), (8, 10)):
        x = torch.randn(1, 16, 9, 11)
        x[0, 3, row, column] = float("nan")
        assert torch.equal(layer.filtered(x).isnan(), layer.literal(x).isnan())


@torch.inference_mode()
def test_a_run_lends_its_memory() -> None:
    filtering, x = Filter(torch.randn(4, 3, 3, 3), None, PLAIN), torch.randn(1, 3, 20, 20)
    alone = filtering(x, ((1, 1), (1, 1)))
    with shared(Memory(4 * 10**6)) as memory:
        memory.spares.add(torch.full((4 * 400,), float("nan")))
        memory.workspace(10**6).fill_(float("nan"))
        assert torch.equal(filtering(x, ((1, 1), (1, 1))), alone)
        assert memory.workspace(1).isfinite().all(), "it has worked there"


def test_what_it_works_in_is_as_large_as_foretold() -> None:
    for c_in, c_out, taps in ((4, 9, 1), (9, 4, 3)):
        weight = torch.randn(c_out, c_in, *((taps,) if taps > 1 else ()), 3, 3)
        for how in (PLAIN, UPSAMPLING):
            foretold = winograd.workspace_elements(weight, how)
            used = [
                winograd._elements(
                    how, *winograd.part_sizes((h, w), winograd.part_pairs(c_in, c_out)), taps, c_in, c_out
                )
                for h in range(1, 40)
                for w in range(1, 40)
            ]
            assert max(used) <= foretold <= 1.5 * max(used)


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide 3×3 convolutions of stride 1, on CPUs that convolve in float32."""
    wide = Conv2d(128, 64, 3, pads=(1, 1))
    assert wide.filters and UpsampleConv2d(128, 128).filters and CausalConv3d(96, 96, 3).filters
    assert not Conv2d(64, 64, 3, pads=(1, 1)).filters and not Conv2d(128, 3, 3, pads=(1, 1)).filters
    assert not Conv2d(128, 128, 1).filters and not Conv2d(128, 128, 3, stride=2, pads=(0, 1)).filters
    assert not UpsampleConv2d(128, 128, factor=3).filters and not CausalConv3d(128, 128, (3, 1, 1)).filters
    assert not wide.to("meta").filters and not Conv2d(128, 128, 3, pads=(1, 1)).double().filters
    half = Conv2d(128, 128, 3, pads=(1, 1)).bfloat16()
    monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype: True)
    assert not half.filters
    monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype: False)
    assert half.filters


@pytest.mark.parametrize(
    ("capabilities", "depths"),
    [
        ({}, (128, 128)),
        ({"avx512_f": True, "avx512_bf16": False}, (192, 512)),
        ({"avx512_f": True, "avx512_bf16": True}, (128, 128)),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, (192, 128)),
    ],
    ids=["AVX2", "Ice Lake", "AVX512-BF16", "AMX"],
)
def test_the_least_width_depends_on_the_cpu(
    capabilities: dict[str, bool], depths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for filters, depth in zip((wide_enough, wide_enough_upsampled), depths, strict=True):
        assert filters(depth) and not filters(depth // 2)


def wide_enough(channels: int) -> bool:
    return Conv2d(channels, channels, 3, pads=(1, 1)).filters


def wide_enough_upsampled(channels: int) -> bool:
    return UpsampleConv2d(channels, channels).filters


def test_a_plain_call_convolves_and_can_be_differentiated() -> None:
    layer, x = Conv2d(128, 128, 3, pads=(1, 1)), torch.randn(1, 128, 4, 4, requires_grad=True)
    layer.of(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
