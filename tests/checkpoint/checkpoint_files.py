"""Tiny reference networks of diffusers, and files in the layouts of others, written without the code under test."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from vae_core.checkpoint import Checkpoint
from vae_core.spec import CLIPS, COGVIDEOX, KL, KL_FLUX2, QWEN, TINY, WAN

State = dict[str, Tensor]
REFERENCE: dict[str, Any] = {
    KL: AutoencoderKL,
    KL_FLUX2: AutoencoderKLFlux2,
    TINY: AutoencoderTiny,
    WAN: AutoencoderKLWan,
    QWEN: AutoencoderKLQwenImage,
    COGVIDEOX: AutoencoderKLCogVideoX,
}
OURS = ("pool_mid_blocks", "clip_output")
"""Fields that diffusers' classes do not take."""


def build(network: str, config: Mapping[str, Any]) -> Any:
    """diffusers' class; `pool_mid_blocks`, which it does not know, has to be false."""
    assert not config.get("pool_mid_blocks")
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    return REFERENCE[network](**{name: value for name, value in listed.items() if name not in OURS})


def kl(*widths: int, layers: int = 1, **fields: Any) -> Any:
    torch.manual_seed(len(widths))
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    return REFERENCE[KL](block_out_channels=widths, layers_per_block=layers, **blocks, **fields)


def flux2(*widths: int, **fields: Any) -> Any:
    torch.manual_seed(2)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    model = REFERENCE[KL_FLUX2](block_out_channels=widths, layers_per_block=1, latent_channels=8, **blocks, **fields)
    model.bn.running_mean.normal_()
    return model


def tiny(width: int = 16, **fields: Any) -> Any:
    torch.manual_seed(3)
    return REFERENCE[TINY](encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4, **fields)


def state_of(model: nn.Module) -> State:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def ldm(state: Mapping[str, Tensor], levels: int, projection: str = "conv2d") -> State:
    """diffusers' names as latent-diffusion writes them: one plain replacement after the other."""
    result: State = {}
    for key, tensor in state.items():
        shaped = tensor
        if re.search(r"attentions\.0\.to_\w+(\.0)?\.weight", key):
            shaped = {"conv2d": tensor[:, :, None, None], "conv1d": tensor[:, :, None], "linear": tensor}[projection]
        key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m.group(1))}", key)
        for ours, theirs in (
            ("down_blocks.", "down."),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("resnets.", "block."),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
        ):
            key = key.replace(ours, theirs)
        result[key] = shaped.contiguous()
    return result


def old_attention(state: Mapping[str, Tensor]) -> State:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {re.sub(r"to_(q|k|v|out\.0)", lambda m: names[m.group(0)], key): tensor for key, tensor in state.items()}


def taesd_halves(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """(encoder, decoder) with the bare numbers of a Sequential, in which the decoder begins with a clamp."""
    encoder = {key.removeprefix("encoder.layers."): t for key, t in state.items() if key.startswith("encoder.")}
    decoder: State = {}
    for key, tensor in state.items():
        if key.startswith("decoder."):
            number, _, rest = key.removeprefix("decoder.layers.").partition(".")
            decoder[f"{int(number) + 1}.{rest}"] = tensor
    return encoder, decoder


def flax_names(state: Mapping[str, Tensor]) -> State:
    """diffusers' Flax names, dotted, with Flax's axes."""
    result: State = {}
    for key, tensor in old_attention(state).items():
        key = re.sub(r"\.(\d+)(?=\.)", r"_\1", key)
        if key.endswith(".weight"):
            leaf = "scale" if tensor.ndim == 1 else "kernel"
            key = f"{key.removesuffix('weight')}{leaf}"
        if tensor.ndim == 4:
            tensor = tensor.permute(2, 3, 1, 0)
        result[key] = (tensor.T if tensor.ndim == 2 else tensor).contiguous()
    return result


def save(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(dict(state), path, metadata)
    return path


def text_file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def raw_safetensors(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with any header: a text, or something that becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def header_only(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str] | None = None, dtype: str = "F16"
) -> Path:
    """A whole safetensors file of any size that takes no room: its data is a hole."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for key, shape in shapes.items():
        end = at + math.prod(shape) * (4 if dtype == "F32" else 2)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw_safetensors(path, header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + at)
    return path


def full_shapes(network: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a published network, without its weights."""
    levels = len(config.get("block_out_channels", (0,) * 4))
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    with torch.device("meta"):
        model = build(network, config if network in CLIPS | {TINY} else {**blocks, **config})
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def renamed(shapes: Mapping[str, tuple[int, ...]], levels: int) -> dict[str, tuple[int, ...]]:
    """Shapes under latent-diffusion's names."""
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return {key: tuple(tensor.shape) for key, tensor in ldm(meta, levels).items()}


def assert_same(opened: Checkpoint, state: Mapping[str, Tensor], but: Iterable[str] = ()) -> None:
    """Every tensor of `state` comes out of `opened`, bit for bit, and nothing else does."""
    read = dict(opened.tensors())
    assert read.keys() == state.keys() - set(but)
    assert {key: tuple(tensor.shape) for key, tensor in read.items()} == dict(opened.shapes)
    for key, tensor in read.items():
        assert tensor.dtype == state[key].dtype and torch.equal(tensor, state[key]), key
