"""From a checkpoint to a VAE: on which device, and in which dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from .checkpoint import Checkpoint, open_checkpoint
from .device import channels_innermost, default_device, default_dtype
from .models import build
from .nets.arithmetic import convolving_dtype
from .nets.layouts import innermost
from .spec import Spec
from .vae import VAE


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VAE:
    """A VAE from a file or folder in any layout that checkpoint/ knows.

    `variant` names it where files cannot be told apart ("sdxl"); `device` defaults to CUDA where torch has it, else the CPU;
    `dtype`, in which it computes, to what is fast on the device and safe for the variant: bfloat16 or float16 to decode, float32 to
    encode, and float32 for both where the device has nothing faster. Raises CheckpointError with one sentence for anything wrong.
    """
    return from_checkpoint(open_checkpoint(path, variant=variant), device=device, dtype=dtype)


def load_embedded(*, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VAE:
    """The small VAE that comes with the package, trained by tools/train_embedded.py."""
    vae = load(Path(__file__).parent / "embedded", device=device, dtype=dtype)
    vae.spec = replace(vae.spec, name="embedded", title="the embedded VAE")
    return vae


def from_checkpoint(
    opened: Checkpoint,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    weights_on: torch.device | str | None = None,
) -> VAE:
    """A VAE from an opened checkpoint. It computes on `device`; its weights are put on `weights_on`, by default there too."""
    where = default_device() if device is None else torch.device(device)
    spec = Spec.of(opened.variant, opened.config)
    net = build(opened, dtype=dtype or default_dtype(where, spec, "encode"), device=weights_on or where)
    if dtype is None:
        for part in (net.decoder, getattr(net, "post_quant_conv", None)):
            if isinstance(part, nn.Module):
                part.to(default_dtype(where, spec, "decode"))
    if torch.device(weights_on or where).type == where.type:
        lay_out(net)
    return VAE(net, spec, opened, None if weights_on is None else where)


def lay_out(net: nn.Module) -> None:
    """Puts the weights of convolutions into the layout of their runs, once: else every pass would copy them.

    On a CPU those of half precision alone, if it computes in that: in float32 wide ones are filtered, of kernels made anew, and
    what is mapped from a file may stay so.
    """
    for weight in net.parameters():
        on_cpu = weight.device.type == "cpu"
        mapped = on_cpu and (weight.itemsize > 2 or convolving_dtype(weight) != weight.dtype)
        if not mapped and channels_innermost(weight.device, weight.dtype, weight.ndim):
            weight.data = innermost(weight.data)
