"""The command line keeps a memory limit at full size: 2048×2048 px, the embedded VAE, 70 % of what the whole run needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.meter import Meter
from vae_core.media.latents import read_latents, write_latents

EMBEDDED = Path(__file__).resolve().parents[2] / "vae_core" / "embedded" / "photograph.safetensors"


@pytest.fixture
def two_threads() -> Iterator[None]:
    """These networks are large enough for two threads to pay."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_2048_px_in_70_percent_of_the_whole_run(run, tmp_path: Path, two_threads: None) -> None:
    planned = run("plan", "--width", 2048, "--height", 2048, "--json")
    assert planned.status == 0, planned.err
    whole = next(r for r in json.loads(planned.out)["rungs"] if r["name"] == "whole")
    limit = int(whole["device_bytes"] * 0.7)

    photograph = read_latents(EMBEDDED)
    enlarged = torch.nn.functional.interpolate(photograph.tensor.float(), size=(256, 256), mode="bilinear")
    write_latents(tmp_path / "z.safetensors", replace(photograph, tensor=enlarged, size=None))
    with Meter() as meter:
        within = run("decode", tmp_path / "z.safetensors", "-o", tmp_path / "within.png", "--memory", limit)
    assert within.status == 0, within.err
    assert meter.peak["cpu"] <= limit

    unlimited = run("decode", tmp_path / "z.safetensors", "-o", tmp_path / "whole.png", "--mode", "whole")
    assert unlimited.status == 0, unlimited.err
    a, b = (np.asarray(Image.open(tmp_path / name), dtype=np.int16) for name in ("within.png", "whole.png"))
    assert a.shape == (2048, 2048, 3)
    # Equal but for bytes that lie within float32 rounding of a half.
    difference = np.abs(a - b)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4
