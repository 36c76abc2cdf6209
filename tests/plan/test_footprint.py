"""What a plan predicts is what a run uses: bytes against a meter of live storages, operations against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import tiny_net

import vae_core
from benchmarks.meter import Meter
from benchmarks.operations import operations_counter
from vae_core.execution import Execution, Half, How, Planners
from vae_core.nets import arithmetic
from vae_core.nets.attention import Attention
from vae_core.nets.trace import trace
from vae_core.plan import Case, Plan, Planner
from vae_core.stream import run_streamed, run_whole

FAMILIES = ("sdxl", "flux1", "x4-upscaler", "flux2", "taesd", "taef2")
TILES = (30, 64, 128)


def forward(net: Any, direction: str) -> Any:
    return net.decode_field if direction == "decode" else net.encode_field


def an_input(net: Any, direction: str, batch: int = 1) -> torch.Tensor:
    if direction == "encode":
        return torch.randn(batch, 3, 200, 168, dtype=net.dtype)
    return torch.randn(batch, net.config.latent_channels, 25, 21, dtype=net.dtype)


def execution(net: Any, direction: str, x: torch.Tensor, tile: int | None) -> Execution:
    half = Half(direction, forward(net, direction), net, x.device, net.dtype, may_overflow=False)  # type: ignore[arg-type]
    return Execution.of(half, How("whole" if tile is None else "exact", tile), Planners(), x)


def planned(net: Any, direction: str, x: torch.Tensor, tile: int | None) -> Plan:
    case = Case(trace(forward(net, direction), (1, *x.shape[1:])), images=len(x), itemsize=x.element_size())
    return Planner(case).plan(None, tile=tile, whole=tile is None)


def run(net: Any, direction: str, x: torch.Tensor, chosen: Plan) -> None:
    for part in x.split(chosen.images):
        if chosen.tile is None:
            run_whole(forward(net, direction), part, chosen.steps)
        else:
            run_streamed(forward(net, direction), part, chosen.steps, x.device)


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in FAMILIES), ("sdxl", torch.bfloat16), ("taesd", torch.bfloat16)],
)
@torch.inference_mode()
def test_predicted_bytes(name: str, direction: str, dtype: torch.dtype) -> None:
    net = tiny_net(name, dtype)
    weights = sum(p.numel() * p.element_size() for p in (*net.parameters(), *net.buffers()))
    for batch, tiles in ((1, (None, *TILES)), (2, (None, 64))):
        x = an_input(net, direction, batch)
        for tile in tiles:
            with Meter(net) as meter:
                meter.see(x)
                _, report = execution(net, direction, x, tile).run(x)
            ratio = (report.plan.device_bytes - weights) / meter.peak["cpu"]
            assert 1.0 <= ratio <= 1.15, f"tile {tile}, batch {batch}: predicted / measured = {ratio:.3f}"


@pytest.mark.parametrize("given", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["sdxl", "taesd"])
@torch.inference_mode()
def test_predicted_bytes_of_an_input_of_another_dtype(
    name: str, given: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where both dtypes are as wide."""
    monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype: True)
    net = tiny_net(name, torch.bfloat16)
    weights = sum(p.numel() * p.element_size() for p in (*net.parameters(), *net.buffers()))
    x = torch.rand(2, 3, 96, 64, dtype=given)
    half = Half("encode", net.encode_field, net, x.device, net.dtype, may_overflow=False)
    for how in (How("whole"), How(tile=32), How(memory_limit=weights + x.nbytes + 350_000)):
        with Meter(net) as meter:
            meter.see(x)
            made, report = Execution.of(half, how, Planners(), x).run(x)
        assert made.dtype == torch.bfloat16
        ratio = (report.plan.device_bytes - weights) / meter.peak["cpu"]
        assert 1.0 <= ratio <= 1.15, f"{report.plan.rung}: predicted / measured = {ratio:.3f}"


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
@torch.inference_mode()
def test_predicted_bytes_where_half_precision_convolves_in_float32(name: str) -> None:
    """Less closely: what is held in both dtypes at once depends on the pass."""
    assert arithmetic.convolving_dtype(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
    net = tiny_net(name, torch.bfloat16)
    weights = sum(p.numel() * p.element_size() for p in (*net.parameters(), *net.buffers()))
    x = torch.rand(1, 3, 96, 64, dtype=torch.bfloat16)
    half = Half("encode", net.encode_field, net, x.device, net.dtype, may_overflow=False)
    for how in (How("whole"), How(tile=32)):
        with Meter(net) as meter:
            meter.see(x)
            _, report = Execution.of(half, how, Planners(), x).run(x)
        ratio = (report.plan.device_bytes - weights) / meter.peak["cpu"]
        assert 1.0 <= ratio <= 1.35, f"{report.plan.rung}: predicted / measured = {ratio:.3f}"


SDXL = tiny_net("sdxl")
SDXL_WEIGHTS = sum(p.numel() * p.element_size() for p in (*SDXL.parameters(), *SDXL.buffers()))


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.05, 1.0))
def test_no_run_takes_more_than_predicted(h: int, w: int, share: float) -> None:
    """Any size, any limit."""
    x = torch.randn(1, 4, h, w)
    half = Half("decode", SDXL.decode_field, SDXL, x.device, torch.float32, may_overflow=False)
    whole = Execution.of(half, How("whole"), Planners(), x).plan().device_bytes
    limit = SDXL_WEIGHTS + int((whole - SDXL_WEIGHTS) * share)
    execution = Execution.of(half, How(memory_limit=limit), Planners(), x)
    try:
        with torch.inference_mode(), Meter(SDXL) as meter:
            meter.see(x)
            _, report = execution.run(x)
    except vae_core.BudgetError as refused:
        assert "needs" in str(refused)
        return
    assert meter.peak["cpu"] + SDXL_WEIGHTS <= report.plan.device_bytes <= limit
    assert meter.peak["disk"] <= report.plan.disk_bytes
    assert report.retries == 0


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_predicted_operations(name: str, direction: str) -> None:
    """Torch does not count the fused attention of the CPU, so attention is left out on both sides."""
    net = tiny_net(name)
    without_attention(net)
    for batch, tiles in ((1, (None, *TILES)), (2, (None, 64))):
        x = an_input(net, direction, batch)
        for tile in tiles:
            chosen = planned(net, direction, x, tile)
            with operations_counter() as counter:
                run(net, direction, x, chosen)
            assert chosen.operations == counter.get_total_flops()


def without_attention(net: Any) -> None:
    for module in net.modules():
        if isinstance(getattr(module, "attentions", None), torch.nn.ModuleList):
            module.attentions = torch.nn.ModuleList()
    assert not any(isinstance(m, Attention) for m in net.modules())


@torch.inference_mode()
def test_attention_operations_are_those_of_its_two_products() -> None:
    net = tiny_net("sdxl")
    net.set_default_attn_processor()  # plain products, which torch counts
    x = an_input(net, "decode")
    for tile in (None, 16):
        chosen = planned(net, "decode", x, tile)
        with operations_counter() as counter:
            run(net, "decode", x, chosen)
        assert chosen.operations == counter.get_total_flops()


def full_size_sdxl() -> Any:
    with torch.device("meta"):
        return vae_core.AutoencoderKL(**vae_core.VARIANTS["sdxl"].config).eval()


def test_streamed_sdxl_takes_at_most_87_percent_of_the_plain_operations() -> None:
    """At 2048 px, against diffusers' own forward counted on shape-only tensors.

    Attention is the same work on both sides and left out of both, as torch's counter leaves out the CPU's fused kernel.
    """
    import diffusers
    from diffusers.models.attention_processor import AttnProcessor

    net = full_size_sdxl()
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**vae_core.VARIANTS["sdxl"].config, **blocks).eval()
    theirs.set_attn_processor(AttnProcessor())
    with operations_counter() as counter, torch.no_grad():
        theirs.decode(torch.empty(1, 4, 256, 256, device="meta"))
    products = 4 * 512 * (256 * 256) ** 2  # queries with keys, weights with values
    plain = counter.get_total_flops() - products

    traced = trace(net.decode_field, (1, 4, 256, 256))
    operations = {tile: Planner(Case(traced)).plan(None, tile=tile).operations - products for tile in (256, 512)}
    for tile, count in operations.items():
        assert count <= 0.87 * plain, f"tile {tile}: {count / plain:.4f} of plain"
    assert abs(operations[256] / operations[512] - 1) <= 0.03


def test_tracing_4096_px_takes_milliseconds_of_integers_and_no_data() -> None:
    net = full_size_sdxl()
    with Meter(net) as meter:
        traced = trace(net.decode_field, (1, 4, 512, 512))
    assert meter.peak["cpu"] == meter.peak["meta"] == 0
    assert traced.shapes[-1] == (1, 3, 4096, 4096)
