"""What only a CUDA device can show: `python -m pytest -m cuda`. Left out where there is none."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from clip_twins import clip_twins, random_clip, random_latents
from tiny_nets import relative_error, tiny_net

import vae_core
from vae_core.device import channels_innermost
from vae_core.execution import Execution, How
from vae_core.nets.layouts import is_innermost
from vae_core.plan import Budget
from vae_core.spec import COGVIDEOX, VARIANTS, WAN

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MIB = 2**20


@pytest.fixture(autouse=True)
def no_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@contextmanager
def waits(said: list[str]) -> Iterator[None]:
    """Every implicit wait for the device inside, as torch warns of it: the line of Python that waited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]


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


@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_clips_in_every_memory_equal_the_cpu(network: str) -> None:
    """Causal caches on the device and beyond it, Fields on the host, depth first, and back: decoded and encoded."""
    cpu = vae_core.VAE.of(clip_twins(network)[1])
    vae = vae_core.VAE.of(clip_twins(network)[1].to("cuda"))
    z, x = random_latents(3, 10, 14), random_clip(9, 83, 112)
    expected, moments = cpu.decode(z), cpu.encode(x)
    seen, limit = set(), vae.plan("decode", width=112, height=80, frames=9, mode="whole").device_bytes
    while True:
        try:
            made, encoded = vae.decode(z, memory_limit=limit), vae.encode(x, memory_limit=limit)
        except vae_core.BudgetError:
            break
        seen.add(vae.last_report.plan.rung)  # type: ignore[union-attr]
        assert relative_error(made.cpu(), expected) <= 1e-4, limit
        assert relative_error(encoded.cpu(), moments) <= 1e-4, limit
        limit = int(limit * 0.6)
    assert len(seen) >= 2, seen


@pytest.mark.parametrize("name, tile", [("sdxl", 16), ("sdxl", None), ("taesd", 16)])
def test_no_tile_waits_for_the_device(name: str, tile: int | None) -> None:
    """At most one wait a pass, to learn whether it is finite; as many for many tiles as for few."""
    vae = on_cuda(name, torch.bfloat16)
    counted = []
    for side in (32, 64):
        z = torch.randn(1, 4, side, side, dtype=torch.bfloat16, device="cuda")
        vae.decode(z, tile=tile)
        said: list[str] = []
        with waits(said):
            vae.decode(z, tile=tile)
        counted.append(len(said))
        print(name, tile, side, Counter(said))
        assert len(said) <= len(vae.last_report.plan.steps) + 1, said  # type: ignore[union-attr]
    assert abs(counted[0] - counted[1]) <= 1


@pytest.mark.parametrize("name", ["wan21", "cogvideox-5b"])
def test_clips_of_full_size_take_no_more_than_planned(name: str) -> None:
    """In bfloat16. cuDNN's workspaces come on top of the tensors that the plan counts: 0.65 GiB of CogVideoX's tiles (H200)."""
    row, held = VARIANTS[name], torch.cuda.memory_allocated()
    with torch.device("cuda"):
        net = getattr(vae_core, row.network)(**row.config).bfloat16().eval()
    vae = vae_core.VAE.of(net, row)
    z = torch.randn(1, 16, 3, 60, 90, dtype=torch.bfloat16)
    whole = vae.decode(z, mode="whole").cpu()
    for limit in ("6GiB", "3GiB"):
        made = vae.decode(z, memory_limit=limit).cpu()
        report: Any = vae.last_report
        print(name, limit, report.line())
        assert report.measured_device_bytes - held <= report.plan.device_bytes + 768 * MIB, report.line()
        # Elementwise bfloat16 rounding, in another order of summation.
        assert float((made - whole).abs().mean()) <= 0.01


def test_weights_are_laid_out_once() -> None:
    """When they are loaded, as runs lie; results and saved files are what they are without a GPU."""
    vae = vae_core.load_embedded(device="cuda", dtype=torch.float32)
    cpu = vae_core.load_embedded(device="cpu", dtype=torch.float32)
    lies = channels_innermost(vae.device, torch.float32, 4)
    weights = [weight for weight in vae.net.parameters() if weight.ndim == 4]
    assert all(is_innermost(weight) for weight in weights) == lies
    z = torch.randn(1, 4, 16, 24)
    assert relative_error(vae.decode(z).cpu(), cpu.decode(z)) <= 1e-4


def test_files_on_cuda() -> None:
    vae = on_cuda("sdxl")
    z = torch.randn(1, 4, 40, 56)
    half, how = vae._half("decode"), How()
    execution = Execution(half, how, vae._planners, z.shape, "host", z.dtype)
    with torch.inference_mode():
        planner = execution._planner()
        on_host = planner.plan(Budget(planner.plan(None).device_bytes // 3, 1 << 40, 1 << 40))
        plan = planner.plan(Budget(on_host.device_bytes, on_host.host_bytes // 4, 1 << 40))
        assert plan.rung == "streamed, Fields in files"
        made = execution.carried_out(plan, z).cpu().clamp_(-1, 1)
        assert relative_error(made, vae.decode(z, mode="whole").cpu()) <= 1e-4


@pytest.mark.parametrize("side", [512, 1024])
def test_torch_allocates_no_more_than_planned_and_little_more(side: int) -> None:
    """Full-size SDXL in bfloat16. cuDNN's workspaces come on top of the tensors that the plan counts: 0.05 GiB (H200)."""
    held = torch.cuda.memory_allocated()
    with torch.device("cuda"):
        net = vae_core.AutoencoderKL(**VARIANTS["sdxl"].config).bfloat16().eval()
    vae = vae_core.VAE.of(net, VARIANTS["sdxl"])
    z = torch.randn(1, 4, side // 8, side // 8, dtype=torch.bfloat16)
    for tile in (None, 256, 512):
        vae.decode(z, **({"mode": "whole"} if tile is None else {"tile": tile}))  # type: ignore[arg-type]
        report: Any = vae.last_report
        print(side, tile, report.line())
        assert report.measured_device_bytes - held <= report.plan.device_bytes + 128 * MIB, report.line()


def test_running_out_of_real_memory() -> None:
    """Torch may take less than the plan thought was free."""
    vae = on_cuda("sdxl")
    z = torch.randn(1, 4, 128, 128)
    expected = vae.decode(z).cpu()
    planned = vae.last_report.plan.device_bytes  # type: ignore[union-attr]
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((held + planned // 2) / total)
    try:
        made = vae.decode(z)
        assert relative_error(made.cpu(), expected) <= 1e-4
        assert vae.last_report.retries >= 1  # type: ignore[union-attr]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
