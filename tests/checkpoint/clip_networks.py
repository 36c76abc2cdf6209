"""The networks of Wan 2.1, Qwen-Image and CogVideoX in several sizes, and the names that their makers give the tensors."""

from __future__ import annotations

from typing import Any

import torch
from checkpoint_files import full_shapes, state_of
from torch import Tensor, nn

from vae_core.checkpoint.config import FIELDS
from vae_core.checkpoint.keymaps import COGVIDEOX_ORIGINAL, WAN_ORIGINAL, Keymap, Numbering
from vae_core.nets.cogvideox import AutoencoderKLCogVideoXConfig, CogVideoXNetwork
from vae_core.nets.wan import AutoencoderKLQwenImageConfig, AutoencoderKLWanConfig, WanNetwork
from vae_core.spec import COGVIDEOX, QWEN, VARIANTS, WAN

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


def full(variant: str) -> dict[str, tuple[int, ...]]:
    return full_shapes(VARIANTS[variant].network, VARIANTS[variant].config)


def spelled(keymap: Keymap, state: dict[str, Tensor]) -> dict[str, Tensor]:
    at = Numbering(state)
    return dict(keymap.theirs(name, tensor, at) for name, tensor in state.items())


SIZES = [(WAN, WAN_ORIGINAL, size) for size in WAN_SIZES.values()]
SIZES += [(COGVIDEOX, COGVIDEOX_ORIGINAL, size) for size in COGVIDEOX_SIZES.values()]
SIZE_NAMES = [f"wan, {size}" for size in WAN_SIZES] + [f"cogvideox, {size}" for size in COGVIDEOX_SIZES]
