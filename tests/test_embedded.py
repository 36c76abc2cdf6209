"""The VAE that comes with the package: small, free, and good enough to look at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from photographs import HELD_OUT, photograph
from safetensors import safe_open

import vae_core
from vae_core.cli.roundtrip import psnr
from vae_core.media import read_latents

EMBEDDED = Path(vae_core.__file__).parent / "embedded"
WEIGHTS = EMBEDDED / "diffusion_pytorch_model.safetensors"
PHOTOGRAPH = EMBEDDED / "photograph.safetensors"


@pytest.fixture(scope="module")
def vae() -> vae_core.VAE:
    return vae_core.load_embedded(device="cpu")


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_it_is_small_and_stored_in_half_precision(vae):
    assert WEIGHTS.stat().st_size <= 5_000_000
    assert 1_000_000 <= sum(weight.numel() for weight in vae.net.parameters()) <= 4_000_000
    assert vae.checkpoint.dtype is torch.float16 and vae.dtype is torch.float32


def test_its_topology_is_that_of_the_large_ones(vae):
    assert vae.spec.scale.h == 8 and vae.spec.latent_channels == 4
    assert vae.net.config.mid_block_add_attention and isinstance(vae.net, vae_core.AutoencoderKL)


def test_licence_and_origin_are_written_in_the_files():
    weights, picture = metadata(WEIGHTS), metadata(PHOTOGRAPH)
    assert weights["license"] == "MIT" and picture["license"] == "public domain"
    assert "tools/train_embedded.py" in weights["trained_by"] and weights["training_data"] and picture["origin"]
    assert all(name in weights["held_out"] for name in HELD_OUT)


def test_held_out_photographs_survive_the_round_trip(vae):
    quality = {}
    for name in HELD_OUT:
        pixels = photograph(name)
        quality[name] = psnr(vae.decode(vae.encode(pixels)), pixels)
    mean = sum(quality.values()) / len(quality)
    print(", ".join(f"{name} {value:.2f} dB" for name, value in quality.items()), f"mean {mean:.2f} dB")
    assert mean >= 23


def test_the_photograph_is_small_and_of_the_size_it_says(vae):
    assert PHOTOGRAPH.stat().st_size < 100_000
    size = re.search(r"(\d+)x(\d+)", metadata(PHOTOGRAPH)["picture"])
    assert size is not None
    pixels = vae.decode(read_latents(PHOTOGRAPH).tensor)
    assert pixels.shape == (1, 3, int(size[2]), int(size[1]))
