"""AutoencoderKLWan: the causal video VAE of Wan 2.1 and, with weights of its own, of Qwen-Image.

Figure, with n levels of widths base_dim × dim_mult and `num_res_blocks` = l; norm is RMSNorm, every 3×3×3 convolution is causal:

    encoder   conv_in → n × (l residual blocks, halving of h and w, at some levels of t too, except at the last level) → mid → norm,
              silu, conv_out
    mid       residual block → attention within each frame → residual block
    decoder   conv_in → mid → n × (l + 1 residual blocks, doubling of h and w, at some levels of t too, except at the last level)
              → norm, silu, conv_out

The first frame of a clip stands alone: it is neither halved nor doubled in time. So a clip goes through in chunks of which the
first is that frame: 1, 4, 4, … frames, and 1 and then any number of latents; the result does not depend on how the rest is cut.
Parameter names are those of diffusers. The topology is that of Wan-Video/Wan2.1, wan/modules/vae.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from torch import nn

from .attention import Attend, AttnProcessor2_0, LinearPart, Residual
from .causal_convolution import CausalConv3d
from .clips import RMSNorm, frames_from_channels
from .config import Config, require, require_positive_ints
from .convolutions import Conv2d, UpsampleConv2d
from .layers import plus, silu
from .passes import Field, Op

# Source: diffusers 0.42, AutoencoderKLWan; the same numbers stand in Wan2.1's wan/modules/vae.py.
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True)
class _SharedConfig(Config):
    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = LATENTS_MEAN
    latents_std: tuple[float, ...] = LATENTS_STD

    def __post_init__(self) -> None:
        for name in ("dim_mult", "attn_scales", "temperal_downsample", "latents_mean", "latents_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require_positive_ints("base_dim, z_dim, num_res_blocks", (self.base_dim, self.z_dim, self.num_res_blocks))
        require_positive_ints("dim_mult", self.dim_mult)
        plain = not self.attn_scales and self.dropout == 0
        require(plain, "attn_scales must be empty and dropout 0 for this network; no published weights have others")
        fits = len(self.temperal_downsample) >= self.halvings
        require(
            fits, f"temperal_downsample must say for each of the {self.halvings} halvings whether time is halved too"
        )
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            require(len(values) == self.z_dim, f"{name} has {len(values)} entries for {self.z_dim} latent channels")

    @property
    def halvings(self) -> int:
        """Levels at which height and width are halved."""
        return len(self.dim_mult) - 1

    @property
    def halvings_t(self) -> int:
        """Levels at which time is halved too."""
        return sum(self.temperal_downsample[: self.halvings])


@dataclass(frozen=True)
class AutoencoderKLWanConfig(_SharedConfig):
    """Fields and defaults as diffusers has them, for Wan 2.1.

    The scale factors follow from the levels, and decoded pixels are clamped whatever `clip_output` says, as diffusers does; the
    fields are there for the config.json files that have them.
    """

    decoder_base_dim: int | None = None
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int | None = 4
    scale_factor_spatial: int | None = 8
    clip_output: bool = True

    def __post_init__(self) -> None:
        known = not self.is_residual and self.patch_size is None
        require(known, "is_residual and patch_size belong to the network of Wan 2.2, which this version does not have")
        super().__post_init__()
        require_positive_ints("in_channels, out_channels", (self.in_channels, self.out_channels))


@dataclass(frozen=True)
class AutoencoderKLQwenImageConfig(_SharedConfig):
    """Fields and defaults as diffusers has them; the network is that of Wan 2.1."""

    input_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_ints("input_channels", (self.input_channels,))

    @property
    def in_channels(self) -> int:
        return self.input_channels

    @property
    def out_channels(self) -> int:
        return self.input_channels

    @property
    def decoder_base_dim(self) -> None:
        return None


AnyConfig = AutoencoderKLWanConfig | AutoencoderKLQwenImageConfig


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1, self.conv1 = RMSNorm(c_in, axes=3), CausalConv3d(c_in, c_out, 3)
        self.norm2, self.conv2 = RMSNorm(c_out, axes=3), CausalConv3d(c_out, c_out, 3)
        self.conv_shortcut = CausalConv3d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Field, first: bool) -> Field:
        h = x.through(self.norm1, silu, self.conv1)
        return h.through(self.norm2, silu, self.conv2, plus(x, by=self.conv_shortcut))


class FrameAttention(nn.Module):
    """One head over every position of a frame; frames do not see each other."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels, axes=2)
        self.to_qkv, self.proj = Conv2d(channels, 3 * channels, 1), Conv2d(channels, channels, 1)
        self.processor = AttnProcessor2_0()

    def forward(self, clip: Field, first: bool) -> Field:
        x = clip.frames()
        q, k, v = (LinearPart(self.to_qkv, i, 3) for i in range(3))
        keys, values = x.through(self.norm, k), x.through(self.norm, v)
        made = x.through(self.norm, q, Attend(keys, values, self.processor), self.proj, Residual(x))
        return made.clip(clip.shape[0])


class Downsample(nn.Module):
    """Half of h and w, zeros below and to the right; half of t after the first frame, where `in_time`."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), Conv2d(channels, channels, 3, stride=2, pads=(0, 1))])
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1), stride_t=2) if in_time else None

    @property
    def conv(self) -> Op:
        """Of each frame."""
        return cast(Op, self.resample[1])

    def forward(self, x: Field, first: bool) -> Field:
        made = x.frames().through(self.conv).clip(x.shape[0])
        if self.time_conv is None:
            return made
        if first:
            made.remember(self.time_conv)
            return made
        return made.through(self.time_conv)


class Upsample(nn.Module):
    """Twice h and w, and half the channels; twice t after the first frame, where `in_time`.

    The first frame is not in the history of the convolution in time, which begins with zeros.
    """

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.resample = nn.ModuleList([nn.Identity(), UpsampleConv2d(channels, channels // 2)])
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    @property
    def conv(self) -> Op:
        """Of each frame."""
        return cast(Op, self.resample[1])

    def forward(self, x: Field, first: bool) -> Field:
        if self.time_conv is not None and not first:
            x = x.through(self.time_conv, frames_from_channels)
        return x.frames().through(self.conv).clip(x.shape[0])


class MidBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels)])
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))

    def forward(self, x: Field, first: bool) -> Field:
        before, after = self.resnets
        for layer in (before, *self.attentions, after):
            x = layer(x, first)
        return x


class Encoder(nn.Module):
    """Pixels `b 3 t h w` of one chunk → moments `b 2z t' h/8 w/8` (before quant_conv)."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        widths = [config.base_dim * n for n in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.in_channels, widths[0], 3)
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(pairwise(widths)):
            layers += [ResidualBlock(c_in if j == 0 else c_out, c_out) for j in range(config.num_res_blocks)]
            if i < len(config.dim_mult) - 1:
                layers.append(Downsample(c_out, config.temperal_downsample[i]))
        self.down_blocks = nn.ModuleList(layers)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1], axes=3)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim, 3)

    def forward(self, x: Field, first: bool) -> Field:
        x = x.through(self.conv_in)
        for layer in (*self.down_blocks, self.mid_block):
            x = layer(x, first)
        return x.through(self.norm_out, silu, self.conv_out)


class UpBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, layers: int, upsample: Upsample | None):
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(c_in if i == 0 else c_out, c_out) for i in range(layers))
        self.upsamplers = None if upsample is None else nn.ModuleList([upsample])

    def forward(self, x: Field, first: bool) -> Field:
        for layer in (*self.resnets, *(self.upsamplers or ())):
            x = layer(x, first)
        return x


class Decoder(nn.Module):
    """Latents `b z t h w` of one chunk (after post_quant_conv) → pixels `b 3 t' 8h 8w`, about [-1, 1], not clamped."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        base, levels = config.decoder_base_dim or config.base_dim, len(config.dim_mult)
        widths = [base * n for n in (config.dim_mult[-1], *config.dim_mult[::-1])]
        in_time = config.temperal_downsample[: levels - 1][::-1]
        self.conv_in = CausalConv3d(config.z_dim, widths[0], 3)
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList(
            # Each upsampling has halved the channels of the level before.
            UpBlock(
                c_in if i == 0 else c_in // 2,
                c_out,
                config.num_res_blocks + 1,
                Upsample(c_out, in_time[i]) if i < levels - 1 else None,
            )
            for i, (c_in, c_out) in enumerate(pairwise(widths))
        )
        self.norm_out = RMSNorm(widths[-1], axes=3)
        self.conv_out = CausalConv3d(widths[-1], config.out_channels, 3)

    def forward(self, z: Field, first: bool) -> Field:
        x = self.mid_block(z.through(self.conv_in), first)
        for block in self.up_blocks:
            x = block(x, first)
        return x.through(self.norm_out, silu, self.conv_out)


class WanNetwork(nn.Module):
    """Encoder, decoder and the pointwise convolutions between them and the latent."""

    def __init__(self, config: AnyConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, 1)

    def encode_chunk(self, x: Field, first: bool) -> Field:
        """Pixels `b 3 t h w` in [-1, 1] → moments. The first chunk is one frame, later ones are multiples of 4."""
        return self.encoder(x, first).through(self.quant_conv)

    def decode_chunk(self, z: Field, first: bool) -> Field:
        """Raw latents `b z t h w` → pixels. The first chunk is one latent, later ones are of any length."""
        return self.decoder(z.through(self.post_quant_conv), first)
