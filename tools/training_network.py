"""The network of the embedded model before training, and the loss that training lowers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from vae_core import AutoencoderKL

CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [24, 48, 96, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

KL_WEIGHT = 3e-5  # per latent value; only keeps the latents from drifting to large values


def build_network() -> AutoencoderKL:
    """A fresh network whose posterior starts narrow: a unit-variance start would drown the signal."""
    network = AutoencoderKL(**CONFIG)
    assert network.quant_conv is not None and network.quant_conv.bias is not None
    with torch.no_grad():
        network.quant_conv.bias[CONFIG["latent_channels"] :] = -6.0
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def gradient_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between neighbour differences: keeps edges sharp where plain L1 settles for blur."""
    error = output - target
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return across + down


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 and MSE at full size, the same at reduced sizes, colour, and edges.

    The strong terms at 8x reduction are the mean colour of each latent cell. Without them the network
    spends its first thousand steps on a sharp but grey picture; without the one on colour differences
    it then stops at a single colour axis (orange to teal), which is most of what photographs hold.
    """
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for factor, weight in ((2, 0.5), (4, 0.5)):
        small, small_target = F.avg_pool2d(output, factor), F.avg_pool2d(target, factor)
        loss = loss + weight * F.l1_loss(small, small_target)
    error = F.avg_pool2d(output, 8) - F.avg_pool2d(target, 8)
    loss = loss + 0.5 * error.abs().mean() + 3.0 * error.square().mean()
    colour = error[:, [0, 2]] - error[:, [1]]
    loss = loss + 0.3 * colour.abs().mean() + 3.0 * colour.square().mean()
    return loss + 0.25 * gradient_loss(output, target)


def build_probe() -> torch.nn.Conv2d:
    """A linear map from latents to the mean colour of their cells; only training uses it."""
    return torch.nn.Conv2d(CONFIG["latent_channels"], CONFIG["out_channels"], 1)


def training_loss(
    network: AutoencoderKL, probe: torch.nn.Conv2d, batch: torch.Tensor, probe_weight: float, bf16: bool
) -> torch.Tensor:
    """One forward pass through encoder, posterior sample and decoder.

    The probe asks for latents from which the mean colour can be read linearly. Left alone, training
    settles where the four latents hold brightness, two slopes and orange-to-blue, and never finds green.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        posterior = network.encode(batch).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        output = network.decode(latents).sample.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    loss = reconstruction_loss(output, batch) + KL_WEIGHT * kl
    return loss + probe_weight * F.mse_loss(probe(mean), F.avg_pool2d(batch, 8))
