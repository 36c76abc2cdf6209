"""What only a CUDA device can show: `python -m pytest -m cuda`. Left out where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import relative_error, tiny_net

import vae_core
from vae_core.execution import Execution, How
from vae_core.plan import Budget
from vae_core.spec import VARIANTS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 2**20


@pytest.fixture(autouse=True)
def no_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def on_cuda(name: str, dtype: torch.dtype = torch.float32) -> vae_core.VAE:
    return vae_core.VAE.of(tiny_net(name, dtype).to("cuda"), VARIANTS[name])


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd", "taef2"])
def test_every_rung_equals_the_cpu(name: str) -> None:
    """Also with Fields in host memory and in files, through pinned buffers on the side stream."""
    vae, cpu = on_cuda(name), vae_core.VAE.of(tiny_net(name), VARIANTS[name])
    z = torch.randn(1, vae.spec.latent_channels, 40, 56)
    expected = cpu.decode(z)
    made = vae.decode(z)
    assert relative_error(made.cpu(), expected) <= 1e-4
    seen = set()
    limit = vae.last_report.plan.device_bytes  # type: ignore[union-attr]
    while True:
        try:
            made = vae.decode(z, memory_limit=limit)
        except vae_core.BudgetError:
            break
        report: Any = vae.last_report
        seen.add(report.plan.rung)
        assert relative_error(made.cpu(), expected) <= 1e-4, report.line()
        limit = int(limit * 0.8)
    assert {"whole", "streamed, Fields on the host"} <= seen


def test_files_on_cuda() -> None:
    vae = on_cuda("sdxl")
    z = torch.randn(1, 4, 40, 56)
    half, how = vae._half("decode"), How()
    execution = Execution(half, how, vae._planners, z.shape, "host", z.dtype)
    with torch.inference_mode():
        planner = execution._planner()
        on_host = planner.plan(Budget(planner.plan(None).device_bytes // 3, 1 << 40, 1 << 40))
        plan = planner.plan(Budget(on_host.device_bytes, on_host.host_bytes // 2, 1 << 40))
        assert plan.rung == "streamed, Fields in files"
        assert relative_error(execution.carried_out(plan, z).cpu(), vae.decode(z, mode="whole").cpu()) <= 1e-4


@pytest.mark.parametrize("side", [512, 1024])
def test_torch_allocates_no_more_than_planned_and_little_more(side: int) -> None:
    """Full-size SDXL in bfloat16. cuDNN's workspaces come on top of the tensors that the plan counts."""
    with torch.device("cuda"):
        net = vae_core.AutoencoderKL(**VARIANTS["sdxl"].config).bfloat16().eval()
    vae = vae_core.VAE.of(net, VARIANTS["sdxl"])
    z = torch.randn(1, 4, side // 8, side // 8, dtype=torch.bfloat16)
    for tile in (None, 256, 512):
        vae.decode(z, **({"mode": "whole"} if tile is None else {"tile": tile}))  # type: ignore[arg-type]
        report: Any = vae.last_report
        assert report.measured_device_bytes <= report.plan.device_bytes + 512 * MIB, report.line()


def test_running_out_of_real_memory() -> None:
    """Another tensor takes what the plan thought was free."""
    vae = on_cuda("sdxl")
    z = torch.randn(1, 4, 128, 128)
    expected = vae.decode(z).cpu()
    peak = vae.last_report.plan.device_bytes  # type: ignore[union-attr]
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min((total - free + peak // 2) / total, 1.0))
    try:
        made = vae.decode(z)
        assert relative_error(made.cpu(), expected) <= 1e-4
        assert vae.last_report.retries >= 1  # type: ignore[union-attr]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
