"""Models beside our VAEs with random weights, for the core nodes that take a VAE among others, and a VAE that only ComfyUI has.
The same seed gives the same file.

ComfyUI fixes the widths of most of them, and they hold up to 1.5 billion numbers. So the numbers of a tensor overlap: element
(i, j) of a matrix is number i + j of one random row (a Hankel matrix, of full rank), and torch.save stores that row alone. The
files take less than a MiB each; in ComfyUI's memory the tensors have their full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

CLIP_WIDTH = 768
"""Of CLIP-L, whose text all of the diffusion models here are given."""


def tiny_pair(folder: Path, latent_channels: int, name: str, seed: int = 0) -> list[Path]:
    """`name`_encoder and `name`_decoder in the layout of TAESD, contiguous safetensors in fp32; their paths."""
    files = []
    for half, shapes in (("encoder", _tiny_encoder(latent_channels)), ("decoder", _tiny_decoder(latent_channels))):
        path = folder / f"{name}_{half}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in _drawn(shapes, torch.float32, seed).items()}, path)
        files.append(path)
    return files


def clip_vision(path: Path, seed: int = 0) -> None:
    """The picture half of CLIP ViT-L/14, the smallest that CLIPVisionLoader knows."""
    _write(path, _clip_vision(), torch.float16, seed)


def sd3_model(path: Path, seed: int = 0) -> None:
    """Stable Diffusion 3's transformer with two blocks, which make it 128 wide, as UNETLoader takes it."""
    _write(path, _sd3_model(), torch.float32, seed)


def sd3_control_net(path: Path, control_channels: int = 16, seed: int = 1) -> None:
    """A control net for `sd3_model` that takes latents; in diffusers' layout. With 17 channels it takes a mask as well."""
    _write(path, _sd3_control_net(control_channels), torch.float32, seed)


def z_image_model(path: Path, seed: int = 0) -> None:
    """Z-Image's transformer with one layer, in fp8: 0.9 GB in memory."""
    _write(path, _z_image_model(), torch.float8_e4m3fn, seed)


def z_image_control(path: Path, seed: int = 1) -> None:
    """The control net of Z-Image that ModelPatchLoader takes, in fp8: 1.6 GB in memory."""
    _write(path, _z_image_control(), torch.float8_e4m3fn, seed)


def qwen_image_control(path: Path, seed: int = 1) -> None:
    """A control net of Qwen-Image that ModelPatchLoader takes: 4.5 GB in memory."""
    _write(path, _qwen_image_control(), torch.float32, seed)


def ltx_vae(path: Path, seed: int = 0) -> None:
    """The VAE of LTX-Video 0.9.0, for VAELoader: 128 latent channels, 32 pixels and 8 frames a cell; 1.6 GB in memory."""
    _write(path, _ltx_encoder() | _ltx_decoder() | _ltx_statistics(), torch.float16, seed)


def _write(path: Path, shapes: Shapes, dtype: torch.dtype, seed: int) -> None:
    torch.save(_drawn(shapes, dtype, seed), path)


def _drawn(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: _tensor(name, shape, dtype, generator) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Layers that neither amplify nor damp much, norms near the identity."""
    if len(shape) == 1:
        noise = torch.randn(shape, generator=generator) / 10
        return (1 + noise if name.endswith(("weight", "std-of-means")) else noise).to(dtype)
    inputs = math.prod(shape[1:])
    row = (torch.randn(shape[0] + inputs - 1, generator=generator) / math.sqrt(inputs)).to(dtype)
    return row.as_strided(shape, (1, *torch.empty(shape[1:], device="meta").stride()))


def _layer(name: str, inputs: int, outputs: int, *kernel: int) -> Shapes:
    """A convolution, or without `kernel` a linear layer."""
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


# --- TAESD --------------------------------------------------------------------------------------------------------------

_TINY = 64


def _tiny_encoder(latent_channels: int) -> Shapes:
    shapes = _layer("0", 3, _TINY, 3, 3) | _layer("14", _TINY, latent_channels, 3, 3)
    shapes |= {f"{slot}.weight": (_TINY, _TINY, 3, 3) for slot in (2, 6, 10)}
    return shapes | _tiny_blocks(1, 3, 4, 5, 7, 8, 9, 11, 12, 13)


def _tiny_decoder(latent_channels: int) -> Shapes:
    shapes = _layer("1", latent_channels, _TINY, 3, 3) | _layer("19", _TINY, 3, 3, 3)
    shapes |= {f"{slot}.weight": (_TINY, _TINY, 3, 3) for slot in (7, 12, 17)}
    return shapes | _tiny_blocks(3, 4, 5, 8, 9, 10, 13, 14, 15, 18)


def _tiny_blocks(*slots: int) -> Shapes:
    return {
        name: shape
        for slot in slots
        for i in (0, 2, 4)
        for name, shape in _layer(f"{slot}.conv.{i}", _TINY, _TINY, 3, 3).items()
    }


# --- CLIP's vision half -------------------------------------------------------------------------------------------------


def _clip_vision() -> Shapes:
    width = 1024
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, width),
        "visual_projection.weight": (CLIP_WIDTH, width),
    }
    for i in range(24):
        layer = f"vision_model.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _layer(f"{layer}.mlp.fc1", width, 4 * width) | _layer(f"{layer}.mlp.fc2", 4 * width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return shapes | _norm("vision_model.pre_layrnorm", width) | _norm("vision_model.post_layernorm", width)


# --- Stable Diffusion 3 -------------------------------------------------------------------------------------------------

_SD3_DEPTH = 2
_SD3_WIDTH = 64 * _SD3_DEPTH
"""ComfyUI reads the number of blocks from the width. With one block, the control net would have nowhere to add to."""
_TIME = 256
"""Sines and cosines of the time step."""


def _sd3_model() -> Shapes:
    width, first, last = _SD3_WIDTH, "joint_blocks.0", "joint_blocks.1"
    return (
        _layer("x_embedder.proj", 16, width, 2, 2)
        | _mlp("t_embedder.mlp", ("0", "2"), _TIME, width, width)
        | _mlp("y_embedder.mlp", ("0", "2"), CLIP_WIDTH, width, width)
        | _layer("context_embedder", CLIP_WIDTH, width)
        | _sd3_half(f"{first}.x_block")
        | _sd3_half(f"{first}.context_block")
        | _sd3_half(f"{last}.x_block")
        | _layer(f"{last}.context_block.adaLN_modulation.1", width, 2 * width)
        | _layer(f"{last}.context_block.attn.qkv", width, 3 * width)
        | _layer("final_layer.adaLN_modulation.1", width, 2 * width)
        | _layer("final_layer.linear", width, 16 * 2 * 2)
    )


def _sd3_half(name: str) -> Shapes:
    width = _SD3_WIDTH
    return (
        _layer(f"{name}.adaLN_modulation.1", width, 6 * width)
        | _layer(f"{name}.attn.qkv", width, 3 * width)
        | _layer(f"{name}.attn.proj", width, width)
        | _mlp(f"{name}.mlp", ("fc1", "fc2"), width, 4 * width, width)
    )


def _sd3_control_net(control_channels: int) -> Shapes:
    width, embedders, block = _SD3_WIDTH, "time_text_embed", "transformer_blocks.0"
    shapes = (
        _layer("pos_embed.proj", 16, width, 2, 2)
        | _layer("pos_embed_input.proj", control_channels, width, 2, 2)
        | _mlp(f"{embedders}.timestep_embedder", ("linear_1", "linear_2"), _TIME, width, width)
        | _mlp(f"{embedders}.text_embedder", ("linear_1", "linear_2"), CLIP_WIDTH, width, width)
        | _layer("context_embedder", CLIP_WIDTH, width)
        | _layer(f"{block}.norm1.linear", width, 6 * width)
        | _layer(f"{block}.norm1_context.linear", width, 6 * width)
        | _mlp(f"{block}.ff.net", ("0.proj", "2"), width, 4 * width, width)
        | _mlp(f"{block}.ff_context.net", ("0.proj", "2"), width, 4 * width, width)
        | _layer("controlnet_blocks.0", width, width)
    )
    projections = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
    for projection in projections:
        shapes |= _layer(f"{block}.attn.{projection}", width, width)
    return shapes


def _mlp(name: str, layers: tuple[str, str], inputs: int, inner: int, outputs: int) -> Shapes:
    return _layer(f"{name}.{layers[0]}", inputs, inner) | _layer(f"{name}.{layers[1]}", inner, outputs)


# --- Z-Image ------------------------------------------------------------------------------------------------------------

_Z_WIDTH = 3840
"""By it ComfyUI tells Z-Image from Lumina 2."""
_Z_PATCH = 16 * 2 * 2
_Z_REFINERS, _Z_CONTROL_LAYERS = 2, 6


def _z_image_model() -> Shapes:
    shapes: Shapes = {"cap_embedder.0.weight": (CLIP_WIDTH,)}
    shapes |= (
        _layer("x_embedder", _Z_PATCH, _Z_WIDTH)
        | _mlp("t_embedder.mlp", ("0", "2"), _TIME, 1024, _TIME)
        | _layer("cap_embedder.1", CLIP_WIDTH, _Z_WIDTH)
        | _z_block("layers.0")
        | _layer("final_layer.linear", _Z_WIDTH, _Z_PATCH)
        | _layer("final_layer.adaLN_modulation.1", _TIME, _Z_WIDTH)
    )
    for i in range(_Z_REFINERS):
        shapes |= _z_block(f"noise_refiner.{i}") | _z_block(f"context_refiner.{i}", modulated=False)
    return shapes


def _z_image_control() -> Shapes:
    shapes = _layer("control_all_x_embedder.2-1", _Z_PATCH, _Z_WIDTH)
    shapes |= _layer("control_layers.0.before_proj", _Z_WIDTH, _Z_WIDTH)
    for i in range(_Z_CONTROL_LAYERS):
        shapes |= _z_block(f"control_layers.{i}") | _layer(f"control_layers.{i}.after_proj", _Z_WIDTH, _Z_WIDTH)
    for i in range(_Z_REFINERS):
        shapes |= _z_block(f"control_noise_refiner.{i}")
    return shapes


def _z_block(name: str, modulated: bool = True) -> Shapes:
    width, head, inner = _Z_WIDTH, 128, 10240
    norms = ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
    return (
        {f"{name}.attention.qkv.weight": (3 * width, width), f"{name}.attention.out.weight": (width, width)}
        | {f"{name}.attention.{norm}.weight": (head,) for norm in ("q_norm", "k_norm")}
        | {f"{name}.feed_forward.{w}.weight": (inner, width) for w in ("w1", "w3")}
        | {f"{name}.feed_forward.w2.weight": (width, inner)}
        | {f"{name}.{norm}.weight": (width,) for norm in norms}
        | (_layer(f"{name}.adaLN_modulation.0", _TIME, 4 * width) if modulated else {})
    )


# --- Qwen-Image ---------------------------------------------------------------------------------------------------------

_QWEN_WIDTH, _QWEN_LAYERS = 3072, 60


def _qwen_image_control() -> Shapes:
    shapes = _layer("img_in", 16 * 2 * 2, _QWEN_WIDTH)
    for i in range(_QWEN_LAYERS):
        block = f"controlnet_blocks.{i}"
        shapes |= {f"{block}.{norm}.weight": (_QWEN_WIDTH,) for norm in ("x_rms", "y_rms")}
        for layer in ("input_proj", "output_proj"):
            shapes |= _layer(f"{block}.{layer}", _QWEN_WIDTH, _QWEN_WIDTH)
    return shapes


# --- LTX-Video's VAE ----------------------------------------------------------------------------------------------------

_LTX_LATENT = 128
_LTX_PATCH = 3 * 4 * 4


def _ltx_encoder() -> Shapes:
    """Of each block the number of its convolutions' pairs, or where it halves the clip, or doubles the channels."""
    name, width, shapes = "encoder.down_blocks", 128, _ltx_conv("encoder.conv_in", _LTX_PATCH, 128)
    for slot, kind in enumerate((4, "half", "wider", 3, "half", "wider", 3, "half", 3, 4)):
        block = f"{name}.{slot}"
        if kind == "half":
            shapes |= _ltx_conv(block, width, width)
        elif kind == "wider":
            shapes |= _ltx_block(block, width, 2 * width)
            width *= 2
        else:
            shapes |= _ltx_blocks(block, width, int(kind))
    return shapes | _ltx_conv("encoder.conv_out", width, _LTX_LATENT + 1)


def _ltx_decoder() -> Shapes:
    """The same in the other direction."""
    name, width, shapes = "decoder.up_blocks", 512, _ltx_conv("decoder.conv_in", _LTX_LATENT, 512)
    for slot, kind in enumerate((4, 3, "double", 3, "narrower", "double", 3, "narrower", "double", 4)):
        block = f"{name}.{slot}"
        if kind == "double":
            shapes |= _ltx_conv(f"{block}.conv", width, 8 * width)
        elif kind == "narrower":
            shapes |= _ltx_block(block, width, width // 2)
            width //= 2
        else:
            shapes |= _ltx_blocks(block, width, int(kind))
    return shapes | _ltx_conv("decoder.conv_out", width, _LTX_PATCH)


def _ltx_statistics() -> Shapes:
    return {f"per_channel_statistics.{name}": (_LTX_LATENT,) for name in ("std-of-means", "mean-of-means")}


def _ltx_blocks(name: str, width: int, count: int) -> Shapes:
    blocks = (_ltx_block(f"{name}.res_blocks.{i}", width, width) for i in range(count))
    return {key: shape for block in blocks for key, shape in block.items()}


def _ltx_block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = _ltx_conv(f"{name}.conv1", inputs, outputs) | _ltx_conv(f"{name}.conv2", outputs, outputs)
    if inputs == outputs:
        return shapes
    return shapes | _layer(f"{name}.conv_shortcut", inputs, outputs, 1, 1, 1) | _norm(f"{name}.norm3.norm", inputs)


def _ltx_conv(name: str, inputs: int, outputs: int) -> Shapes:
    return _layer(f"{name}.conv", inputs, outputs, 3, 3, 3)
