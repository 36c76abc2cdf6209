"""Tiles as wide as the picture, which are made where they lie in a Field: the same result, and no copies."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from faults import FailingAllocations
from test_exactness import TOLERANCE, forward, inputs, over_tiles
from tiny_nets import NAMES, relative_error, tiny_net
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vae_core.nets import arithmetic
from vae_core.nets.chain import Chain
from vae_core.nets.convolutions import Conv2d
from vae_core.nets.layers import plus, silu
from vae_core.nets.layouts import innermost
from vae_core.nets.passes import Field, Whole
from vae_core.nets.trace import trace
from vae_core.plan import Case, Planner
from vae_core.stream import run_streamed


@pytest.fixture(autouse=True)
def wide_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However few rows that leaves; and memory is passed on, however little."""
    monkeypatch.setattr("vae_core.plan.search.LEAST_ROWS", 1)
    monkeypatch.setattr("vae_core.nets.memory.AT_HAND_BYTES", 0)
    yield


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_wide_tiles_equal_the_whole_run(name: str, dtype: torch.dtype, direction: str) -> None:
    net = tiny_net(name, dtype)
    for x in inputs(net, direction, dtype, batch=2)[1:]:
        whole = forward(net, direction)(Whole(x)).data
        error = relative_error(over_tiles(net, direction, x, 30), whole)
        assert error <= TOLERANCE[dtype], f"{tuple(x.shape)}: {error:.1e}"


def plans(h: int, w: int, tile: int) -> Any:
    net = tiny_net("sdxl")
    return Planner(Case(trace(net.decode_field, (1, 4, h, w)))).plan(None, tile=tile)


def test_a_tile_has_no_more_cells_than_the_square_that_is_asked_for() -> None:
    plan = plans(20, 33, 64)
    assert plan.tile == (33, 64), "told as edges of squares"
    shapes = {step.tile for step in plan.steps}
    assert all(prod(tile) <= 64 * 64 for tile in shapes) and (14, 264) in shapes


def test_a_picture_too_wide_for_it_goes_over_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_core.plan.search.LEAST_ROWS", 64)
    assert plans(20, 33, 64).steps[-1].tile == (64, 64)


class Copied(TorchDispatchMode):
    """How many elements are copied from tensor to tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.elements += args[0].numel()
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.inference_mode()
def test_a_residual_block_copies_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not convolve in bfloat16")
    monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype: True)
    first, second = (Conv2d(16, 16, 3, pads=(1, 1)).to(dtype).requires_grad_(False) for _ in range(2))

    def block(x: Field) -> Field:
        x = x.through(first)
        return x.through(first).through(silu, second, plus(x)).through(first)

    x = innermost(torch.randn(1, 16, 40, 24, dtype=dtype))
    steps = Planner(Case(trace(block, tuple(x.shape)), itemsize=dtype.itemsize)).plan(None, tile=16).steps
    expected = block(Whole(x)).data
    copied = []
    for lands in (Chain.lands, lambda *_: None):
        monkeypatch.setattr(Chain, "lands", lands)
        with Copied() as mode:
            made = run_streamed(block, x, steps, x.device)
        assert relative_error(made, expected) <= (1e-5 if dtype == torch.float32 else 2**-6)
        copied.append(mode.elements)
    # Of four Fields the result, whose layout is the caller's, is copied in either case; else three tiles and one that is added to.
    assert copied[1] - copied[0] == 4 * x.numel()


class Widths:
    """What takes over the memory of a Field of twice as many channels."""

    def __init__(self) -> None:
        self.enter, self.leave = Conv2d(8, 32, 3, pads=(1, 1)), Conv2d(16, 8, 3, pads=(1, 1))
        self.narrow, self.shortcut = Conv2d(32, 16, 3, pads=(1, 1)), Conv2d(32, 16, 1)
        self.again = Conv2d(16, 16, 3, pads=(1, 1))

    def __call__(self, x: Field) -> Field:
        x = x.through(self.enter)
        x = x.through(self.narrow).through(self.again, plus(x, by=self.shortcut))
        return x.through(self.again, plus(x)).through(self.leave)

    def streamed(self, x: Tensor) -> Tensor:
        steps = Planner(Case(trace(self, tuple(x.shape)), images=len(x))).plan(None, tile=16).steps
        assert [step.overwrites for step in steps] == [None, None, 1, None, None]
        return run_streamed(self, x, steps, x.device)


@torch.inference_mode()
def test_fewer_channels_in_the_memory_of_more_whatever_fails() -> None:
    """Every single allocation fails once: tiles get smaller, and no tile is written where another has yet to be read."""
    block = Widths()
    x = innermost(torch.randn(2, 8, 40, 24))
    expected = block(Whole(x)).data
    with FailingAllocations(lambda number: False) as counter:
        block.streamed(x)
    for at in range(counter.number):
        with FailingAllocations(lambda number, at=at: number == at) as faults:
            made = block.streamed(x)
        assert faults.failed == 1 and relative_error(made, expected) <= 1e-5, at


@torch.inference_mode()
def test_a_tile_that_has_landed_is_not_computed_again() -> None:
    """Of what is added to, a second time would show."""
    net = tiny_net("sdxl")
    x = inputs(net, "decode", torch.float32)[3]
    expected = forward(net, "decode")(Whole(x)).data
    with FailingAllocations(lambda number: False) as counter:
        over_tiles(net, "decode", x, 30)
    for at in range(3, counter.number, 31):
        with FailingAllocations(lambda number, at=at: number == at):
            made = over_tiles(net, "decode", x, 30)
        assert relative_error(made, expected) <= TOLERANCE[torch.float32], at
