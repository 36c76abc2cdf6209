"""The Wan network: equal to diffusers on the same random weights, whatever the chunks."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from clips import whole
from tiny_nets import relative_error

from vae_core.errors import ConfigError
from vae_core.nets.wan import LATENTS_MEAN, LATENTS_STD, AutoencoderKLWanConfig, WanNetwork

EQUAL = 2e-5
"""Relative, float32: the same operations, the upsampling convolution summed in another order."""

SMALL: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": (0.0,) * 4,
    "latents_std": (1.0,) * 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "other decoder, RGBA": SMALL | {"decoder_base_dim": 16, "in_channels": 4, "out_channels": 4},
    "three levels": SMALL | {"dim_mult": (1, 2, 4), "temperal_downsample": (True, False), "num_res_blocks": 2},
}


def twins(config: dict[str, Any]) -> tuple[WanNetwork, Any]:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(**{k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if name.endswith("gamma"):
                value.add_(torch.randn_like(value) * 0.2)
    ours = WanNetwork(AutoencoderKLWanConfig(**config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("latents", [1, 2, 5])
@torch.no_grad()
def test_decode_equals_diffusers(name, latents):
    ours, theirs = twins(CONFIGS[name])
    z = torch.randn(1, 4, latents, 6, 5)
    expected = theirs.decode(z).sample
    for chunks in {(1, *[1] * (latents - 1)), (1, latents - 1) if latents > 1 else (1,)}:
        made = whole(ours.decode_chunk, z, chunks).clamp(-1, 1)
        assert relative_error(made, expected) < EQUAL


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_encode_equals_diffusers(name, frames):
    ours, theirs = twins(CONFIGS[name])
    x = torch.rand(2, CONFIGS[name].get("in_channels", 3), frames, 48, 40) * 2 - 1
    expected = theirs.encode(x).latent_dist.parameters
    for chunks in {(1, *[4] * (frames // 4)), (1, frames - 1) if frames > 1 else (1,)}:
        assert relative_error(whole(ours.encode_chunk, x, chunks), expected) < EQUAL


def test_the_published_configuration_is_the_default():
    ours, theirs = AutoencoderKLWanConfig(), diffusers.AutoencoderKLWan
    with torch.device("meta"):
        reference = theirs()
        network = WanNetwork(ours)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == {
        k: tuple(v.shape) for k, v in reference.state_dict().items()
    }
    assert list(LATENTS_MEAN) == reference.config.latents_mean and list(LATENTS_STD) == reference.config.latents_std


@pytest.mark.slow
@torch.no_grad()
def test_full_size_equals_diffusers():
    ours, theirs = twins({})
    z = torch.randn(1, 16, 2, 6, 6)
    pixels = theirs.decode(z).sample
    assert relative_error(whole(ours.decode_chunk, z, (1, 1)).clamp(-1, 1), pixels) < EQUAL
    assert (
        relative_error(whole(ours.encode_chunk, pixels, (1, 4)), theirs.encode(pixels).latent_dist.parameters) < EQUAL
    )


@pytest.mark.parametrize(
    "wrong",
    [{"z_dim": 8}, {"dim_mult": ()}, {"base_dim": 0}, {"temperal_downsample": (True,)}, {"latents_mean": (0.0,)}],
)
def test_configurations_that_cannot_be_built(wrong):
    with pytest.raises(ConfigError):
        AutoencoderKLWanConfig(**wrong)


@torch.enable_grad()
def test_gradients_flow_through_chunks():
    ours, _ = twins(SMALL)
    z = torch.randn(1, 4, 3, 4, 4, requires_grad=True)
    whole(ours.decode_chunk, z, (1, 2))[:, :, -1].sum().backward()
    assert z.grad is not None and (z.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all(), (
        "the last frame depends on all latents"
    )
