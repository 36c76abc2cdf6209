"""Model files with random weights, in layouts that ComfyUI recognises. The same seed gives the same file.

Each is as small as ComfyUI lets it be: only the UNet's depth and the width of Wan's VAE are read from the tensors; CLIP-L and the
other VAEs have the size that ComfyUI gives their family. The folders, and CogVideoX's files, are diffusers' and not for ComfyUI.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vae_core import VARIANTS, AutoencoderKL
from vae_core.checkpoint.keymaps import COGVIDEOX_ORIGINAL, LDM, Keymap, Numbering
from vae_core.nets.cogvideox import AutoencoderKLCogVideoXConfig, CogVideoXNetwork
from vae_core.nets.wan import (
    LATENTS_MEAN,
    LATENTS_STD,
    AutoencoderKLQwenImageConfig,
    AutoencoderKLWanConfig,
    WanNetwork,
)

Shapes = dict[str, tuple[int, ...]]


def sd1_checkpoint(path: Path, seed: int = 0) -> None:
    """A full Stable Diffusion 1 checkpoint in fp16: a UNet of one level, CLIP-L and the VAE."""
    parts = {
        "model.diffusion_model.": _unet(),
        "cond_stage_model.transformer.text_model.": _clip_l(),
        "first_stage_model.": _sd1_vae(),
    }
    _write(path, {lead + name: shape for lead, part in parts.items() for name, shape in part.items()}, seed)


def sd1_vae(path: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
    """The VAE of Stable Diffusion 1 alone, in the naming of latent-diffusion without a prefix."""
    _write(path, _sd1_vae(), seed, dtype)


def foreign_vae(path: Path, seed: int = 0) -> None:
    """Stage A of Stable Cascade: an image VAE that ComfyUI has and vae_core has not. 4 latent channels, 4 pixels a cell."""
    _write(path, _stage_a(), seed)


def foreign_video_vae(path: Path, seed: int = 0) -> None:
    """Wan 2.1's video VAE in full size: 16 latent channels, 8 pixels and 4 frames a cell, the first frame a cell of its own."""
    wan_vae(path, seed, width=96)


def wan_vae(
    path: Path, seed: int = 0, dtype: torch.dtype = torch.float16, *, width: int = 8, channels: int = 3
) -> None:
    """The VAE of Wan 2.1 (and of Qwen-Image) in its makers' naming, `width` times 1, 2, 4, 4 wide; the published one has 96.

    `channels` are those of the pixels: 4 for Qwen-Image-Layered.
    """
    _write(path, _wan(width, channels=channels), seed, dtype)


def wan_folder(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, *, width: int = 8) -> None:
    """The same in diffusers' layout, config.json and weights."""
    config = _wan_config(width) | {"_class_name": "AutoencoderKLWan", "in_channels": 3, "out_channels": 3}
    _write_folder(folder, config, _meta(WanNetwork, AutoencoderKLWanConfig(base_dim=width)), seed, dtype)


def qwen_folder(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, *, width: int = 8, channels: int = 3
) -> None:
    """The VAE of Qwen-Image in diffusers' layout; `channels` 4 for the layered model, whose pixels have alpha."""
    config = _wan_config(width) | {"_class_name": "AutoencoderKLQwenImage", "input_channels": channels}
    net = _meta(WanNetwork, AutoencoderKLQwenImageConfig(base_dim=width, input_channels=channels))
    _write_folder(folder, config, net, seed, dtype)


def cogvideox_vae(path: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> None:
    """The VAE of CogVideoX in its makers' naming, narrow: .safetensors, or for any other name as their 3d-vae.pt."""
    state = _random(
        _shapes(_meta(CogVideoXNetwork, AutoencoderKLCogVideoXConfig(**_COGVIDEOX)), COGVIDEOX_ORIGINAL), seed, dtype
    )
    if path.suffix == ".safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save({"state_dict": state | {"loss.logvar": torch.zeros(())}}, path)


def cogvideox_folder(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, *, scaling_factor: float = 0.7
) -> None:
    """The same in diffusers' layout. The scale is that of 5B; 2B's is 1.15258426."""
    config = _COGVIDEOX | {"_class_name": "AutoencoderKLCogVideoX", "scaling_factor": scaling_factor}
    _write_folder(folder, config, _meta(CogVideoXNetwork, AutoencoderKLCogVideoXConfig(**_COGVIDEOX)), seed, dtype)


_COGVIDEOX: dict[str, Any] = {
    "block_out_channels": (32, 32, 32, 64),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "layers_per_block": 1,
}


def _wan_config(width: int) -> dict[str, Any]:
    return {
        "attn_scales": [],
        "base_dim": width,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "latents_mean": LATENTS_MEAN,
        "latents_std": LATENTS_STD,
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    }


def _write(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float16) -> None:
    save_file(_random(shapes, seed, dtype), path, {"format": "pt"})


def _write_folder(folder: Path, config: Mapping[str, Any], net: nn.Module, seed: int, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _write(folder / "diffusion_pytorch_model.safetensors", _shapes(net, Keymap()), seed, dtype)


def _random(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _drawn(name, shape, generator).to(dtype) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Layers that neither amplify nor damp much, norms near the identity: values stay finite in every dtype."""
    noise = torch.randn(shape, generator=generator)
    leaf = name.rpartition(".")[2]
    if leaf in ("gamma", "running_var") or (leaf == "weight" and len(shape) == 1):
        return 1 + noise / 10
    return noise / (10 if len(shape) < 2 else math.sqrt(math.prod(shape[1:])))


def _layer(name: str, inputs: int, outputs: int, *kernel: int) -> Shapes:
    """A convolution, or without `kernel` a linear layer."""
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _meta(build: Callable[..., nn.Module], *values: Any, **config: Any) -> nn.Module:
    with torch.device("meta"):
        return build(*values, **config)


def _shapes(net: nn.Module, keymap: Keymap) -> Shapes:
    """Under the names of a keymap."""
    state = net.state_dict()
    at = Numbering(state)
    spelled = (keymap.theirs(name, tensor, at) for name, tensor in state.items())
    return {name: tuple(tensor.shape) for name, tensor in spelled}


def _sd1_vae() -> Shapes:
    return _shapes(_meta(AutoencoderKL, **VARIANTS["sd1"].config), LDM)


# By its 320 channels, the context of 768 and the convolution before the attention ComfyUI takes it for SD 1's.
_UNET_WIDTH, _TIME_WIDTH, _CLIP_WIDTH = 320, 1280, 768


def _unet() -> Shapes:
    width = _UNET_WIDTH
    return (
        _layer("time_embed.0", width, _TIME_WIDTH)
        | _layer("time_embed.2", _TIME_WIDTH, _TIME_WIDTH)
        | _layer("input_blocks.0.0", 4, width, 3, 3)
        | _unet_block("input_blocks.1", width)
        | _unet_block("output_blocks.0", 2 * width)
        | _unet_block("output_blocks.1", 2 * width)
        | _norm("out.0", width)
        | _layer("out.2", width, 4, 3, 3)
    )


def _unet_block(name: str, inputs: int) -> Shapes:
    width, block = _UNET_WIDTH, f"{name}.1.transformer_blocks.0"
    skip = {} if inputs == width else _layer(f"{name}.0.skip_connection", inputs, width, 1, 1)
    return (
        _norm(f"{name}.0.in_layers.0", inputs)
        | _layer(f"{name}.0.in_layers.2", inputs, width, 3, 3)
        | _layer(f"{name}.0.emb_layers.1", _TIME_WIDTH, width)
        | _norm(f"{name}.0.out_layers.0", width)
        | _layer(f"{name}.0.out_layers.3", width, width, 3, 3)
        | skip
        | _norm(f"{name}.1.norm", width)
        | _layer(f"{name}.1.proj_in", width, width, 1, 1)
        | _layer(f"{name}.1.proj_out", width, width, 1, 1)
        | _norm(f"{block}.norm1", width)
        | _norm(f"{block}.norm2", width)
        | _norm(f"{block}.norm3", width)
        | _unet_attention(f"{block}.attn1", width)
        | _unet_attention(f"{block}.attn2", _CLIP_WIDTH)
        | _layer(f"{block}.ff.net.0.proj", width, 8 * width)
        | _layer(f"{block}.ff.net.2", 4 * width, width)
    )


def _unet_attention(name: str, context: int) -> Shapes:
    inputs = {"to_q": _UNET_WIDTH, "to_k": context, "to_v": context}
    projections: Shapes = {f"{name}.{key}.weight": (_UNET_WIDTH, width) for key, width in inputs.items()}
    return projections | _layer(f"{name}.to_out.0", _UNET_WIDTH, _UNET_WIDTH)


def _clip_l() -> Shapes:
    width = _CLIP_WIDTH
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
    }
    for i in range(12):
        layer = f"encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _layer(f"{layer}.mlp.fc1", width, 4 * width) | _layer(f"{layer}.mlp.fc2", 4 * width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return shapes | _norm("final_layer_norm", width)


def _stage_a() -> Shapes:
    narrow, wide = 192, 384
    shapes = (
        _layer("in_block.1", 12, narrow, 1, 1)
        | _stage_a_block("down_blocks.0", narrow)
        | _layer("down_blocks.1", narrow, wide, 4, 4)
        | _stage_a_block("down_blocks.2", wide)
        | {"down_blocks.3.0.weight": (4, wide, 1, 1)}
        | _norm("down_blocks.3.1", 4)
        | {f"down_blocks.3.1.{name}": (4,) for name in ("running_mean", "running_var")}
        | {"down_blocks.3.1.num_batches_tracked": ()}
        | {"vquantizer.codebook.weight": (8192, 4)}
        | _layer("up_blocks.0.0", 4, wide, 1, 1)
    )
    for i in range(1, 13):
        shapes |= _stage_a_block(f"up_blocks.{i}", wide)
    return (
        shapes
        | {"up_blocks.13.weight": (wide, narrow, 4, 4), "up_blocks.13.bias": (narrow,)}  # transposed: inputs first
        | _stage_a_block("up_blocks.14", narrow)
        | _layer("out_block.0", narrow, 12, 1, 1)
    )


def _stage_a_block(name: str, width: int) -> Shapes:
    return (
        {f"{name}.gammas": (6,)}
        | _layer(f"{name}.depthwise.1", 1, width, 3, 3)
        | _layer(f"{name}.channelwise.0", width, 4 * width)
        | _layer(f"{name}.channelwise.2", 4 * width, width)
    )


def _wan(width: int, latent: int = 16, channels: int = 3) -> Shapes:
    return (
        _wan_encoder(width, 2 * latent, channels)
        | _layer("conv1", 2 * latent, 2 * latent, 1, 1, 1)
        | _layer("conv2", latent, latent, 1, 1, 1)
        | _wan_decoder(width, latent, channels)
    )


def _wan_encoder(width: int, outputs: int, channels: int) -> Shapes:
    widths = [width, width, 2 * width, 4 * width, 4 * width]
    shapes = _layer("encoder.conv1", channels, width, 3, 3, 3)
    for level in range(4):
        inputs, inner = widths[level : level + 2]
        name, slot = "encoder.downsamples", 3 * level
        shapes |= _wan_block(f"{name}.{slot}", inputs, inner) | _wan_block(f"{name}.{slot + 1}", inner, inner)
        if level < 3:
            shapes |= _layer(f"{name}.{slot + 2}.resample.1", inner, inner, 3, 3)
        if level in (1, 2):
            shapes |= _layer(f"{name}.{slot + 2}.time_conv", inner, inner, 3, 1, 1)
    return shapes | _wan_middle("encoder", inner) | _wan_head("encoder", inner, outputs)


def _wan_decoder(width: int, latent: int, channels: int) -> Shapes:
    widths = [4 * width, 4 * width, 2 * width, width]
    inputs = widths[0]
    shapes = _layer("decoder.conv1", latent, inputs, 3, 3, 3) | _wan_middle("decoder", inputs)
    for level, inner in enumerate(widths):
        name, slot = "decoder.upsamples", 4 * level
        for i in range(3):
            shapes |= _wan_block(f"{name}.{slot + i}", inputs if i == 0 else inner, inner)
        if level < 3:
            shapes |= _layer(f"{name}.{slot + 3}.resample.1", inner, inner // 2, 3, 3)
        if level < 2:
            shapes |= _layer(f"{name}.{slot + 3}.time_conv", inner, 2 * inner, 3, 1, 1)
        inputs = inner // 2
    return shapes | _wan_head("decoder", width, channels)


def _wan_block(name: str, inputs: int, outputs: int) -> Shapes:
    shortcut = {} if inputs == outputs else _layer(f"{name}.shortcut", inputs, outputs, 1, 1, 1)
    return (
        {f"{name}.residual.0.gamma": (inputs, 1, 1, 1)}
        | _layer(f"{name}.residual.2", inputs, outputs, 3, 3, 3)
        | {f"{name}.residual.3.gamma": (outputs, 1, 1, 1)}
        | _layer(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
        | shortcut
    )


def _wan_middle(half: str, width: int) -> Shapes:
    return (
        _wan_block(f"{half}.middle.0", width, width)
        | {f"{half}.middle.1.norm.gamma": (width, 1, 1)}
        | _layer(f"{half}.middle.1.to_qkv", width, 3 * width, 1, 1)
        | _layer(f"{half}.middle.1.proj", width, width, 1, 1)
        | _wan_block(f"{half}.middle.2", width, width)
    )


def _wan_head(half: str, width: int, outputs: int) -> Shapes:
    return {f"{half}.head.0.gamma": (width, 1, 1, 1)} | _layer(f"{half}.head.2", width, outputs, 3, 3, 3)
