"""The CogVideoX network: equal to diffusers on the same random weights, in its own chunks."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from clips import whole
from tiny_nets import relative_error

from vae_core.errors import ConfigError
from vae_core.nets.cogvideox import (
    FRAMES_PER_CHUNK,
    LATENTS_PER_CHUNK,
    AutoencoderKLCogVideoXConfig,
    CogVideoXNetwork,
    chunks,
)

EQUAL = 2e-5
"""Relative, float32: the same operations, the upsampling convolution summed in another order."""

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 16, 32, 32),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def twins(**config: Any) -> tuple[CogVideoXNetwork, Any]:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLCogVideoX(**config).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "norm" in name:
                value.add_(torch.randn_like(value) * 0.2)
    ours = CogVideoXNetwork(AutoencoderKLCogVideoXConfig(**config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("latents", [1, 2, 3, 4, 5])
@torch.no_grad()
def test_decode_equals_diffusers(latents):
    ours, theirs = twins(**SMALL)
    z = torch.randn(1, 4, latents, 6, 5)
    made = whole(ours.decode_chunk, z, chunks(latents, LATENTS_PER_CHUNK))
    assert relative_error(made, theirs.decode(z).sample) < EQUAL


@pytest.mark.parametrize("frames", [1, 4, 5, 8, 9, 13, 17])
@torch.no_grad()
def test_encode_equals_diffusers(frames):
    ours, theirs = twins(**SMALL)
    x = torch.rand(2, 3, frames, 48, 40) * 2 - 1
    made = whole(ours.encode_chunk, x, chunks(frames, FRAMES_PER_CHUNK))
    assert relative_error(made, theirs.encode(x).latent_dist.parameters) < EQUAL


@torch.no_grad()
def test_other_levels_and_ratios():
    ours, theirs = twins(**SMALL | {"block_out_channels": (16, 32, 32, 32), "temporal_compression_ratio": 2})
    z = torch.randn(1, 4, 3, 4, 4)
    assert relative_error(whole(ours.decode_chunk, z, (3,)), theirs.decode(z).sample) < EQUAL


def test_the_published_configuration_is_the_default():
    with torch.device("meta"):
        theirs, ours = diffusers.AutoencoderKLCogVideoX(), CogVideoXNetwork(AutoencoderKLCogVideoXConfig())
    assert {k: tuple(v.shape) for k, v in ours.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }


@pytest.mark.slow
@torch.no_grad()
def test_full_size_equals_diffusers():
    ours, theirs = twins()
    z = torch.randn(1, 16, 3, 6, 6)
    pixels = theirs.decode(z).sample
    assert relative_error(whole(ours.decode_chunk, z, (3,)), pixels) < EQUAL
    assert relative_error(whole(ours.encode_chunk, pixels, (9,)), theirs.encode(pixels).latent_dist.parameters) < EQUAL


def test_clips_are_cut_as_the_weights_were_trained():
    assert chunks(49, 8) == [9, 8, 8, 8, 8, 8] and chunks(13, 2) == [3, 2, 2, 2, 2, 2]
    assert chunks(1, 8) == [1] and chunks(8, 8) == [8] and chunks(5, 2) == [3, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_out_channels": (16, 30)},
        {"temporal_compression_ratio": 3},
        {"temporal_compression_ratio": 16},
        {"use_quant_conv": True},
        {"latent_channels": 0},
    ],
)
def test_configurations_that_cannot_be_built(wrong):
    with pytest.raises(ConfigError):
        AutoencoderKLCogVideoXConfig(**SMALL | wrong)
