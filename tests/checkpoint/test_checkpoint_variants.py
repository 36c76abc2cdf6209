"""Which variant a file is: from full-size headers without data, by every kind of hint and without any."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    OURS,
    REFERENCE,
    build,
    flux2,
    full_shapes,
    header_only,
    kl,
    ldm,
    raw_safetensors,
    renamed,
    save,
    state_of,
    taesd_halves,
    tiny,
)

from vae_core.checkpoint import open_checkpoint
from vae_core.checkpoint.config import FIELDS
from vae_core.errors import CheckpointError, InputError, StateDictError, UnknownModelError
from vae_core.spec import KL, KL_FLUX2, TINY, VARIANTS

FOUR, SIXTEEN = ("sd1", "sd2", "sdxl", "playground25"), ("sd3", "flux1")
SHAPES = {name: full_shapes(row.network, row.config) for name, row in VARIANTS.items() if name != "taef2"}


def as_ldm(name: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    levels = len(VARIANTS[name].config.get("block_out_channels", (0,) * 4))
    return {f"{prefix}{key}": shape for key, shape in renamed(SHAPES[name], levels).items()}


@pytest.mark.parametrize("row", [VARIANTS[n] for n in SHAPES], ids=lambda row: row.name)
def test_every_variant_is_recognised_and_can_be_asked_for(tmp_path, row):
    path = header_only(tmp_path / "weights.safetensors", SHAPES[row.name])
    opened = open_checkpoint(path)
    assert opened.variant is row or row.name in opened.candidates
    asked = open_checkpoint(path, variant=row.name)
    assert asked.variant is row and asked.candidates == ()
    assert {name: asked.config[name] for name in row.config} == dict(row.config)
    assert asked.config.keys() == FIELDS[row.network].keys()
    with torch.device("meta"):
        shapes = {key: tuple(t.shape) for key, t in build(row.network, asked.config).state_dict().items()}
    assert shapes == dict(asked.shapes)


@pytest.mark.parametrize("name", [n for n in SHAPES if VARIANTS[n].network in (KL, KL_FLUX2)])
def test_variants_in_ldm_names(tmp_path, name):
    opened = open_checkpoint(header_only(tmp_path / "weights.safetensors", as_ldm(name)))
    assert opened.shapes == SHAPES[name]
    assert opened.variant.name == name or name in opened.candidates


@pytest.mark.parametrize(
    "name, candidates, taken",
    [
        ("sd1", FOUR, "sdxl"),
        ("flux1", SIXTEEN, "flux1"),
        ("taesd", ("taesd", "taesdxl"), "taesdxl"),
        ("taef1", ("taesd3", "taef1"), "taef1"),
        ("x4-upscaler", (), "x4-upscaler"),
        ("flux2", (), "flux2"),
        ("qwen-image", ("wan21", "qwen-image"), "wan21"),
        ("qwen-image-layered", (), "qwen-image-layered"),
        ("cogvideox-2b", ("cogvideox-2b", "cogvideox-5b", "cogvideox-1.5"), "cogvideox-5b"),
    ],
)
def test_without_any_hint_a_default_is_taken_and_said_to_be_one(tmp_path, name, candidates, taken):
    opened = open_checkpoint(header_only(tmp_path / "weights.safetensors", SHAPES[name]))
    assert opened.candidates == candidates and opened.variant is VARIANTS[taken]
    if candidates:
        assert taken in opened.why[-1] and "nothing tells" in opened.why[-1]


@pytest.mark.parametrize(
    "name, file, variant",
    [
        ("sd1", "sdxl_vae", "sdxl"),
        ("sd1", "vae-ft-mse-840000-ema-pruned", "sd1"),
        ("sd1", "sd21-vae", "sd2"),
        ("sd1", "playground-v2.5-vae", "playground25"),
        ("sd3", "ae", "flux1"),
        ("sd3", "FLUX.1-schnell-vae", "flux1"),
        ("flux1", "sd3.5_vae", "sd3"),
        ("wan21", "qwen_image_vae", "qwen-image"),
        ("qwen-image", "Wan2.1_VAE", "wan21"),
        ("qwen-image", "wan_2.1_vae", "wan21"),
        ("qwen-image", "WanVideo_VAE_bf16", "wan21"),
        ("cogvideox-5b", "CogVideoX-2b-vae", "cogvideox-2b"),
        ("cogvideox-2b", "cogvideox-5b-i2v_vae", "cogvideox-5b"),
        ("cogvideox-2b", "CogVideoX1.5-5B", "cogvideox-1.5"),
        ("sd3", "sdxl_vae", None),
    ],
)
def test_the_file_name_is_a_hint(tmp_path, name, file, variant):
    opened = open_checkpoint(header_only(tmp_path / f"{file}.safetensors", SHAPES[name]))
    if variant is None:
        assert opened.candidates == SIXTEEN
    else:
        assert opened.variant.name == variant and opened.candidates == ()
        assert f"the name '{file}' hints at" in opened.why[-1]


@pytest.mark.parametrize(
    "name, siblings, variant",
    [
        ("sd1", ["conditioner.embedders.1.model.ln_final.bias"], "sdxl"),
        ("sd1", ["conditioner.embedders.1.model.ln_final.bias", "edm_mean", "edm_std"], "playground25"),
        ("sd1", ["cond_stage_model.model.transformer.resblocks.0.ln_1.bias"], "sd2"),
        ("sd1", ["cond_stage_model.transformer.text_model.final_layer_norm.bias"], "sd1"),
        ("flux1", ["model.diffusion_model.joint_blocks.0.x_block.attn.proj.bias"], "sd3"),
        ("sd3", ["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"], "flux1"),
        ("wan21", ["model.diffusion_model.txt_norm.weight"], "qwen-image"),
        ("qwen-image", ["model.diffusion_model.head.modulation"], "wan21"),
    ],
)
def test_the_rest_of_a_full_checkpoint_tells(tmp_path, name, siblings, variant):
    prefix = "first_stage_model." if name in FOUR else "vae."
    inside = (
        as_ldm(name, prefix) if name in FOUR + SIXTEEN else {prefix + k: shape for k, shape in SHAPES[name].items()}
    )
    shapes = inside | dict.fromkeys(siblings, (4,))
    opened = open_checkpoint(header_only(tmp_path / "sdxl-or-sd3-or-flux.safetensors", shapes))
    assert opened.variant.name == variant and opened.candidates == ()


@pytest.mark.parametrize(
    "name, text, variant",
    [
        ("sd1", "stable-diffusion-xl-v1-base", "sdxl"),
        ("sd1", "stable-diffusion-v1", "sd1"),
        ("sd1", "stable-diffusion-v2-768-v", "sd2"),
        ("flux1", "stable-diffusion-v3-medium", "sd3"),
        ("sd3", "flux-1-dev", "flux1"),
        ("wan21", "qwen-image", "qwen-image"),
    ],
)
def test_modelspec_metadata_goes_before_the_file_name(tmp_path, name, text, variant):
    path = tmp_path / "playground flux.safetensors"
    opened = open_checkpoint(header_only(path, SHAPES[name], {"modelspec.architecture": text}))
    assert opened.variant.name == variant


@pytest.mark.parametrize("name", [n for n in SHAPES if VARIANTS[n].network == KL])
def test_config_json_tells(tmp_path, name):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", SHAPES[name])
    config = dict(VARIANTS[name].config) | {"_class_name": KL, "force_upcast": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path)
    assert opened.variant is VARIANTS[name] and opened.candidates == ()
    assert opened.config["force_upcast"] is False
    asked = open_checkpoint(tmp_path, variant=name)
    assert asked.config["scaling_factor"] == VARIANTS[name].config["scaling_factor"]


def test_a_config_json_without_scaling_is_an_old_one(tmp_path):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", SHAPES["sd1"])
    config = {"_class_name": KL, "block_out_channels": [128, 256, 512, 512], "sample_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path)
    assert opened.variant is VARIANTS["sd1"] and opened.config["scaling_factor"] == 0.18215
    # The class default is 1; what the tensors show and the config does not state is taken from the tensors.
    assert opened.config["layers_per_block"] == 2


def test_what_is_asked_for_overrides_the_convention_of_a_config(tmp_path):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", SHAPES["sd1"])
    config = dict(VARIANTS["playground25"].config) | {"_class_name": KL}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path, variant="sdxl")
    assert opened.config["scaling_factor"] == 0.13025 and opened.config["latents_mean"] is None


@pytest.mark.parametrize(
    "scale, shift, variant",
    [(0.18215, 0.0, "taesd"), (0.13025, 0.0, "taesdxl"), (1.5305, 0.0609, "taesd3"), (0.3611, 0.1159, "taef1")],
)
def test_the_scale_beside_comfyui_tiny_vaes_tells(tmp_path, scale, shift, variant):
    encoder, decoder = taesd_halves(
        state_of(tiny(64, latent_channels=VARIANTS[variant].config.get("latent_channels", 4)))
    )
    state = {f"taesd_encoder.{k}": t for k, t in encoder.items()} | {
        f"taesd_decoder.{k}": t for k, t in decoder.items()
    }
    state |= {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    halves = {key: tensor.half() for key, tensor in state.items()}
    opened = open_checkpoint(save(tmp_path / "tiny.safetensors", halves))
    assert opened.variant.name == variant and opened.candidates == ()
    assert set(opened.ignored) == {"vae_scale", "vae_shift"}


@pytest.mark.parametrize("name", ["taesd", "taesdxl", "taesd3", "taef1"])
def test_the_name_of_a_taesd_file_is_a_hint(tmp_path, name):
    channels = VARIANTS[name].config.get("latent_channels", 4)
    for half, part in zip(
        ("encoder", "decoder"), taesd_halves(state_of(tiny(64, latent_channels=channels))), strict=True
    ):
        save(tmp_path / f"{name}_{half}.safetensors", part)
    opened = open_checkpoint(tmp_path / f"{name}_decoder.safetensors")
    assert opened.variant.name == name and "hints at" in opened.why[-1]


REAL = Path(__file__).resolve().parents[2].parent / "shared" / "weights" / "vae_approx"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published TAESD files are not in {REAL}")
@pytest.mark.parametrize("name", ["taesd", "taesdxl"])
def test_published_taesd_files(name):
    opened = open_checkpoint(REAL / f"{name}_encoder.safetensors")
    assert opened.variant is VARIANTS[name] and opened.dtype is torch.bfloat16
    build(TINY, opened.config).load_state_dict(dict(opened.tensors()), strict=True)


def test_a_variant_that_does_not_fit(tmp_path):
    path = header_only(tmp_path / "weights.safetensors", SHAPES["flux1"])
    with pytest.raises(StateDictError, match=r"do not fit variant 'sdxl'; they fit 'sd3' or 'flux1'"):
        open_checkpoint(path, variant="sdxl")
    with pytest.raises(InputError, match=r"'sd5' is not known; known are sd1, sd2, sdxl"):
        open_checkpoint(path, variant="sd5")
    small = save(tmp_path / "small.safetensors", state_of(kl(32, 64)))
    with pytest.raises(StateDictError, match=r"fit none of the known ones \(widths \[32, 64\], 4 latent channels\)"):
        open_checkpoint(small, variant="sd1")


def test_custom_widths_have_to_be_divisible(tmp_path):
    path = save(tmp_path / "odd.safetensors", state_of(kl(24, 48, norm_num_groups=8)))
    with pytest.raises(CheckpointError, match=r"24 channels cannot be split into norm_num_groups 32"):
        open_checkpoint(path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": KL, "norm_num_groups": 8}))
    assert open_checkpoint(path).config["norm_num_groups"] == 8


@pytest.mark.parametrize("network", FIELDS)
def test_defaults_are_those_of_diffusers(network):
    theirs = {
        name: parameter.default
        for name, parameter in signature(REFERENCE[network].__init__).parameters.items()
        if name != "self"
    }
    ours = {name: field.default for name, field in FIELDS[network].items()}
    levels = len(ours.get("block_out_channels", ()))
    for name in ("down_block_types", "up_block_types"):
        if name in ours:
            ours[name] *= levels
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in theirs.items()}
    assert {name: value for name, value in ours.items() if name not in OURS} == known


# Telling keys of models that are recognised and not loaded, as ARCHITECTURES.md 1.4 and 3 list them.
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SVD, original": ({"decoder.mid.block_1.mix_factor": (1,)}, "the SVD temporal VAE"),
    "SVD, diffusers": (
        {"decoder.mid_block.resnets.0.spatial_res_block.conv1.weight": (512, 512, 3, 3)},
        "the SVD temporal VAE",
    ),
    "asymmetric": (
        {
            "decoder.condition_encoder.layers.0.weight": (4, 4, 3, 3),
            "encoder.down_blocks.0.resnets.0.conv1.weight": (4,),
        },
        "an AsymmetricAutoencoderKL",
    ),
    "asymmetric, original": (
        {"decoder.encoder.layers.0.weight": (4, 4, 3, 3), "decoder.conv_in.weight": (768, 4, 3, 3)},
        "an AsymmetricAutoencoderKL",
    ),
    "Wan 2.2": (
        {
            "decoder.middle.0.residual.0.gamma": (1024, 1, 1, 1),
            "decoder.upsamples.0.upsamples.0.residual.2.weight": (1, 1, 1, 1, 1),
        },
        "the Wan 2.2 video VAE",
    ),
    "Wan 2.2, diffusers": (
        {
            "decoder.mid_block.resnets.0.norm1.gamma": (1, 1, 1, 1),
            "decoder.up_blocks.0.upsampler.resample.1.weight": (1, 1, 3, 3),
        },
        "the Wan 2.2 video VAE",
    ),
    "HunyuanVideo": (
        {"vae.decoder.conv_in.conv.weight": (512, 16, 3, 3, 3), "vae.post_quant_conv.weight": (16, 16, 1, 1, 1)},
        "the HunyuanVideo video VAE",
    ),
    "HunyuanVideo 1.5": ({"decoder.conv_in.conv.weight": (1024, 32, 3, 3, 3)}, "the HunyuanVideo 1.5 video VAE"),
    "HunyuanImage refiner": ({"decoder.conv_in.weight": (1024, 32, 3, 3, 3)}, "the HunyuanImage 2.1 refiner VAE"),
    "HunyuanImage": (
        {"decoder.conv_in.weight": (1024, 64, 3, 3), "encoder.down.5.block.0.conv1.weight": (1, 1, 3, 3)},
        "the HunyuanImage 2.1 VAE",
    ),
    "LTX": ({"vae.decoder.up_blocks.0.res_blocks.0.conv1.conv.weight": (512, 512, 3, 3, 3)}, "the LTX video VAE"),
    "LTX, diffusers": (
        {
            "decoder.mid_block.resnets.0.conv1.conv.weight": (1, 1, 3, 3, 3),
            "decoder.conv_in.conv.weight": (512, 128, 3, 3, 3),
        },
        "the LTX video VAE",
    ),
    "Mochi": ({"blocks.2.blocks.3.stack.5.weight": (1, 1, 3, 3, 3)}, "the Mochi video VAE"),
    "TAEHV": ({"decoder.22.bias": (3,), "decoder.3.conv.0.weight": (1, 1, 3, 3)}, "a TAEHV tiny video VAE"),
    "taesana": (
        {"0.weight": (32, 3, 3, 3), "2.weight": (64, 32, 3, 3), "4.conv.0.weight": (64, 64, 3, 3)},
        "the tiny VAE of Sana (taesana)",
    ),
    "Stable Cascade": ({"vquantizer.codebook.weight": (1, 1)}, "the stage A VQ-VAE of Stable Cascade"),
    "Oobleck": ({"decoder.layers.1.layers.0.beta": (1,)}, "an audio VAE"),
    "a new video VAE": ({"encoder.conv_in.weight": (1, 3, 3, 3, 3)}, "a video VAE"),
    "LoRA": ({"lora_unet_down_blocks_0.lora_up.weight": (320, 4)}, "a LoRA"),
    "LoRA, PEFT": ({"transformer.blocks.0.attn.to_q.lora_A.weight": (4, 320)}, "a LoRA"),
    "UNet, diffusers": ({"time_embedding.linear_1.weight": (1280, 320)}, "a UNet and not a VAE"),
    "UNet, original": ({"model.diffusion_model.time_embed.0.weight": (1, 1)}, "a checkpoint without its VAE"),
    "FLUX": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "a FLUX diffusion model and not its VAE"),
    "SD3": ({"joint_blocks.0.x_block.attn.proj.bias": (1,)}, "an SD3 diffusion model and not its VAE"),
    "CLIP": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "a CLIP text encoder"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1, 1)}, "a T5 text encoder"),
    "ControlNet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "latent": ({"latent_tensor": (1, 4, 8, 8)}, "a saved latent and not a model"),
}


@pytest.mark.parametrize("shapes, title", OTHERS.values(), ids=OTHERS)
def test_other_models_are_named(tmp_path, shapes, title):
    path = header_only(tmp_path / "other.safetensors", shapes)
    with pytest.raises(UnknownModelError) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(f"{path}: looks like {title}")
    assert "does not load" in str(error.value)


@pytest.mark.parametrize(
    "name, title",
    [("AutoencoderKLMochi", "the Mochi video VAE"), ("UNet2DConditionModel", "a UNet"), ("Unheard", "Unheard")],
)
def test_folders_of_other_classes_are_named(tmp_path, name, title):
    header_only(tmp_path / "diffusion_pytorch_model.safetensors", {"a.weight": (1,)})
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UnknownModelError) as error:
        open_checkpoint(tmp_path)
    assert name in str(error.value) and title in str(error.value)


def test_an_unknown_model_is_described(tmp_path):
    path = raw_safetensors(
        tmp_path / "x.safetensors", {"foo.bar": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    )
    with pytest.raises(UnknownModelError, match=r"no VAE that this version knows; it holds 1 tensors.*`foo.bar` \[0\]"):
        open_checkpoint(path)


def test_flux2_with_other_widths_is_custom(tmp_path):
    opened = open_checkpoint(save(tmp_path / "flux2.safetensors", ldm(state_of(flux2(32, 64)), 2)))
    assert opened.variant.name == "custom" and opened.variant.network == KL_FLUX2
    config: dict[str, Any] = dict(opened.variant.config)
    assert config == dict(opened.config)
