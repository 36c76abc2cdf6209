"""AutoencoderKLCogVideoX: the causal video VAE of CogVideoX.

Figure, with n levels of widths c_0 … c_{n-1} and `layers_per_block` = l; 3×3×3 convolutions are causal and repeat the first frame:

    encoder   conv_in → n × (l residual blocks, halving of h and w, at the first levels of t too, except at the last level) → mid →
              norm, silu, conv_out
    mid       two residual blocks
    decoder   conv_in → mid → n × (l + 1 residual blocks, doubling of h and w, at the first levels of t too, except at the last
              level) → norm, silu, conv_out

Every norm of the decoder is scaled and shifted by the latents. Norms see one chunk of the clip, 8 frames or 2 latents, the
remainder in the first: the weights were trained so, and other chunks give other results. Parameter names are those of diffusers.
The topology is that of THUDM/CogVideo, sat/vae_modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from torch import nn

from .autoencoder_kl import check_widths
from .causal_convolution import CausalConv3d
from .clips import halved_frames, repeated_frames
from .conditioned import Conditioned
from .config import Config, require, require_block_types, require_positive_ints
from .convolutions import Conv2d, UpsampleConv2d
from .layers import GroupNorm, activation, plus, silu
from .passes import Field, Op

FRAMES_PER_CHUNK = 8
LATENTS_PER_CHUNK = 2
SPATIAL_NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLCogVideoXConfig(Config):
    """Fields and defaults as diffusers has them; block types that are left out are one for each level."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ()
    up_block_types: tuple[str, ...] = ()
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    act_fn: str = "silu"
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: float = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    invert_scale_latents: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        check_widths("block_out_channels", self.block_out_channels, self.norm_num_groups)
        levels = len(self.block_out_channels)
        for name, known in (("down_block_types", "CogVideoXDownBlock3D"), ("up_block_types", "CogVideoXUpBlock3D")):
            object.__setattr__(self, name, require_block_types(name, getattr(self, name), known, levels))
        require_positive_ints("layers_per_block, latent_channels", (self.layers_per_block, self.latent_channels))
        require_positive_ints("in_channels, out_channels", (self.in_channels, self.out_channels))
        halvings = log2(self.temporal_compression_ratio) if self.temporal_compression_ratio >= 1 else -1.0
        right = halvings.is_integer() and halvings < levels
        require(right, f"temporal_compression_ratio must be a power of 2 that the levels can halve; got {halvings}")
        plain = not (self.use_quant_conv or self.use_post_quant_conv)
        require(
            plain,
            "use_quant_conv and use_post_quant_conv are not known for this network; no published weights have them",
        )

    @property
    def halvings_t(self) -> int:
        """Levels at which time is halved."""
        return int(log2(self.temporal_compression_ratio))


class Causal(nn.Module):
    """A 3×3×3 or pointwise convolution under the name that diffusers gives it."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3):
        super().__init__()
        self.conv = CausalConv3d(c_in, c_out, kernel, repeats_first=True)


class SpatialNorm(nn.Module):
    """Group normalisation, scaled and shifted by the latents."""

    def __init__(self, channels: int, latent_channels: int, groups: int):
        super().__init__()
        self.norm_layer = GroupNorm(groups, channels, SPATIAL_NORM_EPS)
        self.conv_y, self.conv_b = (Causal(latent_channels, channels, 1) for _ in range(2))


def normalised(norm: nn.Module, z: Field | None) -> tuple[Op, ...]:
    """The operations of a norm; those of the decoder take the latents of the chunk."""
    if isinstance(norm, SpatialNorm):
        assert z is not None
        return norm.norm_layer, Conditioned(z, norm.conv_y.conv, norm.conv_b.conv)
    assert isinstance(norm, GroupNorm)
    return (norm,)


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, config: AutoencoderKLCogVideoXConfig, conditioned: bool):
        super().__init__()
        groups, z = config.norm_num_groups, config.latent_channels

        def norm(channels: int) -> nn.Module:
            return SpatialNorm(channels, z, groups) if conditioned else GroupNorm(groups, channels, config.norm_eps)

        self.norm1, self.conv1 = norm(c_in), Causal(c_in, c_out)
        self.norm2, self.conv2 = norm(c_out), Causal(c_out, c_out)
        self.conv_shortcut = CausalConv3d(c_in, c_out, 1) if c_in != c_out else None
        self.act = activation(config.act_fn)

    def forward(self, x: Field, z: Field | None) -> Field:
        h = x.through(*normalised(self.norm1, z), self.act, self.conv1.conv)
        return h.through(*normalised(self.norm2, z), self.act, self.conv2.conv, plus(x, by=self.conv_shortcut))


class Downsample(nn.Module):
    """Half of h and w, zeros below and to the right; first the mean of every two frames, where `in_time`."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.conv, self.in_time = Conv2d(channels, channels, 3, stride=2, pads=(0, 1)), in_time

    def forward(self, x: Field, z: Field | None) -> Field:
        if self.in_time:
            x = x.through(halved_frames)
        return x.frames().through(self.conv).clip(x.shape[0])


class Upsample(nn.Module):
    """Twice h and w; then every frame twice, where `in_time`: repeated first, each would be convolved twice."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.conv, self.in_time = UpsampleConv2d(channels, channels), in_time

    def forward(self, x: Field, z: Field | None) -> Field:
        made = x.frames().through(self.conv).clip(x.shape[0])
        return made.through(repeated_frames) if self.in_time else made


class Block(nn.Module):
    """Residual blocks, and a change of size."""

    def __init__(self, resnets: list[ResidualBlock], down: Downsample | None = None, up: Upsample | None = None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = None if down is None else nn.ModuleList([down])
        self.upsamplers = None if up is None else nn.ModuleList([up])

    def forward(self, x: Field, z: Field | None) -> Field:
        for layer in (*self.resnets, *(self.downsamplers or ()), *(self.upsamplers or ())):
            x = layer(x, z)
        return x


class Encoder(nn.Module):
    """Pixels `b 3 t h w` of one chunk → moments `b 2z t' h/8 w/8`."""

    def __init__(self, config: AutoencoderKLCogVideoXConfig):
        super().__init__()
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.conv_in = Causal(config.in_channels, widths[0])
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            c_in = widths[max(i - 1, 0)]
            resnets = [
                ResidualBlock(c_in if j == 0 else width, width, config, conditioned=False)
                for j in range(config.layers_per_block)
            ]
            self.down_blocks.append(Block(resnets, Downsample(width, i < config.halvings_t) if i < last else None))
        self.mid_block = Block([ResidualBlock(widths[-1], widths[-1], config, conditioned=False) for _ in range(2)])
        self.norm_out = GroupNorm(config.norm_num_groups, widths[-1], 1e-6)
        self.conv_out = Causal(widths[-1], 2 * config.latent_channels)

    def forward(self, x: Field) -> Field:
        x = x.through(self.conv_in.conv)
        for block in (*self.down_blocks, self.mid_block):
            x = block(x, None)
        return x.through(self.norm_out, silu, self.conv_out.conv)


class Decoder(nn.Module):
    """Latents `b z t h w` of one chunk → pixels `b 3 t' 8h 8w`, about [-1, 1], not clamped."""

    def __init__(self, config: AutoencoderKLCogVideoXConfig):
        super().__init__()
        widths, last = config.block_out_channels[::-1], len(config.block_out_channels) - 1
        self.conv_in = Causal(config.latent_channels, widths[0])
        self.mid_block = Block([ResidualBlock(widths[0], widths[0], config, conditioned=True) for _ in range(2)])
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            c_in = widths[max(i - 1, 0)]
            resnets = [
                ResidualBlock(c_in if j == 0 else width, width, config, conditioned=True)
                for j in range(config.layers_per_block + 1)
            ]
            self.up_blocks.append(Block(resnets, up=Upsample(width, i < config.halvings_t) if i < last else None))
        self.norm_out = SpatialNorm(widths[-1], config.latent_channels, config.norm_num_groups)
        self.conv_out = Causal(widths[-1], config.out_channels)

    def forward(self, z: Field) -> Field:
        x = z.through(self.conv_in.conv)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, z)
        return x.through(*normalised(self.norm_out, z), silu, self.conv_out.conv)


class CogVideoXNetwork(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: AutoencoderKLCogVideoXConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def encode_chunk(self, x: Field, first: bool) -> Field:
        """Pixels `b 3 t h w` in [-1, 1] → moments."""
        return self.encoder(x)

    def decode_chunk(self, z: Field, first: bool) -> Field:
        """Raw latents `b z t h w` → pixels."""
        return self.decoder(z)


def chunks(count: int, size: int) -> list[int]:
    """How a clip of `count` frames, or latents, is cut: `size` each, the remainder in the first."""
    pieces = max(count // size, 1)
    return [count - size * (pieces - 1), *[size] * (pieces - 1)]
