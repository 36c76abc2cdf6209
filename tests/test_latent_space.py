"""Latents are normalised for the diffusion model as each variant's makers do it, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import NAMES
from tiny_vaes import seeded, tiny_vae

import vae_core


@pytest.mark.parametrize("name", NAMES)
def test_normalize_and_denormalize_undo_each_other(name: str) -> None:
    vae = tiny_vae(name, torch.float64)
    shake_batch_norm(vae)
    z = torch.randn(2, vae.spec.latent_channels, 6, 4, dtype=torch.float64, generator=seeded())
    model = vae.normalize(z)
    ph, pw = vae.spec.patch
    assert model.shape == (2, vae.spec.packed_channels, 6 // ph, 4 // pw)
    assert torch.allclose(vae.denormalize(model), z, rtol=0, atol=1e-12)
    assert torch.allclose(vae.normalize(vae.denormalize(model)), model, rtol=0, atol=1e-12)


SCALE_AND_SHIFT = {
    "sd1": (0.18215, 0.0),
    "sd2": (0.18215, 0.0),
    "sdxl": (0.13025, 0.0),
    "sd3": (1.5305, 0.0609),
    "flux1": (0.3611, 0.1159),
    "x4-upscaler": (0.08333, 0.0),
    **dict.fromkeys(("taesd", "taesdxl", "taesd3", "taef1"), (1.0, 0.0)),
}
"""ARCHITECTURES.md §1.6, §3.1 and §3.8."""


@pytest.mark.parametrize("name", SCALE_AND_SHIFT)
def test_normalize_by_scale_and_shift(name: str) -> None:
    vae = tiny_vae(name, torch.float64)
    scale, shift = SCALE_AND_SHIFT[name]
    z = torch.randn(2, vae.spec.latent_channels, 6, 4, dtype=torch.float64, generator=seeded())
    assert torch.allclose(vae.normalize(z), (z - shift) * scale, rtol=1e-12, atol=1e-12)


def test_normalize_playground() -> None:
    vae = tiny_vae("playground25", torch.float64)
    z = torch.randn(2, 4, 6, 4, dtype=torch.float64, generator=seeded())
    expected = torch.empty_like(z)
    statistics = ((-1.6574, 8.4927), (1.886, 5.9022), (-1.383, 6.5498), (2.5155, 5.2299))
    for channel, (mean, std) in enumerate(statistics):
        expected[:, channel] = (z[:, channel] - mean) * 0.5 / std
    assert torch.allclose(vae.normalize(z), expected, rtol=1e-12, atol=1e-12)


def test_normalize_taef2_only_packs() -> None:
    vae = tiny_vae("taef2")
    z = torch.randn(1, 32, 6, 4, generator=seeded())
    packed = z.view(1, 32, 3, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 128, 3, 2)
    assert torch.equal(vae.normalize(z), packed) and torch.equal(vae.denormalize(packed), z)
    assert vae.spec.multiple == (16, 16) and vae.spec.packed_channels == 128


def test_normalize_flux2() -> None:
    """Packed and normalised as in diffusers 0.42, Flux2Pipeline._patchify_latents and _encode_vae_image."""
    vae: Any = tiny_vae("flux2", torch.float64)
    shake_batch_norm(vae)
    z = torch.randn(2, 8, 6, 4, dtype=torch.float64, generator=seeded())
    packed = z.view(2, 8, 3, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 32, 3, 2)
    mean = vae.net.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.net.bn.running_var.view(1, -1, 1, 1) + 1e-4)
    assert torch.allclose(vae.normalize(z), (packed - mean) / std, rtol=1e-12, atol=1e-12)
    # Channel 4c + 2·row + column of the packed latent is channel c of the raw one, at that row and column of each 2 × 2.
    assert torch.allclose(
        vae.normalize(z)[0, 4 * 5 + 2 * 1 + 0, 2, 1], ((z[0, 5, 5, 2] - mean[0, 22]) / std[0, 22])[0, 0]
    )
    vae.net.bn.eval()
    assert torch.allclose(vae.normalize(z), vae.net.bn(packed), rtol=1e-12, atol=1e-12)
    with pytest.raises(vae_core.InputError, match="cannot be packed"):
        vae.normalize(z[..., :3])


def shake_batch_norm(vae: Any) -> None:
    """Statistics as trained ones might be; fresh ones are 0 and 1."""
    if hasattr(vae.net, "bn"):
        torch.nn.init.uniform_(vae.net.bn.running_mean, -2, 2, generator=seeded(1))
        torch.nn.init.uniform_(vae.net.bn.running_var, 0.1, 3, generator=seeded(2))


def test_every_variant_has_its_numbers_tested() -> None:
    assert {*SCALE_AND_SHIFT, "playground25", "flux2", "taef2"} == set(NAMES)
