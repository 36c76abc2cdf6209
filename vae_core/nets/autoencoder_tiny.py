"""AutoencoderTiny: TAESD, TAESDXL, TAESD3, TAEF1 and, with pooled mid blocks, TAEF2.

    encoder   conv → blocks → 3 × (stride-2 convolution → blocks) → conv
    decoder   soft clamp → conv, act → 3 × (blocks → 2× upsampling → convolution) → block → conv
    block     act(conv, act, conv, act, conv + skip)

No normalisation and no attention (but for TAEF2's pooled blocks), so every output cell depends on a bounded neighbourhood.
Parameter names are those of diffusers' AutoencoderTiny; topology and constants of madebyollin/taesd, taesd.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .config import Config, require, require_positive_ints
from .convolutions import Conv2d, UpsampleConv2d
from .layers import GroupNorm, Pointwise, activation, plus, relu
from .passes import Field, Op


@dataclass(frozen=True)
class AutoencoderTinyConfig(Config):
    """Fields and defaults as diffusers has them, and `pool_mid_blocks` for TAEF2, which diffusers does not know."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: str = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: int = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    pool_mid_blocks: bool = False

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            widths, blocks = f"{side}_block_out_channels", f"num_{side}_blocks"
            for name in (widths, blocks):
                object.__setattr__(self, name, tuple(self[name]))
                require_positive_ints(name, self[name])
            require(
                len(self[widths]) == len(self[blocks]), f"{widths} and {blocks} must have as many entries as each other"
            )
            # The published code gives each stage's convolutions one width; no checkpoint changes it between stages.
            same = all(a == b for a, b in pairwise(self[widths]))
            require(same, f"{widths} must all be equal; got {self[widths]!r}")
        require(self.upsample_fn == "nearest", f"upsample_fn must be 'nearest'; got {self.upsample_fn!r}")
        require_positive_ints("upsampling_scaling_factor", (self.upsampling_scaling_factor,))


# Pictures are [0, 1] inside the network and [-1, 1] outside; the latent is bounded softly at ±3.
to_unit_range = Pointwise("to [0, 1]", lambda x: x.add(1).div(2), lambda x: x.add_(1).div_(2))
from_unit_range = Pointwise("to [-1, 1]", lambda x: x.mul(2).sub(1), lambda x: x.mul_(2).sub_(1))


def _soft_clamp(x: Tensor) -> Tensor:
    return torch.tanh(x / 3) * 3


soft_clamp = Pointwise("soft clamp", _soft_clamp, lambda x: x.div_(3).tanh_().mul_(3))


def steps(layers: nn.ModuleList) -> list[Any]:
    """The layers that hold parameters: in the checkpoints' numbering, activations and upsamplings have a number too."""
    return [layer for layer in layers if not isinstance(layer, nn.Identity)]


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, act: Op, pooled: bool = False):
        super().__init__()
        # Slots 1 and 3 hold the activations in the published code; they have no parameters.
        self.conv = nn.ModuleList(
            [
                Conv2d(c_in, c_out, 3, pads=(1, 1)),
                nn.Identity(),
                Conv2d(c_out, c_out, 3, pads=(1, 1)),
                nn.Identity(),
                Conv2d(c_out, c_out, 3, pads=(1, 1)),
            ]
        )
        self.skip = Conv2d(c_in, c_out, 1, bias=False) if c_in != c_out else nn.Identity()
        self.pool = Pool(c_in) if pooled else None
        self.act = act

    def forward(self, x: Field) -> Field:
        if self.pool is not None:
            x = self.pool(x)
        first, second, third = steps(self.conv)
        h = x.through(first, self.act).through(second, self.act)
        return h.through(third, plus(x, by=self.skip if isinstance(self.skip, Conv2d) else None), relu)


class Pool(nn.ModuleList):
    """x + 1×1 → norm over the picture → ReLU → 1×1, which tells each cell about the whole (TAEF2)."""

    def __init__(self, channels: int, expansion: int = 4, groups: int = 4):
        inner = expansion * channels
        super().__init__(
            [
                Conv2d(channels, inner, 1, bias=False),
                GroupNorm(groups, inner, eps=1e-5),
                nn.Identity(),
                Conv2d(inner, channels, 1, bias=False),
            ]
        )

    def forward(self, x: Field) -> Field:
        widen, norm, narrow = steps(self)
        return x.through(widen).through(norm, relu, narrow, plus(x))


class EncoderTiny(nn.Module):
    """Pixels `b 3 h w` in [-1, 1] → latents `b z ⌈h/8⌉ ⌈w/8⌉`."""

    def __init__(self, config: AutoencoderTinyConfig):
        act, widths, last = (
            activation(config.act_fn),
            config.encoder_block_out_channels,
            len(config.num_encoder_blocks) - 1,
        )
        layers: list[nn.Module] = []
        for i, (width, blocks) in enumerate(zip(widths, config.num_encoder_blocks, strict=True)):
            first = Conv2d(config.in_channels, width, 3, pads=(1, 1))
            layers.append(first if i == 0 else Conv2d(width, width, 3, stride=2, pads=(1, 1), bias=False))
            layers += [Block(width, width, act, pooled=config.pool_mid_blocks and i == last) for _ in range(blocks)]
        super().__init__()
        self.layers = nn.ModuleList([*layers, Conv2d(widths[-1], config.latent_channels, 3, pads=(1, 1))])

    def forward(self, x: Field) -> Field:
        conv_in, *blocks, conv_out = steps(self.layers)
        x = x.through(to_unit_range, conv_in)
        for block in blocks:
            x = x.through(block) if isinstance(block, Op) else block(x)
        return x.through(conv_out)


class DecoderTiny(nn.Module):
    """Latents `b z h w` → pixels `b 3 8h 8w`, about [-1, 1], not clamped."""

    def __init__(self, config: AutoencoderTinyConfig):
        act, widths, last = (
            activation(config.act_fn),
            config.decoder_block_out_channels,
            len(config.num_decoder_blocks) - 1,
        )
        layers: list[nn.Module] = [Conv2d(config.latent_channels, widths[0], 3, pads=(1, 1)), nn.Identity()]
        for i, (width, blocks) in enumerate(zip(widths, config.num_decoder_blocks, strict=True)):
            layers += [Block(width, width, act, pooled=config.pool_mid_blocks and i == 0) for _ in range(blocks)]
            if i < last:
                layers += [nn.Identity(), UpsampleConv2d(width, width, config.upsampling_scaling_factor, bias=False)]
        super().__init__()
        self.layers = nn.ModuleList([*layers, Conv2d(widths[-1], config.out_channels, 3, pads=(1, 1))])
        self.act = act

    def forward(self, z: Field) -> Field:
        conv_in, *blocks, conv_out = steps(self.layers)
        x = z.through(soft_clamp, conv_in, self.act)
        for block in blocks:
            x = x.through(block) if isinstance(block, Op) else block(x)
        return x.through(conv_out, from_unit_range)


class TinyNetwork(nn.Module):
    """Encoder and decoder; there is no posterior."""

    def __init__(self, config: AutoencoderTinyConfig):
        super().__init__()
        self.config = config
        self.encoder = EncoderTiny(config)
        self.decoder = DecoderTiny(config)

    def encode_field(self, x: Field) -> Field:
        """Pixels `b 3 h w` in [-1, 1] → latents."""
        return self.encoder(x)

    def decode_field(self, z: Field) -> Field:
        """Latents → pixels, about [-1, 1]."""
        return self.decoder(z)
