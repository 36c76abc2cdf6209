"""How Fields lie in memory: channels innermost from pass to pass, and memory that is taken over from one Field to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_nets import tiny_net
from torch import Tensor

import vae_core
from benchmarks.fake_cuda import fake_cuda
from vae_core.device import Ferry, channels_innermost
from vae_core.device.formats import gain_of_innermost
from vae_core.loading import lay_out
from vae_core.nets import arithmetic
from vae_core.nets.layouts import dense, innermost, is_innermost, select
from vae_core.nets.passes import Whole
from vae_core.nets.trace import trace
from vae_core.schedule import Step
from vae_core.stream import run_streamed
from vae_core.stream.homes import Homes

CPU = torch.device("cpu")


def streamed_layouts(forward: Callable[[Any], Any], x: Tensor) -> list[bool]:
    """Whether each Field of a streamed run lies with its channels innermost, the input left out."""
    found: list[bool] = []

    def watched(field: Any) -> Any:
        made = forward(field)
        found.extend(is_innermost(f.data) for f in made.run.fields[1:-1] if f.data is not None)
        return made

    steps = tuple(Step(tuple(-(-n // 2) for n in p.shape[2:]), statistics=True) for p in trace(forward, x.shape).passes)
    run_streamed(watched, x, steps, CPU)
    return found


@pytest.mark.parametrize("name", ["sdxl", "taesd", "flux2"])
@torch.inference_mode()
def test_channels_stay_innermost(name: str) -> None:
    """A single pass that lost the layout would double the time of all that follow."""
    net = tiny_net(name)
    for forward, channels, side in ((net.decode_field, net.config.latent_channels, 12), (net.encode_field, 3, 48)):
        x = torch.randn(1, channels, side, side)
        found: list[bool] = []
        forward(Whole(innermost(x), on_pass=lambda made, found=found: found.append(is_innermost(made.data))))
        assert found and all(found)
        assert all(streamed_layouts(forward, x))


@pytest.mark.parametrize(
    "shape", [(1, 3, 4, 5), (2, 3, 4, 5), (1, 1, 4, 5), (1, 3, 1, 1), (1, 3, 4, 5, 6), (1, 3, 1, 5, 6)]
)
def test_layouts(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    lies = innermost(x)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    assert is_innermost(lies) and lies.is_contiguous(memory_format=formats[x.ndim]) and torch.equal(lies, x)
    assert is_innermost(x) == x.is_contiguous(memory_format=formats[x.ndim])
    assert innermost(lies) is lies and dense(lies, True) is lies and dense(x, False) is x
    cells = torch.tensor([0, 0, x.shape[2] - 1])
    assert torch.equal(select(lies, 2, cells), x.index_select(2, cells))
    assert is_innermost(select(lies, 2, cells)) or lies.is_contiguous(), "where both layouts are one, either will do"


def test_cpus_have_the_channels_innermost_and_other_devices_are_measured() -> None:
    assert channels_innermost(CPU, torch.float32, 4) and channels_innermost(CPU, torch.bfloat16, 5)
    assert all(0.1 < gain_of_innermost(CPU, torch.float32, axes) < 10 for axes in (4, 5))


def test_the_ferry_keeps_the_layout() -> None:
    """Turning a tile over on the host would take longer than its way to the device. On fake CUDA tensors."""
    with fake_cuda():
        ferry = Ferry(torch.device("cuda"))
        for lies_innermost in (True, False):
            field = Homes(torch.device("cpu"), lies_innermost).empty((1, 8, 6, 6), torch.float32, "device")
            fetched = ferry.fetch(field[..., 1:4, 2:5], "x")
            assert is_innermost(fetched) == lies_innermost and fetched.device.type == "cuda"


@torch.inference_mode()
def test_results_are_contiguous() -> None:
    """So that they can be saved as they are."""
    vae: Any = vae_core.load_embedded(dtype=torch.float32)
    for how in ({"mode": "whole"}, {}, {"tile": 16}):
        assert vae.encode(torch.zeros(2, 3, 48, 64), **how).is_contiguous()
        assert vae.decode(torch.zeros(2, 4, 6, 8), **how).is_contiguous()


def test_memory_is_taken_over_by_the_next_field_of_that_size_and_by_no_other() -> None:
    homes = Homes(CPU, innermost=True)
    first = homes.empty((1, 8, 6, 6), torch.float32, "device")
    at = first.data_ptr()
    homes.recycle(first)
    second = homes.empty((1, 2, 12, 12), torch.float32, "device")
    assert second.data_ptr() == at and is_innermost(second) and second.shape == (1, 2, 12, 12)
    homes.recycle(second)
    assert homes.empty((1, 8, 5, 5), torch.float32, "device").data_ptr() != at
    homes.recycle(second)
    homes.spares.keep_only()
    assert homes.empty((1, 8, 6, 6), torch.float32, "device").data_ptr() != at, "nobody has taken it, and it is let go"


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_a_cpu_convolves_in_half_precision_are_laid_out_once(
    dtype: torch.dtype, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be mapped from a file, and stay as they are."""
    monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype: computes)
    net = tiny_net("sdxl", dtype)
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in net.state_dict().items()}
    lay_out(net)
    for name, weight in net.state_dict().items():
        place, values = before[name]
        assert torch.equal(weight, values)
        if dtype == torch.bfloat16 and computes:
            assert weight.ndim != 4 or is_innermost(weight), name
        else:
            assert weight.data_ptr() == place, name
