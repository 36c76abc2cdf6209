"""The video VAEs of Wan 2.1, Qwen-Image and CogVideoX: names, configurations, variants, strict loading, saving."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import random_checkpoints
import torch
from checkpoint_files import REFERENCE, assert_same, build, full_shapes, header_only, save, state_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vae_core.checkpoint import (
    assign,
    comfyui_names,
    open_checkpoint,
    open_state_dict,
    save_diffusers,
    save_flax,
    save_ldm,
    save_taesd_pair,
)
from vae_core.checkpoint.config import FIELDS
from vae_core.checkpoint.keymaps import COGVIDEOX_ORIGINAL, WAN_ORIGINAL, Keymap, Numbering
from vae_core.errors import CheckpointError, InputError, StateDictError, UnknownModelError
from vae_core.nets.cogvideox import AutoencoderKLCogVideoXConfig, CogVideoXNetwork
from vae_core.nets.wan import (
    LATENTS_MEAN,
    LATENTS_STD,
    AutoencoderKLQwenImageConfig,
    AutoencoderKLWanConfig,
    WanNetwork,
)
from vae_core.spec import CLIPS, COGVIDEOX, KL, QWEN, VARIANTS, WAN, Scale, Spec, whose_latent

WAN_SIZES: dict[str, dict[str, Any]] = {
    "published": {},
    "one block a level": {"base_dim": 8, "num_res_blocks": 1},
    "three blocks a level": {"base_dim": 8, "num_res_blocks": 3},
    "three levels": {"base_dim": 8, "dim_mult": (1, 2, 4), "temperal_downsample": (True, False)},
    "one level": {"base_dim": 8, "dim_mult": (2,), "temperal_downsample": ()},
    "another decoder": {"base_dim": 8, "decoder_base_dim": 16, "in_channels": 4, "out_channels": 3},
}
COGVIDEOX_SIZES: dict[str, dict[str, Any]] = {
    "published": {},
    "three levels": {"block_out_channels": (32, 64, 32), "layers_per_block": 2, "latent_channels": 4},
    "one block a level, RGBA": {
        "block_out_channels": (32, 32, 32),
        "layers_per_block": 1,
        "in_channels": 4,
        "out_channels": 4,
    },
}


def network(name: str, config: Any) -> nn.Module:
    """One of ours, under `with torch.device("meta")` without weights."""
    fields = {key: value for key, value in dict(config).items() if key in FIELDS[name]}
    if name == COGVIDEOX:
        return CogVideoXNetwork(AutoencoderKLCogVideoXConfig(**fields))
    return WanNetwork((AutoencoderKLQwenImageConfig if name == QWEN else AutoencoderKLWanConfig)(**fields))


def on_meta(name: str, config: Any) -> nn.Module:
    with torch.device("meta"):
        return network(name, config)


SMALL: dict[str, dict[str, Any]] = {
    WAN: {"base_dim": 8},
    QWEN: {"base_dim": 8},
    COGVIDEOX: {"block_out_channels": (32, 32, 64), "layers_per_block": 1},
}


def small(name: str, **config: Any) -> dict[str, Tensor]:
    """The random weights of a narrow network, under our names."""
    torch.manual_seed(0)
    return state_of(network(name, SMALL[name] | config))


def spelled(keymap: Keymap, state: dict[str, Tensor]) -> dict[str, Tensor]:
    at = Numbering(state)
    return dict(keymap.theirs(name, tensor, at) for name, tensor in state.items())


SIZES = [(WAN, WAN_ORIGINAL, size) for size in WAN_SIZES.values()]
SIZES += [(COGVIDEOX, COGVIDEOX_ORIGINAL, size) for size in COGVIDEOX_SIZES.values()]
SIZE_NAMES = [f"wan, {size}" for size in WAN_SIZES] + [f"cogvideox, {size}" for size in COGVIDEOX_SIZES]


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, keymap, size", SIZES, ids=SIZE_NAMES)
def test_names_go_there_and_back(name, keymap, size):
    state = on_meta(name, size).state_dict()
    theirs = spelled(keymap, state)
    assert len(theirs) == len(state)
    at = Numbering(theirs)
    back = {keymap.ours(key, tuple(tensor.shape), at)[0]: tensor for key, tensor in theirs.items()}
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in state.items()}


# wan/modules/vae.py of Wan-Video/Wan2.1, as ARCHITECTURES.md 3.3 lists them.
WAN_NAMES = {
    "conv1.weight": "quant_conv.weight",
    "conv2.bias": "post_quant_conv.bias",
    "encoder.conv1.weight": "encoder.conv_in.weight",
    "encoder.downsamples.0.residual.0.gamma": "encoder.down_blocks.0.norm1.gamma",
    "encoder.downsamples.0.residual.2.weight": "encoder.down_blocks.0.conv1.weight",
    "encoder.downsamples.1.residual.3.gamma": "encoder.down_blocks.1.norm2.gamma",
    "encoder.downsamples.1.residual.6.bias": "encoder.down_blocks.1.conv2.bias",
    "encoder.downsamples.2.resample.1.weight": "encoder.down_blocks.2.resample.1.weight",
    "encoder.downsamples.3.shortcut.weight": "encoder.down_blocks.3.conv_shortcut.weight",
    "encoder.downsamples.5.resample.1.bias": "encoder.down_blocks.5.resample.1.bias",
    "encoder.downsamples.5.time_conv.weight": "encoder.down_blocks.5.time_conv.weight",
    "encoder.downsamples.6.shortcut.bias": "encoder.down_blocks.6.conv_shortcut.bias",
    "encoder.downsamples.8.time_conv.bias": "encoder.down_blocks.8.time_conv.bias",
    "encoder.downsamples.10.residual.6.weight": "encoder.down_blocks.10.conv2.weight",
    "encoder.middle.0.residual.0.gamma": "encoder.mid_block.resnets.0.norm1.gamma",
    "encoder.middle.1.norm.gamma": "encoder.mid_block.attentions.0.norm.gamma",
    "encoder.middle.1.to_qkv.weight": "encoder.mid_block.attentions.0.to_qkv.weight",
    "encoder.middle.1.proj.bias": "encoder.mid_block.attentions.0.proj.bias",
    "encoder.middle.2.residual.6.weight": "encoder.mid_block.resnets.1.conv2.weight",
    "encoder.head.0.gamma": "encoder.norm_out.gamma",
    "encoder.head.2.weight": "encoder.conv_out.weight",
    "decoder.conv1.bias": "decoder.conv_in.bias",
    "decoder.middle.0.residual.0.gamma": "decoder.mid_block.resnets.0.norm1.gamma",
    "decoder.middle.2.residual.2.bias": "decoder.mid_block.resnets.1.conv1.bias",
    "decoder.upsamples.0.residual.0.gamma": "decoder.up_blocks.0.resnets.0.norm1.gamma",
    "decoder.upsamples.2.residual.6.weight": "decoder.up_blocks.0.resnets.2.conv2.weight",
    "decoder.upsamples.3.resample.1.weight": "decoder.up_blocks.0.upsamplers.0.resample.1.weight",
    "decoder.upsamples.3.time_conv.weight": "decoder.up_blocks.0.upsamplers.0.time_conv.weight",
    "decoder.upsamples.4.residual.2.weight": "decoder.up_blocks.1.resnets.0.conv1.weight",
    "decoder.upsamples.4.shortcut.weight": "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
    "decoder.upsamples.7.time_conv.bias": "decoder.up_blocks.1.upsamplers.0.time_conv.bias",
    "decoder.upsamples.10.residual.3.gamma": "decoder.up_blocks.2.resnets.2.norm2.gamma",
    "decoder.upsamples.11.resample.1.bias": "decoder.up_blocks.2.upsamplers.0.resample.1.bias",
    "decoder.upsamples.14.residual.6.bias": "decoder.up_blocks.3.resnets.2.conv2.bias",
    "decoder.head.0.gamma": "decoder.norm_out.gamma",
    "decoder.head.2.bias": "decoder.conv_out.bias",
}
# sat/vae_modules/cp_enc_dec.py of THUDM/CogVideo, as ARCHITECTURES.md 3.2 lists them.
COGVIDEOX_NAMES = {
    "encoder.conv_in.conv.weight": "encoder.conv_in.conv.weight",
    "encoder.down.0.block.0.norm1.weight": "encoder.down_blocks.0.resnets.0.norm1.weight",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.2.downsample.conv.bias": "encoder.down_blocks.2.downsamplers.0.conv.bias",
    "encoder.mid.block_1.conv1.conv.weight": "encoder.mid_block.resnets.0.conv1.conv.weight",
    "encoder.norm_out.weight": "encoder.norm_out.weight",
    "decoder.mid.block_2.norm2.conv_b.conv.bias": "decoder.mid_block.resnets.1.norm2.conv_b.conv.bias",
    "decoder.up.3.block.0.norm1.norm_layer.weight": "decoder.up_blocks.0.resnets.0.norm1.norm_layer.weight",
    "decoder.up.0.block.3.conv2.conv.weight": "decoder.up_blocks.3.resnets.3.conv2.conv.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "decoder.up.2.block.0.nin_shortcut.bias": "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
    "decoder.norm_out.conv_y.conv.weight": "decoder.norm_out.conv_y.conv.weight",
    "decoder.conv_out.conv.bias": "decoder.conv_out.conv.bias",
}


@pytest.mark.parametrize(
    "name, keymap, listed",
    [(WAN, WAN_ORIGINAL, WAN_NAMES), (COGVIDEOX, COGVIDEOX_ORIGINAL, COGVIDEOX_NAMES)],
    ids=["wan", "cogvideox"],
)
def test_names_of_the_makers(name, keymap, listed):
    state = on_meta(name, {}).state_dict()
    theirs = spelled(keymap, state)
    at, back = Numbering(state), Numbering(theirs)
    assert {keymap.theirs(ours, state[ours], at)[0]: ours for ours in listed.values()} == listed
    assert {key: keymap.ours(key, tuple(theirs[key].shape), back)[0] for key in listed} == listed


def test_all_names_of_wan_as_a_second_list_has_them():
    meta = {key: torch.empty(shape, device="meta") for key, shape in random_checkpoints._wan(96).items()}
    written = spelled(WAN_ORIGINAL, on_meta(WAN, {}).state_dict())
    assert {key: tensor.shape for key, tensor in written.items()} == {key: tensor.shape for key, tensor in meta.items()}


# --- layouts ------------------------------------------------------------------------------------------------------------

ORIGINAL = {WAN: WAN_ORIGINAL, COGVIDEOX: COGVIDEOX_ORIGINAL}


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "model."])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("name", [WAN, COGVIDEOX])
def test_single_files(tmp_path, name, layout, prefix):
    state = small(name)
    stored = spelled(ORIGINAL[name], state) if layout == "original" else state
    file = save(tmp_path / "x.safetensors", {f"{prefix}{key}": tensor for key, tensor in stored.items()})
    opened = open_checkpoint(file)
    assert opened.layout == layout and opened.variant.network == name and opened.ignored == {}
    assert_same(opened, state)
    target = on_meta(name, opened.config)
    assign(target, opened)
    assert all(torch.equal(tensor, state[key]) for key, tensor in target.state_dict().items())


@pytest.mark.parametrize("nesting", [None, "state_dict"])
@pytest.mark.parametrize("name, file", [(WAN, "Wan2.1_VAE.pth"), (COGVIDEOX, "3d-vae.pt")])
def test_the_makers_own_files(tmp_path, name, file, nesting):
    state = small(name)
    stored = spelled(ORIGINAL[name], state)
    if name == COGVIDEOX:
        stored |= {"loss.logvar": torch.zeros(()), "loss.discriminator.blocks.0.0.conv_res.weight": torch.zeros(2, 3)}
    torch.save({nesting: stored} if nesting else stored, tmp_path / file)
    opened = open_checkpoint(tmp_path / file)
    assert set(opened.ignored.values()) == ({"part of the training loss"} if name == COGVIDEOX else set())
    assert_same(opened, state)


def test_the_vae_of_a_full_checkpoint(tmp_path):
    state = small(WAN)
    stored = {f"vae.{key}": tensor for key, tensor in spelled(WAN_ORIGINAL, state).items()}
    others = {
        "model.diffusion_model.blocks.0.self_attn.q.weight": torch.zeros(4, 4),
        "text_encoders.umt5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4),
    }
    opened = open_checkpoint(save(tmp_path / "all_in_one.safetensors", stored | others))
    assert opened.layout == "original in a full checkpoint" and set(opened.ignored) == {"model.*", "text_encoders.*"}
    assert_same(opened, state)


@pytest.mark.parametrize("kind", ["wan", "qwen", "cogvideox"])
def test_random_folders(tmp_path, kind):
    write = getattr(random_checkpoints, f"{kind}_folder")
    write(tmp_path / "vae", seed=3)
    opened = open_checkpoint(tmp_path / "vae")
    name = {"wan": WAN, "qwen": QWEN, "cogvideox": COGVIDEOX}[kind]
    assert opened.layout == "diffusers folder" and opened.variant.network == name
    assert not any("does not take" in reason for reason in opened.why)
    assign(on_meta(name, opened.config), opened)
    write(tmp_path / "again", seed=3)
    assert_same(opened, load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("name", ["wan.safetensors", "cog.safetensors", "3d-vae.pt"])
def test_random_files(tmp_path, name):
    (random_checkpoints.wan_vae if name.startswith("wan") else random_checkpoints.cogvideox_vae)(tmp_path / name)
    opened = open_checkpoint(tmp_path / name)
    assert opened.layout == "original" and opened.dtype is torch.float16
    assign(on_meta(opened.variant.network, opened.config), opened)


def test_tensors_in_memory():
    state = small(COGVIDEOX)
    opened = open_state_dict(lambda: spelled(COGVIDEOX_ORIGINAL, state), "the VAE of this checkpoint")
    assert_same(opened, state)


# --- configurations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, keymap, size", SIZES, ids=SIZE_NAMES)
def test_shapes_show_the_configuration(tmp_path, name, keymap, size):
    state = on_meta(name, size).state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in spelled(keymap, state).items()}
    opened = open_checkpoint(header_only(tmp_path / "x.safetensors", shapes))
    assert {field: opened.config[field] for field in size} == size
    assert dict(opened.shapes) == {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert opened.config.keys() == FIELDS[name].keys()


CONFIGS: dict[str, type] = {
    WAN: AutoencoderKLWanConfig,
    QWEN: AutoencoderKLQwenImageConfig,
    COGVIDEOX: AutoencoderKLCogVideoXConfig,
}


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


def full(variant: str) -> dict[str, tuple[int, ...]]:
    return full_shapes(VARIANTS[variant].network, VARIANTS[variant].config)


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


# --- which variant --------------------------------------------------------------------------------------------------------


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


# --- strict loading -------------------------------------------------------------------------------------------------------

WRONG = {
    "missing": ("decoder.upsamples.4.shortcut.weight", None, "resnets.0.conv_shortcut.weight` is missing;"),
    "missing, shows the configuration": (
        "decoder.head.2.weight",
        None,
        "`decoder.conv_out.weight` is missing; the file",
    ),
    "surplus": (
        "decoder.upsamples.3.residual.9.weight",
        (8,),
        "residual.9.weight` is in the file and not in the network;",
    ),
    "wrong shape": (
        "encoder.middle.1.to_qkv.weight",
        (96, 32),
        r"to_qkv.weight` is \[96, 32\] in the file and \[96, 32, 1, 1\] in the network;",
    ),
    "wrong dimensions": ("encoder.conv1.weight", (8, 3, 3, 3), "where 5 dimensions are expected"),
    "odd width": (
        "encoder.downsamples.3.residual.2.weight",
        (17, 8, 3, 3, 3),
        "17 channels, which is no multiple of 8",
    ),
    "other levels": ("decoder.upsamples.16.residual.0.gamma", (8, 1, 1, 1), "its encoder has 4 levels and its decoder"),
}


@pytest.mark.parametrize("key, shape, sentence", WRONG.values(), ids=WRONG)
def test_every_tensor_has_to_be_there_and_fit(tmp_path, key, shape, sentence):
    stored = spelled(WAN_ORIGINAL, small(WAN))
    stored.pop(key, None)
    if shape is not None:
        stored[key] = torch.zeros(shape)
    path = save(tmp_path / "x.safetensors", stored)
    with pytest.raises(StateDictError, match=sentence) as error:
        opened = open_checkpoint(path)
        assign(on_meta(WAN, opened.config), opened)
    assert str(path) in str(error.value)


def test_two_keys_for_one_tensor(tmp_path):
    stored = spelled(WAN_ORIGINAL, small(WAN)) | {"quant_conv.weight": torch.zeros(32, 32, 1, 1, 1)}
    with pytest.raises(StateDictError, match=r"both stand for `quant_conv\.weight`"):
        open_checkpoint(save(tmp_path / "x.safetensors", stored))


def test_half_of_a_network(tmp_path):
    stored = {key: tensor for key, tensor in small(COGVIDEOX).items() if key.startswith("decoder.")}
    with pytest.raises(StateDictError, match="holds the decoder of a VAE and not its encoder"):
        open_checkpoint(save(tmp_path / "x.safetensors", stored))


def test_the_variant_that_would_fit_is_named(tmp_path):
    opened = open_checkpoint(header_only(tmp_path / "x.safetensors", full("qwen-image")), variant="qwen-image")
    with pytest.raises(StateDictError, match="its sizes are those of variant 'wan21': build that one"):
        assign(on_meta(QWEN, {"input_channels": 4}), opened)


# --- saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WAN, QWEN, COGVIDEOX])
def test_diffusers_loads_our_folders(tmp_path, name, caplog):
    state = small(name, **({"input_channels": 4} if name == QWEN else {}))
    config = dict(open_checkpoint(save(tmp_path / "x.safetensors", state), network=name).config)
    save_diffusers(tmp_path / "vae", name, config, state)
    written = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert written["_class_name"] == name and "clip_output" not in written
    theirs = REFERENCE[name].from_pretrained(tmp_path / "vae", local_files_only=True)
    assert "not expected" not in caplog.text
    assert all(torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items())
    again = open_checkpoint(tmp_path / "vae")
    assert again.variant.network == name and dict(again.config) == config
    assert_same(again, state)


@pytest.mark.parametrize("file", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("name", [WAN, QWEN, COGVIDEOX])
def test_one_file_in_the_names_of_the_makers(tmp_path, name, file):
    state = small(name)
    keymap = COGVIDEOX_ORIGINAL if name == COGVIDEOX else WAN_ORIGINAL
    config = {"norm_eps": 1e-5} if name == COGVIDEOX else {"latents_std": (2.0,) * 16}
    config |= {"input_channels": 3} if name == QWEN else {}
    save_ldm(tmp_path / file, config, state)
    opened = open_checkpoint(tmp_path / file)
    assert opened.layout == "original" and opened.variant.network == name
    assert {key: opened.config[key] for key in config} == config
    assert_same(opened, state)
    if file.endswith(".safetensors"):
        assert load_file(tmp_path / file).keys() == spelled(keymap, state).keys()
        with safe_open(tmp_path / file, "pt") as written:
            assert json.loads(written.metadata()["exact_vae"])["_class_name"] == name


def test_diffusers_converter_reads_our_file_of_wan(tmp_path):
    state = small(WAN)
    save_ldm(tmp_path / "wan.safetensors", None, state)
    build(WAN, {"base_dim": 8}).save_config(tmp_path / "config")
    theirs = REFERENCE[WAN].from_single_file(
        str(tmp_path / "wan.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())


def test_names_for_comfyui():
    wan, cogvideox = small(WAN), small(COGVIDEOX)
    assert comfyui_names(wan).keys() == random_checkpoints._wan(8).keys()
    assert comfyui_names(cogvideox).keys() == cogvideox.keys()


@pytest.mark.parametrize("name", [WAN, COGVIDEOX])
def test_layouts_that_a_clip_has_not(tmp_path, name):
    with pytest.raises(InputError, match="FlaxAutoencoderKL is for pictures"):
        save_flax(tmp_path, {}, small(name))
    with pytest.raises(InputError, match="only AutoencoderTiny"):
        save_taesd_pair(tmp_path, {}, small(name))
    assert not any(Path(tmp_path).iterdir())


# --- the spec -------------------------------------------------------------------------------------------------------------


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
