"""The published TAESD and TAESDXL on real photographs: streamed as whole, as diffusers computes them, and of known quality.

Left out where the weights are not beside the repository, in shared/weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from photographs import HELD_OUT, photograph
from tiny_nets import relative_error

import vae_core
from vae_core.cli.roundtrip import psnr

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "weights" / "vae_approx"

PSNR_DB = {
    "taesd": {"astronaut": 21.8, "chelsea": 25.5, "coffee": 25.7, "rocket": 27.0},
    "taesdxl": {"astronaut": 22.2, "chelsea": 26.4, "coffee": 25.7, "rocket": 28.0},
}
"""Just below what was measured: 21.87, 25.52, 25.78, 27.04, and 22.27, 26.45, 25.77, 28.01 (bf16 weights run in fp32)."""

pytestmark = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"the published weights are not in {WEIGHTS}")


@pytest.fixture(scope="module", params=PSNR_DB)
def vae(request: pytest.FixtureRequest) -> vae_core.VAE:
    return vae_core.load(WEIGHTS / f"{request.param}_decoder.safetensors", device="cpu")


@pytest.mark.parametrize("name", HELD_OUT)
def test_round_trip_whole_and_streamed(vae, name):
    pixels = photograph(name)
    latents = vae.encode(pixels, mode="whole")
    decoded = vae.decode(latents, mode="whole")
    for tile in (64, 50):
        streamed = vae.encode(pixels, tile=tile)
        assert relative_error(streamed, latents) <= 1e-5, f"encode, tile {tile}"
        # Root mean square, pixels being in [-1, 1]: relative to a dark picture it is more, on some processors 1.1e-5.
        error = (vae.decode(streamed, tile=tile) - decoded).square().mean().sqrt()
        assert error <= 1e-5, f"round trip, tile {tile}"
    quality = psnr(decoded, pixels)
    print(f"{vae.spec.name}, {name}: {quality:.2f} dB")
    assert quality >= PSNR_DB[vae.spec.name][name]


@torch.inference_mode()
def test_equal_to_diffusers(vae):
    theirs = AutoencoderTiny().eval()
    theirs.load_state_dict(vae.net.state_dict())
    pixels = photograph("astronaut")
    latents = theirs.encode(pixels).latents
    assert relative_error(vae.net.encode(pixels).latents, latents) <= 2e-5
    assert relative_error(vae.net.decode(latents).sample, theirs.decode(latents).sample) <= 2e-5
