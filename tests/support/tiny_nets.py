"""Every variant for pictures with its topology, and widths small enough for a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_core.models import CLASSES, Model
from vae_core.spec import CLIPS, KL_FLUX2, TINY, VARIANTS

NAMES = tuple(name for name, row in VARIANTS.items() if row.network not in CLIPS)

KL_WIDTHS = {3: (16, 16, 32), 4: (16, 16, 32, 32)}


def tiny_config(name: str) -> dict[str, Any]:
    """The variant's configuration with narrow blocks and 8 groups (16 channels for the tiny networks)."""
    row = VARIANTS[name]
    config = dict(row.config)
    if row.network == TINY:
        return config | {f"{side}_block_out_channels": (16,) * 4 for side in ("encoder", "decoder")}
    levels = len(config.get("block_out_channels", (0,) * 4))
    config |= {"block_out_channels": KL_WIDTHS[levels], "norm_num_groups": 8, "layers_per_block": 1}
    if row.network == KL_FLUX2:
        config |= {"latent_channels": 8}
    return config


def tiny_net(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """Random weights, drawn anew the same way for the same name; norms too, so that scale and shift matter."""
    torch.manual_seed(NAMES.index(name))
    net = CLASSES[VARIANTS[name].network](**tiny_config(name)).eval()
    with torch.no_grad():
        for key, value in net.named_parameters():
            if "norm" in key:
                value.add_(torch.randn_like(value) * 0.2)
    return net.to(dtype)


def relative_error(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in float64."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())
