"""Configuration and variant of a video VAE: from the tensors, a config.json and what is asked for; contradictions are refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from checkpoint_files import header_only, save
from clip_networks import SIZE_NAMES, SIZES, full, on_meta, small, spelled
from clip_twins import CONFIGS

from vae_core.checkpoint import assign, open_checkpoint
from vae_core.checkpoint.config import FIELDS
from vae_core.checkpoint.keymaps import WAN_ORIGINAL
from vae_core.errors import CheckpointError, StateDictError, UnknownModelError
from vae_core.nets.wan import LATENTS_MEAN, LATENTS_STD
from vae_core.spec import COGVIDEOX, KL, QWEN, VARIANTS, WAN

# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, keymap, size", SIZES, ids=SIZE_NAMES)
def test_shapes_show_the_configuration(tmp_path, name, keymap, size):
    state = on_meta(name, size).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in spelled(keymap, state).items()}
    opened = open_checkpoint(header_only(tmp_path / "x.safetensors", shapes))
    assert {field: opened.config[field] for field in size} == size
    assert dict(opened.shapes) == {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert opened.config.keys() == FIELDS[name].keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_are_those_of_the_network(name):
    ours = {field.name: field.default for field in dataclasses.fields(CONFIGS[name])}
    theirs = {field: rule.default for field, rule in FIELDS[name].items()}
    kinds = ("down_block_types", "up_block_types")
    assert ours.keys() == theirs.keys()
    assert all(ours[field] == theirs[field] for field in ours if field not in kinds)
    assert all(rule.fits(rule.default) for rule in FIELDS[name].values())


@pytest.mark.parametrize("stored, z_dim", [("original", 4), ("diffusers", 4), ("diffusers", 32)])
def test_statistics_of_other_latents_have_to_be_stated(tmp_path, stored, z_dim):
    statistics = {"latents_mean": (0.5,) * z_dim, "latents_std": (2.0,) * z_dim}
    state = small(WAN, z_dim=z_dim, **statistics)
    path = save(tmp_path / "x.safetensors", spelled(WAN_ORIGINAL, state) if stored == "original" else state)
    with pytest.raises(
        CheckpointError, match=rf"`latents_mean` has 16 entries for {z_dim} latent .* states latents_mean"
    ):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": WAN, **statistics}))
    assert {name: open_checkpoint(path).config[name] for name in statistics} == statistics


def test_two_levels_cannot_halve_time_twice(tmp_path):
    state = small(COGVIDEOX, block_out_channels=(32, 32), temporal_compression_ratio=2)
    path = save(tmp_path / "x.safetensors", state)
    with pytest.raises(CheckpointError, match=r"2 levels cannot halve time to a temporal_compression_ratio of 4"):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": COGVIDEOX, "temporal_compression_ratio": 2}))
    assign(on_meta(COGVIDEOX, open_checkpoint(path).config), open_checkpoint(path))


WAN_CONFIG = {
    "_class_name": "AutoencoderKLWan",
    "_diffusers_version": "0.33.0.dev0",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "latents_mean": list(LATENTS_MEAN),
    "latents_std": list(LATENTS_STD),
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}
COGVIDEOX_CONFIG = {
    "_class_name": "AutoencoderKLCogVideoX",
    "_diffusers_version": "0.30.0.dev0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "layers_per_block": 3,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 1.15258426,
    "shift_factor": None,
    "temporal_compression_ratio": 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
WAN_EXTENDED = WAN_CONFIG | {
    "clip_output": False,
    "decoder_base_dim": None,
    "in_channels": 3,
    "is_residual": False,
    "out_channels": 3,
    "patch_size": None,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}
# The fields that the vae/config.json of each published model has.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Wan2.1-T2V-14B": ("wan21", WAN_CONFIG),
    "Wan2.2-T2V-A14B": ("wan21", WAN_EXTENDED),
    "Qwen-Image": ("qwen-image", WAN_CONFIG | {"_class_name": "AutoencoderKLQwenImage"}),
    "Qwen-Image-Layered": (
        "qwen-image-layered",
        WAN_CONFIG | {"_class_name": "AutoencoderKLQwenImage", "input_channels": 4},
    ),
    "CogVideoX-2b": ("cogvideox-2b", COGVIDEOX_CONFIG),
    "CogVideoX-5b": ("cogvideox-5b", COGVIDEOX_CONFIG | {"scaling_factor": 0.7}),
    "CogVideoX-5b-I2V": ("cogvideox-5b", COGVIDEOX_CONFIG | {"scaling_factor": 0.7, "invert_scale_latents": False}),
    "CogVideoX1.5-5B": ("cogvideox-1.5", COGVIDEOX_CONFIG | {"scaling_factor": 0.7, "invert_scale_latents": True}),
}


@pytest.mark.parametrize("variant, config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_configurations(tmp_path, variant, config):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", full(variant))
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path)
    assert opened.variant is VARIANTS[variant] and opened.candidates == ()
    assert not any("does not take" in reason for reason in opened.why)
    stated = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items() if not name.startswith("_")}
    assert {name: opened.config[name] for name in stated} == stated


def test_a_field_that_nobody_knows_is_named(tmp_path):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", full("qwen-image-layered"))
    config = WAN_CONFIG | {"_class_name": QWEN, "input_channels": 4, "mood": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any("ignored: mood" in reason for reason in open_checkpoint(tmp_path).why)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"attn_scales": [0.5]}, r"`attn_scales` is \[0.5\], and should be \[\]"),
        ({"is_residual": True}, "should be false: true is Wan 2.2's"),
        ({"patch_size": 2}, "should be null: patches are Wan 2.2's"),
        ({"dropout": 0.1}, "should be 0.0"),
        ({"latents_std": None}, "should be a list of numbers above 0"),
        ({"temperal_downsample": [0, 1, 1]}, "should be a list of true and false"),
        ({"temperal_downsample": [True, True, True]}, "and the tensors have"),
        ({"base_dim": 64}, "says base_dim 64, and the tensors have 96"),
        (
            {"_class_name": COGVIDEOX},
            "those of AutoencoderKLWan or AutoencoderKLQwenImage, and .* says AutoencoderKLCog",
        ),
        ({"_class_name": KL}, "says AutoencoderKL$"),
    ],
)
def test_configurations_that_contradict(tmp_path, wrong, sentence):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", full("wan21"))
    config = {"_class_name": wrong["_class_name"]} if "_class_name" in wrong else WAN_CONFIG | wrong
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(tmp_path)


# --- which variant ----------------------------------------------------------------------------------------------------


def test_without_a_config_the_wanted_class_decides_between_wan_and_qwen(tmp_path):
    path = header_only(tmp_path / "vae.safetensors", full("wan21"))
    unsure = open_checkpoint(path)
    assert unsure.candidates == ("wan21", "qwen-image") and not unsure.config_is_known
    wanted = open_checkpoint(path, network=QWEN)
    assert wanted.variant is VARIANTS["qwen-image"] and wanted.config["input_channels"] == 3
    assert open_checkpoint(path, variant="qwen-image").config.keys() == FIELDS[QWEN].keys()
    assert open_checkpoint(path, network=COGVIDEOX).candidates == unsure.candidates
    (tmp_path / "config.json").write_text(json.dumps(WAN_CONFIG))
    assert open_checkpoint(path, network=QWEN).variant is VARIANTS["wan21"]


def test_what_is_asked_for_goes_before_the_class_of_a_config(tmp_path):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", full("wan21"))
    (tmp_path / "config.json").write_text(json.dumps(WAN_CONFIG))
    asked = open_checkpoint(tmp_path, variant="qwen-image")
    assert asked.variant is VARIANTS["qwen-image"] and asked.config.keys() == FIELDS[QWEN].keys()


def test_a_variant_that_does_not_fit(tmp_path):
    path = header_only(tmp_path / "vae.safetensors", full("qwen-image-layered"))
    with pytest.raises(StateDictError, match=r"do not fit variant 'wan21'; they fit 'qwen-image-layered'"):
        open_checkpoint(path, variant="wan21")
    with pytest.raises(
        StateDictError, match=r"fit none of the known ones \(widths \[8, 16, 32, 32\], 16 latent channels\)"
    ):
        open_checkpoint(save(tmp_path / "small.safetensors", small(WAN)), variant="wan21")


@pytest.mark.parametrize(
    "folder, variant",
    [("Wan2.1-I2V-14B-480P", "wan21"), ("Qwen-Image-Edit-2509", "qwen-image"), ("CogVideoX-2b", "cogvideox-2b")],
)
def test_the_folder_is_a_hint(tmp_path, folder, variant):
    place = tmp_path / folder / "vae"
    place.mkdir(parents=True)
    path = header_only(place / "diffusion_pytorch_model.safetensors", full(variant))
    assert open_checkpoint(path).variant is VARIANTS[variant]


WAN22: dict[str, dict[str, tuple[int, ...]]] = {
    "original": {
        "conv1.weight": (96, 96, 1, 1, 1),
        "encoder.conv1.weight": (160, 12, 3, 3, 3),
        "encoder.downsamples.0.downsamples.0.residual.2.weight": (160, 160, 3, 3, 3),
        "decoder.middle.0.residual.0.gamma": (1024, 1, 1, 1),
        "decoder.upsamples.0.upsamples.0.residual.2.weight": (1024, 1024, 3, 3, 3),
    },
    "diffusers": {
        "encoder.conv_in.weight": (160, 12, 3, 3, 3),
        "encoder.down_blocks.0.resnets.0.norm1.gamma": (160, 1, 1, 1),
        "decoder.mid_block.resnets.0.norm1.gamma": (1024, 1, 1, 1),
        "decoder.up_blocks.0.upsampler.resample.1.weight": (1024, 1024, 3, 3),
    },
}


@pytest.mark.parametrize("prefix", ["", "vae."])
@pytest.mark.parametrize("layout", WAN22)
def test_wan22_is_refused_by_name(tmp_path, layout, prefix):
    shapes = {f"{prefix}{key}": shape for key, shape in WAN22[layout].items()}
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", shapes)
    with pytest.raises(UnknownModelError, match=r"looks like the Wan 2\.2 video VAE, which this version does not load"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(WAN_CONFIG | {"z_dim": 48, "is_residual": True, "patch_size": 2}))
    with pytest.raises(UnknownModelError, match=r"the Wan 2\.2 video VAE"):
        open_checkpoint(tmp_path)
