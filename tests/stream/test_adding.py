"""Convolutions of a whole run that add their result to the memory of a Field that is not read again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_nets import relative_error, tiny_net
from torch import Tensor

from vae_core.nets import onednn
from vae_core.nets.convolutions import Conv2d
from vae_core.nets.layers import Pointwise, plus
from vae_core.nets.layouts import innermost
from vae_core.nets.onednn import convolve_onto
from vae_core.nets.passes import Field, Whole
from vae_core.nets.trace import trace
from vae_core.plan import Case, Planner
from vae_core.schedule import Steps
from vae_core.stream import run_whole

EQUAL = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-7}
"""Relative, of one convolution: a sum is rounded once or twice."""


@pytest.mark.parametrize("dtype", EQUAL)
@pytest.mark.parametrize("lies", [innermost, Tensor.contiguous, lambda x: torch.cat([x, x], dim=3)[:, :, :, ::2]])
@torch.inference_mode()
def test_the_sum_is_the_same_in_every_layout_and_dtype(dtype: torch.dtype, lies: Callable[[Tensor], Tensor]) -> None:
    there, x = (lies(torch.randn(2, 8, 10, 12, dtype=dtype)) for _ in range(2))
    weight, bias = torch.randn(8, 8, 3, 3, dtype=dtype), torch.randn(8, dtype=dtype)
    expected = there.double() + torch.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    made = convolve_onto(there, x, weight, bias, (1, 1), (1, 1))
    assert made is there
    assert relative_error(made.double(), expected) < EQUAL[dtype]


Run = Callable[[Field], Field]


def steps_of(run: Run, x: Tensor) -> Steps:
    return Planner(Case(trace(run, tuple(x.shape)), images=len(x))).plan(None, whole=True).steps


def overwritten(run: Run, x: Tensor) -> list[int | None]:
    return [step.overwrites for step in steps_of(run, x)]


@torch.inference_mode()
def test_residual_blocks_take_over_the_memory_of_what_they_add_to() -> None:
    net = tiny_net("sdxl")
    x = innermost(torch.randn(1, 4, 11, 7))
    taken = [index for index in overwritten(net.decode_field, x) if index is not None]
    assert len(taken) == len(set(taken)) > 5 and 0 not in taken
    made = run_whole(net.decode_field, x, steps_of(net.decode_field, x))
    assert relative_error(made, net.decode_field(Whole(x)).data) < 1e-5


class Blocks:
    """Forwards in which the Field that is added must stay as it is."""

    def __init__(self) -> None:
        self.first, self.second = Conv2d(8, 8, 3, pads=(1, 1)), Conv2d(8, 8, 3, pads=(1, 1))
        self.same = Pointwise("same", lambda x: x)

    def of_the_input(self, x: Field) -> Field:
        return x.through(self.first).through(self.second, plus(x))

    def of_what_is_convolved(self, x: Field) -> Field:
        x = x.through(self.first)
        return x.through(self.second, plus(x))

    def read_again(self, x: Field) -> Field:
        x = x.through(self.first)
        return x.through(self.first).through(self.second, plus(x)).through(plus(x))

    def where_another_lies(self, x: Field) -> Field:
        x = x.through(self.first)
        other = x.through(self.same)
        return x.through(self.first).through(self.second, plus(x)).through(plus(other))

    def where_the_input_lies(self, x: Field) -> Field:
        x = x.through(self.same)
        return x.through(self.first).through(self.second, plus(x))


@pytest.mark.parametrize(
    "name", ["of_the_input", "of_what_is_convolved", "read_again", "where_another_lies", "where_the_input_lies"]
)
@torch.inference_mode()
def test_what_is_read_still_is_not_overwritten(name: str) -> None:
    blocks = Blocks()
    run = getattr(blocks, name)
    for layer in (blocks.first, blocks.second):
        torch.nn.init.normal_(layer.weight)
        assert layer.bias is not None
        torch.nn.init.normal_(layer.bias)
    x = innermost(torch.randn(1, 8, 20, 24))
    before = x.clone()
    made = run_whole(run, x, steps_of(run, x))
    assert torch.equal(x, before)
    assert relative_error(made, run(Whole(x)).data) < 1e-5
    if not name.startswith("where"):
        assert set(overwritten(run, x)) == {None}


@torch.inference_mode()
def test_without_the_operator_it_is_a_sum_of_two_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net("sdxl")
    x = innermost(torch.randn(1, 4, 11, 7))
    monkeypatch.setattr(onednn, "adds", lambda weight: False)
    assert set(overwritten(net.decode_field, x)) == {None}
    made = run_whole(net.decode_field, x, steps_of(net.decode_field, x))
    assert relative_error(made, net.decode_field(Whole(x)).data) < 1e-5
