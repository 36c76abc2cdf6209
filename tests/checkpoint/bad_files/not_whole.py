"""Networks that are not whole: tensors missing, surplus, of another shape, or of another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoint_files import flux2, header_only, kl, save, state_of, taesd_halves, tiny

from vae_core.checkpoint import save_ldm
from vae_core.errors import CheckpointError, StateDictError

from .registry import bad


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    state = state_of(kl(32, 64))
    change(state)
    return save(folder / "a.safetensors", state)


@bad(StateDictError, "`encoder.mid_block.resnets.0.conv1.bias` is missing")
def missing_key(folder: Path) -> Path:
    return changed(folder, lambda state: state.pop("encoder.mid_block.resnets.0.conv1.bias"))


@bad(StateDictError, "`encoder.conv_in.weight` is missing")
def missing_key_that_shows_the_configuration(folder: Path) -> Path:
    return changed(folder, lambda state: state.pop("encoder.conv_in.weight"))


@bad(StateDictError, "`decoder.extra.weight` is in the file and not in the network")
def surplus_key(folder: Path) -> Path:
    return changed(folder, lambda state: state.update({"decoder.extra.weight": torch.zeros(1)}))


@bad(StateDictError, "`decoder.mid_block.resnets.1.conv2.weight` is [64, 64, 1, 1] in the file and [64, 64, 3, 3]")
def wrong_shape(folder: Path) -> Path:
    return changed(folder, lambda s: s.update({"decoder.mid_block.resnets.1.conv2.weight": torch.zeros(64, 64, 1, 1)}))


@bad(StateDictError, "holds the encoder of a VAE and not its decoder")
def encoder_alone(folder: Path) -> Path:
    return save(folder / "a.safetensors", {k: t for k, t in state_of(kl(32, 64)).items() if k.startswith("encoder.")})


@bad(StateDictError, "both stand for `encoder.mid_block.attentions.0.to_q.weight`")
def two_spellings_of_one_tensor(folder: Path) -> Path:
    old = "encoder.mid_block.attentions.0.query.weight"
    return changed(folder, lambda state: state.update({old: torch.zeros(64, 64)}))


@bad(StateDictError, "its decoder is (32, 32) wide and its encoder (32, 64)")
def decoder_of_another_width(folder: Path) -> Path:
    state = state_of(flux2(32, 64, decoder_block_out_channels=(32, 32)))
    return save(folder / "a.safetensors", {k: t for k, t in state.items() if not k.startswith("bn.")})


@bad(StateDictError, "has `encoder.down_blocks.0.resnets.999999999.*` and not all")
def number_beyond_reason(folder: Path) -> Path:
    name = "encoder.down_blocks.0.resnets.999999999.conv1.weight"
    return changed(folder, lambda state: state.update({name: torch.zeros(1)}))


@bad(StateDictError, "its shapes give latent_channels 1099511627776")
def width_without_bytes(folder: Path) -> Path:
    shapes = {key: tuple(tensor.shape) for key, tensor in state_of(kl(32, 64)).items()}
    return header_only(folder / "a.safetensors", shapes | {"decoder.conv_in.weight": (0, 1 << 40, 3, 3)})


@bad(StateDictError, "its metadata `exact_vae` says latent_channels 5")
def own_metadata_that_contradicts(folder: Path) -> Path:
    return save_ldm(folder / "a.safetensors", {"latent_channels": 5}, state_of(kl(32, 64)))[0]


@bad(StateDictError, "no square patch of 8")
def batch_norm_of_another_size(folder: Path) -> Path:
    return save(folder / "a.safetensors", state_of(flux2(32, 64)) | {"bn.running_mean": torch.zeros(24)})


@bad(CheckpointError, "is stored as int8: quantised")
def quantised_weights(folder: Path) -> Path:
    weight = {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3, dtype=torch.int8)}
    return changed(folder, lambda state: state.update(weight))


@bad(CheckpointError, "x_decoder.safetensors is looked for beside it")
def taesd_encoder_alone(folder: Path) -> Path:
    return save(folder / "x_encoder.safetensors", taesd_halves(state_of(tiny()))[0])


@bad(CheckpointError, "'decoder' is no part of the file's name")
def taesd_decoder_of_another_name(folder: Path) -> Path:
    return save(folder / "x.safetensors", taesd_halves(state_of(tiny()))[1])


@bad(CheckpointError, "which holds no TAESD decoder")
def taesd_with_two_encoders(folder: Path) -> Path:
    for half in ("encoder", "decoder"):
        save(folder / f"x_{half}.safetensors", taesd_halves(state_of(tiny()))[0])
    return folder / "x_encoder.safetensors"
