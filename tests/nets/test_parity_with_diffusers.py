"""The same random weights in diffusers and here give the same moments and pictures."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tiny_nets import NAMES, relative_error, tiny_config

import vae_core
from vae_core.models import CLASSES
from vae_core.spec import TINY, VARIANTS

TOLERANCE = 2e-5
"""Relative, float32: the order of summation differs where upsampling and convolution are one transposed convolution."""

KNOWN_TO_DIFFUSERS = [name for name in NAMES if "pool_mid_blocks" not in VARIANTS[name].config]


def theirs_and_ours(network: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """Both networks with the same random weights."""
    theirs_config = dict(config)
    if network != TINY:
        levels = len(config["block_out_channels"])
        theirs_config |= {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
    torch.manual_seed(0)
    theirs = getattr(diffusers, network)(**theirs_config).eval()
    ours = CLASSES[network](**config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def encoded(model: Any, x: torch.Tensor) -> torch.Tensor:
    out = model.encode(x)
    return out.latents if hasattr(out, "latents") else out.latent_dist.parameters


@pytest.mark.parametrize("name", KNOWN_TO_DIFFUSERS)
@torch.inference_mode()
def test_tiny_widths(name: str) -> None:
    theirs, ours = theirs_and_ours(VARIANTS[name].network, tiny_config(name))
    channels = ours.config.latent_channels
    for h, w in ((64, 64), (72, 40), (65, 83)):
        x = torch.rand(2, 3, h, w) * 2 - 1
        assert relative_error(encoded(ours, x), encoded(theirs, x)) <= TOLERANCE
        z = torch.randn(2, channels, h // 8, w // 8)
        assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        {"block_out_channels": (32,)},
        {"block_out_channels": (8, 24), "norm_num_groups": 4, "layers_per_block": 3, "act_fn": "relu"},
        {
            "block_out_channels": (8, 8, 16, 16, 24),
            "norm_num_groups": 4,
            "mid_block_add_attention": False,
            "act_fn": "mish",
        },
        {
            "block_out_channels": (16, 8),
            "norm_num_groups": 8,
            "in_channels": 4,
            "out_channels": 4,
            "use_quant_conv": False,
            "act_fn": "gelu",
        },
    ],
)
@torch.inference_mode()
def test_arbitrary_configurations(config: dict[str, Any]) -> None:
    theirs, ours = theirs_and_ours("AutoencoderKL", config)
    x = torch.randn(1, ours.config.in_channels, 64, 48)
    assert relative_error(encoded(ours, x), encoded(theirs, x)) <= TOLERANCE
    z = torch.randn(1, 4, 6, 7)
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) <= TOLERANCE


@torch.inference_mode()
def test_flux2_with_a_narrower_decoder() -> None:
    config = tiny_config("flux2") | {"decoder_block_out_channels": (8, 16, 24, 24)}
    theirs, ours = theirs_and_ours("AutoencoderKLFlux2", config)
    z = torch.randn(1, 8, 6, 8)
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) <= TOLERANCE


@pytest.mark.parametrize("name", ["sdxl", "flux1"])
@torch.inference_mode()
def test_full_size_at_128_px(name: str) -> None:
    theirs, ours = theirs_and_ours("AutoencoderKL", dict(VARIANTS[name].config))
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    assert relative_error(encoded(ours, x), encoded(theirs, x)) <= TOLERANCE
    z = torch.randn(1, ours.config.latent_channels, 16, 16)
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) <= TOLERANCE


def test_parameter_counts() -> None:
    """Against the published sizes (the fact sheet's figures)."""
    expected = {
        "sdxl": 83_653_863,
        "flux1": 83_819_683,
        "x4-upscaler": 55_325_927,
        "flux2": 84_046_115,
        "taesd": 2_445_063,
        "taef1": 2_458_899,
        "taef2": 1_338_528 + 1_338_499,
    }
    for name, count in expected.items():
        with torch.device("meta"):
            net = CLASSES[VARIANTS[name].network](**VARIANTS[name].config)
        assert sum(p.numel() for p in net.parameters()) == count, name


@pytest.mark.parametrize("network", ["AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderTiny"])
def test_class_defaults_are_those_of_diffusers(network: str) -> None:
    ours = dict(CLASSES[network]().config)
    theirs = {k: tuple(v) if isinstance(v, list) else v for k, v in getattr(diffusers, network)().config.items()}
    shared = [k for k in theirs if not k.startswith("_") and (network, k) != ("AutoencoderTiny", "block_out_channels")]
    assert {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}


def test_wrong_configurations_are_refused_in_a_sentence() -> None:
    for config, words in (
        ({"block_out_channels": (30,)}, "30, which norm_num_groups 32"),
        ({"block_out_channels": ()}, "block_out_channels must be positive"),
        ({"act_fn": "snake"}, "act_fn 'snake' is not known"),
        ({"layers": 2}, "has no field 'layers'"),
        ({"down_block_types": ("AttnDownBlock",)}, "DownEncoderBlock2D"),
    ):
        with pytest.raises(vae_core.ExactVAEError, match=words):
            vae_core.AutoencoderKL(**config)
