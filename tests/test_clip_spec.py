"""What the spec says of video VAEs: scale, channels, latent conventions, and whose latents some are."""

from __future__ import annotations

import pytest
from clip_twins import CONFIGS

from vae_core.nets.cogvideox import AutoencoderKLCogVideoXConfig
from vae_core.nets.wan import LATENTS_MEAN, LATENTS_STD, AutoencoderKLWanConfig
from vae_core.spec import CLIPS, COGVIDEOX, VARIANTS, Scale, Spec, whose_latent


def spec_of(name: str) -> Spec:
    row = VARIANTS[name]
    return Spec.of(row, dict(CONFIGS[row.network](**row.config)))


CLIP_NAMES = [name for name, row in VARIANTS.items() if row.network in CLIPS]


@pytest.mark.parametrize("name", CLIP_NAMES)
def test_specs(name):
    row = VARIANTS[name]
    spec = spec_of(name)
    assert spec.clip and spec.scale == Scale(4, 8, 8) and spec.multiple == (8, 8)
    assert spec.latent_channels == spec.packed_channels == 16
    assert spec.pixel_channels == (4 if name == "qwen-image-layered" else 3)
    assert spec.fp16_safe and spec.encode_dtypes == ()
    if row.network == COGVIDEOX:
        assert spec.latents_mean is None and spec.scaling_factor == row.config["scaling_factor"]
        assert spec.inverts_scale == (name == "cogvideox-1.5")
    else:
        assert (spec.latents_mean, spec.latents_std) == (LATENTS_MEAN, LATENTS_STD) and spec.scaling_factor == 1


def test_conventions():
    wan, qwen, cogvideox, later = map(spec_of, ("wan21", "qwen-image", "cogvideox-5b", "cogvideox-1.5"))
    assert wan.convention == qwen.convention == "z_model = (z - mean) / std, per channel"
    assert cogvideox.convention == "z_model = z · 0.7"
    assert later.convention == "z_model = z · 0.7; of a picture to animate, z / 0.7"


def test_a_scale_comes_from_the_configuration():
    row = VARIANTS["wan21"]
    config = AutoencoderKLWanConfig(dim_mult=(1, 2, 4), temperal_downsample=(False, True))
    assert Spec.of(row, dict(config)).scale == Scale(2, 4, 4)
    eight = AutoencoderKLCogVideoXConfig(temporal_compression_ratio=8)
    assert Spec.of(VARIANTS["cogvideox-2b"], dict(eight)).scale == Scale(8, 8, 8)


def test_whose_latents_of_16_channels_are():
    told = whose_latent(16)
    assert told[2:] == ("Wan 2.1", "Qwen-Image", "CogVideoX", "HunyuanVideo")
