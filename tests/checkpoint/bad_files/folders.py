"""Folders whose config.json or index of shards is wrong, or contradicts the tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import kl, save, state_of, text_file

from vae_core.errors import CheckpointError, StateDictError, UnknownModelError
from vae_core.spec import KL

from .registry import bad


def diffusers_folder(folder: Path, **config: Any) -> Path:
    save(folder / "diffusion_pytorch_model.safetensors", state_of(kl(32, 64)))
    (folder / "config.json").write_text(json.dumps({"_class_name": KL, **config}))
    return folder


@bad(UnknownModelError, "is the config of UNet2DConditionModel")
def config_of_another_class(folder: Path) -> Path:
    return diffusers_folder(folder, _class_name="UNet2DConditionModel")


@bad(UnknownModelError, "is the config of ['x']")
def config_of_a_class_that_is_no_name(folder: Path) -> Path:
    return diffusers_folder(folder, _class_name=["x"])


@bad(CheckpointError, "is not valid JSON")
def config_that_is_no_json(folder: Path) -> Path:
    diffusers_folder(folder)
    (folder / "config.json").write_text("{not json")
    return folder


@bad(CheckpointError, "is a JSON list")
def config_that_is_a_list(folder: Path) -> Path:
    diffusers_folder(folder)
    (folder / "config.json").write_text("[]")
    return folder / "config.json"


@bad(CheckpointError, "is no config of a VAE")
def config_of_nothing(folder: Path) -> Path:
    diffusers_folder(folder)
    (folder / "config.json").write_text('{"architectures": ["x"]}')
    return folder


@bad(CheckpointError, "is no config.json and no *.index.json")
def another_json(folder: Path) -> Path:
    return text_file(diffusers_folder(folder), "tokenizer.json", "{}")


@bad(StateDictError, "says latent_channels 16, and the tensors have 4")
def config_that_contradicts_the_tensors(folder: Path) -> Path:
    return diffusers_folder(folder, latent_channels=16)


@bad(StateDictError, "says AutoencoderTiny")
def config_of_another_vae(folder: Path) -> Path:
    return diffusers_folder(folder, _class_name="AutoencoderTiny")


@bad(CheckpointError, "`scaling_factor` is nan, and should be a finite number above 0")
def config_with_nan(folder: Path) -> Path:
    return diffusers_folder(folder, scaling_factor=float("nan"))


@bad(CheckpointError, "`scaling_factor` is 0")
def config_with_a_scale_of_zero(folder: Path) -> Path:
    return diffusers_folder(folder, scaling_factor=0)


@bad(CheckpointError, "`shift_factor` is inf")
def config_with_infinity(folder: Path) -> Path:
    return diffusers_folder(folder, shift_factor=float("inf"))


@bad(CheckpointError, "`norm_num_groups` is -1, and should be a positive integer")
def config_with_negative_groups(folder: Path) -> Path:
    return diffusers_folder(folder, norm_num_groups=-1)


@bad(CheckpointError, "`layers_per_block` is True")
def config_with_a_flag_for_a_number(folder: Path) -> Path:
    return diffusers_folder(folder, layers_per_block=True)


@bad(CheckpointError, "`block_out_channels` is 'wide', and should be a list of positive integers")
def config_with_a_text_for_a_list(folder: Path) -> Path:
    return diffusers_folder(folder, block_out_channels="wide")


@bad(CheckpointError, "`latents_std` is")
def config_with_a_std_of_zero(folder: Path) -> Path:
    return diffusers_folder(folder, latents_std=[1, 1, 0, 1])


@bad(CheckpointError, "`latents_mean` has 3 entries for 4 latent channels")
def config_with_statistics_of_another_length(folder: Path) -> Path:
    return diffusers_folder(folder, latents_mean=[0, 0, 0], latents_std=[1, 1, 1])


@bad(CheckpointError, "`down_block_types` is")
def config_with_other_blocks(folder: Path) -> Path:
    return diffusers_folder(folder, down_block_types=["AttnDownEncoderBlock2D"] * 2)


@bad(CheckpointError, "32 channels cannot be split into norm_num_groups 24")
def config_with_groups_that_do_not_divide(folder: Path) -> Path:
    return diffusers_folder(folder, norm_num_groups=24)


def index(folder: Path, weight_map: Any) -> Path:
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@bad(CheckpointError, "names the shard b.safetensors, which is not in")
def index_with_a_missing_shard(folder: Path) -> Path:
    save(folder / "a.safetensors", {"x": torch.zeros(1)})
    return index(folder, {"x": "a.safetensors", "y": "b.safetensors"})


@bad(CheckpointError, "says that `y` is in a.safetensors, and it is not")
def index_with_a_missing_key(folder: Path) -> Path:
    save(folder / "a.safetensors", {"x": torch.zeros(1)})
    return index(folder, {"x": "a.safetensors", "y": "a.safetensors"})


@bad(CheckpointError, "`x` is in two shards, a.safetensors and b.safetensors")
def index_with_a_tensor_in_two_shards(folder: Path) -> Path:
    save(folder / "a.safetensors", {"x": torch.zeros(1)})
    save(folder / "b.safetensors", {"x": torch.zeros(1), "y": torch.zeros(1)})
    return index(folder, {"x": "a.safetensors", "y": "b.safetensors"})


@bad(CheckpointError, "which is no plain file name")
def index_that_leads_elsewhere(folder: Path) -> Path:
    return index(folder, {"x": "../a.safetensors"})


@bad(CheckpointError, "has no `weight_map`")
def index_without_a_map(folder: Path) -> Path:
    return index(folder, [])
