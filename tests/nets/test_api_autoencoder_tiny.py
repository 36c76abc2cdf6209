"""AutoencoderTiny has the methods that diffusers documents, with the same names, arguments and results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_nets import relative_error, tiny_net
from twins import encoded, latents, picture, twins

import vae_core

SAME = 2e-5
"""Relative, float32, between diffusers and here."""

NAMES = ("taesd", "taesd3")
"""With 4 and with 16 channels."""


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_encode_and_decode(name: str) -> None:
    theirs, ours = twins(name)
    x, z = picture(43, 56, batch=2), latents(ours, 40, 56, batch=2) * 4  # far enough for the soft clamp to show
    output, (made,) = ours.encode(x), ours.encode(x, return_dict=False)
    assert isinstance(output, vae_core.AutoencoderTinyOutput)
    assert torch.equal(output.latents, made) and made.shape == (2, ours.config.latent_channels, 6, 7)
    assert relative_error(made, theirs.encode(x, return_dict=False)[0]) <= SAME
    output, (pixels,) = ours.decode(z), ours.decode(z, return_dict=False)
    assert isinstance(output, vae_core.DecoderOutput)
    assert torch.equal(output.sample, pixels)
    assert torch.equal(
        ours.decode(z, torch.Generator()).sample, pixels
    )  # the second argument here, the third of AutoencoderKL
    assert relative_error(pixels, theirs.decode(z, return_dict=False)[0]) <= SAME


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_forward_goes_through_bytes(name: str) -> None:
    theirs, ours = twins(name)
    x = picture(40, 56, batch=2)
    for model in (theirs, ours):  # latents of some size, or all of them round to the same few bytes
        model.encoder.layers[-1].weight.data *= 100
    latents = ours.encode(x).latents
    # Where rounding is a tie but for the last bits, the two may part: on these weights and this picture they do not.
    assert relative_error(ours(x).sample, theirs(x).sample) <= SAME
    assert torch.equal(ours(x, return_dict=False)[0], ours(x).sample)
    stored = ours.scale_latents(latents).mul(255).round()
    assert stored.min() == 0 and stored.max() == 255 and len(stored.unique()) > 30
    assert torch.equal(ours(x).sample, ours.decode(ours.unscale_latents(stored / 255)).sample)
    assert relative_error(ours(x).sample, ours.decode(latents).sample) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@torch.inference_mode()
def test_forward_in_other_dtypes(dtype: torch.dtype) -> None:
    """diffusers fails here: bytes over 255.0 are float32."""
    _, ours = twins("taesd", dtype)
    x = picture(40, 56, dtype)
    assert ours(x).sample.dtype == dtype
    exact: Any = tiny_net("taesd")
    assert relative_error(ours(x).sample, exact(x.float()).sample) <= 0.05


@pytest.mark.parametrize("name", NAMES)
def test_scale_and_unscale_latents(name: str) -> None:
    theirs, ours = twins(name)
    z = torch.linspace(-4, 4, 100)
    assert torch.equal(ours.scale_latents(z), theirs.scale_latents(z))
    assert ours.scale_latents(z).min() == 0 and ours.scale_latents(z).max() == 1
    unit = torch.linspace(0, 1, 100)
    assert torch.equal(ours.unscale_latents(unit), theirs.unscale_latents(unit))
    assert torch.allclose(ours.unscale_latents(ours.scale_latents(z)), z.clamp(-3, 3), atol=1e-6)


def test_scale_latents_follow_the_configuration() -> None:
    theirs, ours = twins("taesd", latent_magnitude=5, latent_shift=0.25)
    z = torch.linspace(-4, 4, 100)
    assert torch.equal(ours.scale_latents(z), theirs.scale_latents(z))
    assert torch.equal(ours.unscale_latents(z), theirs.unscale_latents(z))


@torch.inference_mode()
def test_slicing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = tiny_net("taesd")
    x, z = picture(40, 56, batch=3), latents(net, 40, 56, batch=3)
    whole = encoded(net, x), net.decode(z).sample
    seen: list[int] = []
    for name in ("encode_field", "decode_field"):
        run = getattr(net, name)
        monkeypatch.setattr(net, name, lambda f, run=run: (seen.append(f.shape[0]), run(f))[1])
    net.enable_slicing()
    assert relative_error(encoded(net, x), whole[0]) <= 1e-5
    assert relative_error(net.decode(z).sample, whole[1]) <= 1e-5
    net.disable_slicing()
    net.decode(z)
    assert seen == [1] * 6 + [3]


@torch.inference_mode()
def test_tiling_is_always_on_once_enabled() -> None:
    net: Any = tiny_net("taesd")
    x, z = picture(72, 88), latents(net, 72, 88)
    whole = encoded(net, x), net.decode(z).sample
    net.tile_sample_min_size, net.tile_latent_min_size = 64, 8
    net.enable_tiling()
    assert not torch.allclose(encoded(net, x), whole[0], rtol=0, atol=1e-4)
    assert not torch.allclose(net.decode(z).sample, whole[1], rtol=0, atol=1e-4)
    net.disable_tiling()
    assert torch.equal(encoded(net, x), whole[0])
    assert torch.equal(net.decode(z).sample, whole[1])


# --- TAEF2, which diffusers does not know -----------------------------------------------------------------------------


@torch.inference_mode()
def test_taef2_shapes() -> None:
    net: Any = tiny_net("taef2")
    for h, w in ((40, 56), (43, 17), (8, 8)):
        z = encoded(net, picture(h, w, batch=2))
        assert z.shape == (2, 32, -(-h // 8), -(-w // 8))
        assert net.decode(z).sample.shape == (2, 3, z.shape[2] * 8, z.shape[3] * 8)


def reached(net: Any, corner: int) -> torch.Tensor:
    """Which pixels change when the latent's last rows and columns do."""
    z = torch.randn(
        1, net.config.latent_channels, 36, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    other = z.clone()
    other[..., -corner:, -corner:] += 1
    with torch.inference_mode():
        return (net.decode(other).sample - net.decode(z).sample).abs().amax(1) > 0


def test_taef2_couples_the_whole_picture() -> None:
    """Its lowest resolution is normalised over the picture; TAESD's cells know no more than their neighbourhood."""
    assert reached(tiny_net("taef2", torch.float64), 2).all()
    local = reached(tiny_net("taesd", torch.float64), 2)
    assert local[..., -16:, -16:].any()
    assert not local[..., : 8 * (36 - 2 - 19), : 8 * (36 - 2 - 19)].any(), (
        "farther than 19 latents (ARCHITECTURES.md §1.2)"
    )


@torch.inference_mode()
def test_taef2_streams_exactly() -> None:
    net: Any = tiny_net("taef2", torch.float64)
    z = latents(net, 136, 104, torch.float64)
    whole = vae_core.VAE.of(net).decode(z, mode="whole")
    assert relative_error(vae_core.VAE.of(net).decode(z, tile=32), whole) <= 1e-12
