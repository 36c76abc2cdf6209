"""The plan keeps its word on a CUDA device, shown without one: full-size networks on fake tensors, under the meter.

`python -m benchmarks.memory` makes the whole table; here is a part of it, and the promises on SDXL.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_cuda import FakeCudaMeter, fake_cuda
from benchmarks.memory import MIB, NAMES, PLENTY, Row, Subject, least_device_bytes, meta_net
from vae_core.execution import Direction
from vae_core.nets.trace import trace
from vae_core.plan import COSTS, Budget, Case, Planner
from vae_core.spec import VARIANTS

GIB = 2**30


def check(row: Row) -> None:
    assert row.device_measured_mib <= row.budget_mib, row
    assert 1.0 <= row.device_ratio <= 1.15, row
    assert 1.0 <= row.host_ratio <= 1.15, row
    # Once a pass, to learn whether all is finite; never for a tile.
    assert row.waits_for_device <= 40, row


@pytest.mark.parametrize(
    ("name", "dtype", "direction", "width", "height", "innermost"),
    [
        ("sdxl", "bf16", "decode", 1024, 1024, True),
        ("sdxl", "fp32", "encode", 1024, 256, True),
        ("sdxl", "fp32", "encode", 1024, 256, False),
        ("x4-upscaler", "fp32", "decode", 1024, 1024, True),
    ],
)
def test_peaks_are_as_predicted_and_within_the_budget(
    name: str, dtype: str, direction: Direction, width: int, height: int, innermost: bool
) -> None:
    """Where the device is faster with its channels innermost, and where it is not."""
    meta = meta_net(name)
    with fake_cuda(channels_innermost=innermost):
        rows = [*Subject(name, dtype, meta).rows(direction, width, height, budgets=3)]
    for row in rows:
        check(row)
    assert rows[0].rung == "streamed, Fields on the host" and rows[-1].rung == "whole"


@pytest.mark.parametrize(
    ("direction", "dtype", "side"),
    [("decode", "bf16", 2048), pytest.param("encode", "fp32", 2048, marks=pytest.mark.slow)],
)
def test_depth_first_on_cuda(direction: Direction, dtype: str, side: int) -> None:
    meta = meta_net("taesd")
    with fake_cuda():
        rows = [*Subject("taesd", dtype, meta).rows(direction, side, side, budgets=4)]
    for row in rows:
        check(row)
    assert "depth first" in {row.rung for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_size_and_budget(name: str, dtype: str, direction: Direction) -> None:
    meta = meta_net(name)
    with fake_cuda():
        subject = Subject(name, dtype, meta)
        for side in (512, 1024, 2048, 4096, 8192):
            for width, height in ((side, side), (2 * side, side // 2)):
                for row in subject.rows(direction, width, height):
                    check(row)


def sdxl_planner(side: int, dtype: torch.dtype = torch.bfloat16) -> Planner:
    net = meta_net("sdxl")
    weights = sum(p.numel() for p in net.parameters()) * dtype.itemsize
    traced = trace(net.decode_field, (1, 4, side // 8, side // 8))
    return Planner(Case(traced, 1, dtype.itemsize, weights, COSTS["cuda"], True, "host", dtype.itemsize))


@pytest.mark.parametrize(("side", "gib"), [(2048, 0.75), (4096, 2.0)])
def test_sdxl_decodes_in_little_memory_without_more_operations(side: int, gib: float) -> None:
    planner = sdxl_planner(side)
    plan = planner.plan(Budget(int(gib * GIB) + planner.case.weight_bytes, PLENTY))
    assert plan.device_bytes - planner.case.weight_bytes <= gib * GIB
    theirs = diffusers_sdxl(torch.bfloat16)
    theirs.set_attn_processor(AttnProcessor())  # plain products, which torch's counter knows
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs.decode(torch.empty(1, 4, side // 8, side // 8, dtype=torch.bfloat16, device="meta"))
    # Attention is the same work on both sides, and left out of both.
    products = 4 * 512 * (side // 8) ** 4
    assert plan.operations - products <= 0.9 * (counter.get_total_flops() - products)
    assert least_device_bytes(planner) < plan.device_bytes


def test_sdxl_decodes_8192_px_on_a_4_gib_device() -> None:
    meta = meta_net("sdxl")
    with fake_cuda():
        subject = Subject("sdxl", "bf16", meta)
        (row,) = subject.rows("decode", 8192, 8192, budgets=1)
    check(row)
    assert row.device_measured_mib * MIB <= 4 * GIB


def diffusers_sdxl(dtype: torch.dtype) -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        return diffusers.AutoencoderKL(**VARIANTS["sdxl"].config, **blocks).eval().to(dtype)


@pytest.mark.parametrize("side", [512, 1024, 2048, 4096, 8192])
def test_on_the_device_alone_streaming_needs_at_most_70_percent_of_diffusers(side: int) -> None:
    """Peaks beyond the weights, bfloat16, both under the same meter."""
    theirs = diffusers_sdxl(torch.bfloat16)
    with torch.inference_mode():
        z = torch.empty(1, 4, side // 8, side // 8, dtype=torch.bfloat16, device="meta")
        with FakeCudaMeter(theirs) as meter:
            meter.see(z)
            theirs.decode(z, return_dict=False)
    planner = sdxl_planner(side)
    streamed = (
        min(rung.device_bytes for rung in planner.rungs(Budget(0, PLENTY)) if rung.name == "streamed")
        - planner.case.weight_bytes
    )
    assert streamed <= 0.7 * meter.peak["meta"], f"{streamed / meter.peak['meta']:.3f}"
