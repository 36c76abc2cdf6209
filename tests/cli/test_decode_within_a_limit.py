"""The command line keeps a memory limit at full size: of the embedded VAE, less than a seventh of what the whole run takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_core
from benchmarks.meter import Meter
from vae_core.media.latents import read_latents, write_latents

EMBEDDED = Path(__file__).resolve().parents[2] / "vae_core" / "embedded" / "photograph.safetensors"


@pytest.fixture
def two_threads() -> Iterator[None]:
    """These networks are large enough for two threads to pay."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("side", "limit_mib"), [(1024, 64), pytest.param(2048, 256, marks=pytest.mark.slow)])
def test_large_pictures_in_little_memory(run, tmp_path: Path, two_threads: None, side: int, limit_mib: int) -> None:
    photograph = read_latents(EMBEDDED)
    enlarged = torch.nn.functional.interpolate(photograph.tensor.float(), size=(side // 8, side // 8), mode="bilinear")
    write_latents(tmp_path / "z.safetensors", replace(photograph, tensor=enlarged, size=None))
    with Meter() as meter:
        within = run(
            "decode", tmp_path / "z.safetensors", "-o", tmp_path / "within.png", "--memory", f"{limit_mib}MiB", "--json"
        )
    assert within.status == 0, within.err
    plan = json.loads(within.out)["files"][0]["report"]["plan"]
    assert (
        plan["rung"] == "streamed, Fields in files" and plan["disk_bytes"] >= meter.peak["disk"] > 4 * limit_mib * 2**20
    )
    assert meter.peak["cpu"] <= plan["device_bytes"] <= limit_mib * 2**20

    unlimited = run("decode", tmp_path / "z.safetensors", "-o", tmp_path / "whole.png", "--mode", "whole")
    assert unlimited.status == 0, unlimited.err
    a, b = (np.asarray(Image.open(tmp_path / name), dtype=np.int16) for name in ("within.png", "whole.png"))
    assert a.shape == (side, side, 3)
    # Equal but for bytes that lie within float32 rounding of a half.
    difference = np.abs(a - b)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


def test_ten_limits() -> None:
    """The measured peak stays within each; in the tightest the picture is the unlimited run's."""
    vae = vae_core.load_embedded(dtype=torch.float32)
    latents = read_latents(EMBEDDED).tensor.float()[..., :32, :44].contiguous()
    weights = sum(t.numel() * t.element_size() for t in (*vae.net.parameters(), *vae.net.buffers()))
    expected = vae.decode(latents)
    assert vae.last_report is not None
    most, least = vae.last_report.plan.device_bytes, smallest_limit(vae)
    for i in range(10):
        limit = int(most * (least / most) ** (i / 9)) + 1
        with Meter(vae.net) as meter:
            meter.see(latents)
            made = vae.decode(latents, memory_limit=limit)
        plan = vae.last_report.plan
        assert meter.peak["cpu"] + weights <= plan.device_bytes <= limit, plan.table()
        assert (made - expected).abs().max() <= 1e-5, plan.rung
    assert plan.rung == "streamed, Fields in files"


def smallest_limit(vae: vae_core.VAE) -> int:
    """What the refusal of a limit that is far too small says it takes."""
    with pytest.raises(vae_core.BudgetError) as refused:
        vae.plan("decode", width=352, height=256, memory_limit=1 << 20)
    said = re.search(r"needs ([\d.]+) MiB", str(refused.value))
    assert said is not None
    return int((float(said[1]) + 0.01) * 2**20)
