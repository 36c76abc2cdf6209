"""Writes a network's tensors in the layouts that other programs read. No half-written file ever has its final name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ConfigError, InputError
from ..spec import COGVIDEOX, KL, KL_FLUX2, QWEN, TINY, WAN
from ..whole_files import whole
from .config import OWN_CONFIG
from .flax_file import write_flax
from .keymaps import (
    COGVIDEOX_ORIGINAL,
    FLAX,
    LDM,
    LDM_FLUX2,
    PLAIN,
    TAESD,
    WAN_ORIGINAL,
    Keymap,
    Numbering,
)
from .locate import CONFIG, FLAX_NAME, STEM, index_name
from .reader import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES

State = Mapping[str, Tensor]
_FLAX_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_SIGNS = {
    "encoder.layers.0.weight": TINY,
    "bn.running_mean": KL_FLUX2,
    "decoder.norm_out.gamma": WAN,
    "decoder.norm_out.conv_y.conv.weight": COGVIDEOX,
}
"""A name that only one network has; `WAN` stands for Qwen-Image's too, `KL` for what has none of them."""

_ORIGINAL = {KL: LDM, KL_FLUX2: LDM_FLUX2, WAN: WAN_ORIGINAL, COGVIDEOX: COGVIDEOX_ORIGINAL}
"""The names of the makers' own code, in one file."""

# Source: comfy/sd.py of ComfyUI 0.8.0, which does not load CogVideoX's VAE.
_COMFYUI = _ORIGINAL | {TINY: TAESD, COGVIDEOX: PLAIN}

_OURS = {"pool_mid_blocks": False, "clip_output": True}
"""Fields that diffusers' classes do not take, with what they mean where they are left out."""


def save_diffusers(
    folder: str | Path,
    network: str,
    config: Mapping[str, Any],
    state_dict: State,
    *,
    weights: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int | None = None,
    safe_serialization: bool = True,
) -> tuple[Path, ...]:
    """Writes config.json and diffusion_pytorch_model.safetensors (else .bin); returns the files.

    `weights="fp16"` names the file as diffusers' variants: diffusion_pytorch_model.fp16.safetensors. What exceeds
    `max_shard_bytes` is written in shards with an index. With `overwrite`, weights of the folder that would be read
    instead of these are removed. Raises InputError if something is in the way, ConfigError if `config` is not JSON.
    """
    if weights is not None and not re.fullmatch(r"[\w-]+", weights):
        raise InputError(
            f"{folder}: weights {weights!r} cannot be part of a file name; use letters and digits, as fp16"
        )
    folder = _made(folder)
    suffix = ".safetensors" if safe_serialization else ".bin"
    stem = f"{STEM}.{weights}" if weights else STEM
    shards = _shards(stem, suffix, state_dict, max_shard_bytes)
    stale = _weights_of(folder, stem, weights) - {folder / name for name in shards}
    if stale and not overwrite:
        raise InputError(f"{folder}: holds {min(stale).name} already; name another folder, or allow overwriting it")
    with ExitStack() as files:  # closes backwards: shards appear first, the config last
        _write_config(files, folder / CONFIG, _config_text(network, config), overwrite)
        if len(shards) > 1:
            index = folder / index_name(suffix, weights)
            _write_text(files, index, _index_text(shards), overwrite)
            stale.discard(index)
        for name, part in shards.items():
            _write_weights(files.enter_context(whole(folder / name, overwrite=overwrite)), suffix, part, {})
    for file in stale:
        file.unlink()
    return (folder / CONFIG, *(folder / name for name in shards))


def save_ldm(
    file: str | Path,
    config: Mapping[str, Any] | None,
    state_dict: State,
    *,
    variant: str | None = None,
    prefix: str = "",
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Writes one file (.safetensors, .ckpt, .pt) with the names of latent-diffusion, attention as 1x1 convolutions.

    A video network gets the names of its makers' code, as Wan2.1_VAE.pth and CogVideoX's 3d-vae.pt have them.

    `config` and `variant`, a name of `spec.VARIANTS`, are kept in the metadata, where `open_checkpoint` finds them;
    without `config`, neither: a guess should not be taken for a fact by the next reader.
    `prefix` is "first_stage_model." or "vae." for use in a full checkpoint. Raises InputError for a tiny VAE.
    """
    network = _network_of(state_dict)
    if network == TINY:
        raise InputError(f"{file}: {TINY} has no LDM layout; use save_taesd_pair or save_diffusers")
    state = _spelled(_ORIGINAL[network], state_dict, prefix)
    if network == WAN and config is not None and "input_channels" in config:
        network = QWEN
    return _write_single(Path(file), network, config, state, variant, overwrite)


def save_taesd_pair(
    folder: str | Path,
    config: Mapping[str, Any],
    state_dict: State,
    *,
    name: str = "taesd",
    suffix: str = ".safetensors",
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Writes `name`_encoder and `name`_decoder as TAESD's own code reads them.

    "taesd", "taesdxl", "taesd3", "taef1": the name is all that tells the variants apart. Raises InputError for another
    network, or where a file is in the way.
    """
    if _network_of(state_dict) != TINY:
        raise InputError(f"{folder}: only {TINY} has the two-file layout of TAESD")
    folder = _made(folder)
    state = _spelled(TAESD, state_dict)
    written: tuple[Path, ...] = ()
    for half in ("encoder", "decoder"):
        lead = f"taesd_{half}."
        part = {key.removeprefix(lead): tensor for key, tensor in state.items() if key.startswith(lead)}
        written += _write_single(folder / f"{name}_{half}{suffix}", TINY, config, part, None, overwrite)
    return written


def save_flax(
    folder: str | Path, config: Mapping[str, Any], state_dict: State, *, overwrite: bool = False
) -> tuple[Path, ...]:
    """Writes config.json and diffusion_flax_model.msgpack, as FlaxAutoencoderKL reads them (float32, float16, bf16).

    Raises InputError for what that class has no place for: networks without quant convolutions or with a batch norm.
    """
    folder = _made(folder)
    if _network_of(state_dict) != KL or not {"quant_conv.weight", "post_quant_conv.weight"} <= state_dict.keys():
        raise InputError(
            f"{folder}: FlaxAutoencoderKL is for pictures, with both quant convolutions and no batch norm; use save_diffusers"
        )
    odd = next((tensor.dtype for tensor in state_dict.values() if tensor.dtype not in _FLAX_DTYPES), None)
    if odd is not None:
        raise InputError(f"{folder}: Flax files hold float32, float16 or bfloat16, not {odd}; cast first")
    weights = folder / FLAX_NAME
    with ExitStack() as files:
        _write_config(files, folder / CONFIG, _config_text("FlaxAutoencoderKL", config), overwrite)
        part = files.enter_context(whole(weights, overwrite=overwrite))
        with part.open("wb") as stream:
            write_flax(stream, _spelled(FLAX, state_dict))
    return folder / CONFIG, weights


def comfyui_names(state_dict: State) -> dict[str, Tensor]:
    """The tensors under the names that ComfyUI's own VAE objects have: latent-diffusion's, Wan's, or those of its TAESD.

    CogVideoX, which it has not, keeps the names of diffusers.
    """
    return _spelled(_COMFYUI[_network_of(state_dict)], state_dict)


def _network_of(state_dict: State) -> str:
    return next((network for name, network in _SIGNS.items() if name in state_dict), KL)


def _made(folder: str | Path) -> Path:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be made ({error.strerror}); name another") from None
    return Path(folder)


def _spelled(keymap: Keymap, state_dict: State, prefix: str = "") -> dict[str, Tensor]:
    at = Numbering(state_dict)
    pairs = (keymap.theirs(name, tensor, at) for name, tensor in state_dict.items())
    return {prefix + key: tensor for key, tensor in pairs}


def _config_text(network: str, config: Mapping[str, Any], **notes: Any) -> str:
    # A field of ours at its default is left out, so that diffusers does not warn of it.
    fields = {name: value for name, value in config.items() if name not in _OURS or value != _OURS[name]}
    try:
        return json.dumps({"_class_name": network, **notes, **fields}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the configuration cannot be written as JSON ({error})") from None


def _write_single(
    file: Path, network: str, config: Mapping[str, Any] | None, state: State, variant: str | None, overwrite: bool
) -> tuple[Path, ...]:
    suffix = file.suffix.lower()
    if suffix not in SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES:
        expected = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES)
        raise InputError(f"{file}: its name should end in one of {expected}")
    notes = {} if variant is None else {"_variant": variant}
    metadata = {} if config is None else {OWN_CONFIG: _config_text(network, config, **notes)}
    with whole(file, overwrite=overwrite) as part:
        _write_weights(part, suffix, state, metadata)
    return (file,)


def _write_weights(part: Path, suffix: str, state: State, metadata: Mapping[str, str]) -> None:
    state = {key: tensor.detach().contiguous() for key, tensor in state.items()}
    if suffix in SAFETENSORS_SUFFIXES:
        save_file(state, part, {"format": "pt", **metadata})
    else:
        torch.save({"state_dict": state, **metadata} if metadata else state, part)


def _write_text(files: ExitStack, target: Path, text: str, overwrite: bool) -> None:
    files.enter_context(whole(target, overwrite=overwrite)).write_text(text, encoding="utf-8")


def _write_config(files: ExitStack, target: Path, text: str, overwrite: bool) -> None:
    # Weights in a second precision share the config that is there already.
    if not (target.is_file() and target.read_text(encoding="utf-8") == text):
        _write_text(files, target, text, overwrite)


def _shards(stem: str, suffix: str, state_dict: State, limit: int | None) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors: in order, each file as full as `limit` bytes allow."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state_dict.items():
        if limit is not None and size + tensor.nbytes > limit and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        return {f"{stem}{suffix}": parts[0]}
    return {f"{stem}-{i:05d}-of-{len(parts):05d}{suffix}": part for i, part in enumerate(parts, start=1)}


def _index_text(shards: Mapping[str, Mapping[str, Tensor]]) -> str:
    total = sum(tensor.nbytes for part in shards.values() for tensor in part.values())
    weight_map = {name: file for file, part in shards.items() for name in part}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def _weights_of(folder: Path, stem: str, weights: str | None) -> set[Path]:
    """Weights of that name that lie in `folder`: a reader might take them for the ones written now."""
    patterns = [f"{stem}{shard}{suffix}" for suffix in (".safetensors", ".bin") for shard in ("", "-*-of-*")]
    indexes = [index_name(suffix, weights) for suffix in (".safetensors", ".bin")]
    return {file for pattern in (*patterns, *indexes) for file in folder.glob(pattern)}
