"""AutoencoderKL: the image VAE of Stable Diffusion 1 to 3, SDXL, FLUX.1, the x4 upscaler and, with a packed latent, FLUX.2.

Figure, with n levels of widths c_0 … c_{n-1} and `layers_per_block` = l:

    encoder   conv_in → n × (l residual blocks, stride-2 convolution except at the last level) → mid → norm, silu, conv_out
    mid       residual block → attention over the whole picture → residual block
    decoder   conv_in → mid → n × (l + 1 residual blocks, 2× upsampling except at the last level) → norm, silu, conv_out

`act_fn` is the activation of the residual blocks; the last one is SiLU always. Parameter names are those of diffusers.
The topology is that of CompVis/latent-diffusion, ldm/modules/diffusionmodules/model.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .attention import Attention
from .config import Config, require, require_block_types, require_positive_ints
from .convolutions import Conv2d, UpsampleConv2d
from .layers import GroupNorm, activation, plus, silu
from .passes import Field, Op

EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLConfig(Config):
    """Fields and defaults as diffusers has them."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ()
    up_block_types: tuple[str, ...] = ()
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        self._check(len(self.block_out_channels))

    def _check(self, levels: int) -> None:
        check_widths("block_out_channels", self.block_out_channels, self.norm_num_groups)
        require_positive_ints("layers_per_block", (self.layers_per_block,))
        require_positive_ints(
            "in_channels, out_channels, latent_channels", (self.in_channels, self.out_channels, self.latent_channels)
        )
        for name, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            object.__setattr__(self, name, require_block_types(name, getattr(self, name), known, levels))


@dataclass(frozen=True)
class AutoencoderKLFlux2Config(AutoencoderKLConfig):
    """FLUX.2: the published widths are the defaults; the latent is packed 2×2 and batch-normalised outside the network."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 32
    sample_size: int | tuple[int, int] = 1024
    decoder_block_out_channels: tuple[int, ...] | None = None
    batch_norm_eps: float = 1e-4
    batch_norm_momentum: float = 0.1
    patch_size: tuple[int, int] = (2, 2)

    def _check(self, levels: int) -> None:
        super()._check(levels)
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        if self.decoder_block_out_channels is not None:
            object.__setattr__(self, "decoder_block_out_channels", tuple(self.decoder_block_out_channels))
            check_widths("decoder_block_out_channels", self.decoder_block_out_channels, self.norm_num_groups)
            same = len(self.decoder_block_out_channels) == levels
            require(same, f"decoder_block_out_channels must have {levels} entries, as block_out_channels has")


def check_widths(name: str, widths: tuple[int, ...], groups: int) -> None:
    """Raises ConfigError unless every width is a positive multiple of the number of groups."""
    require_positive_ints(name, widths)
    require_positive_ints("norm_num_groups", (groups,))
    for width in widths:
        require(width % groups == 0, f"{name} holds {width}, which norm_num_groups {groups} does not divide")


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int, act: Op):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(groups, c_in, EPS), Conv2d(c_in, c_out, 3, pads=(1, 1))
        self.norm2, self.conv2 = GroupNorm(groups, c_out, EPS), Conv2d(c_out, c_out, 3, pads=(1, 1))
        self.conv_shortcut = Conv2d(c_in, c_out, 1) if c_in != c_out else None
        self.act = act

    def forward(self, x: Field) -> Field:
        h = x.through(self.norm1, self.act, self.conv1)
        return h.through(self.norm2, self.act, self.conv2, plus(x, by=self.conv_shortcut))


class Downsample(nn.Module):
    """Stride 2; zeros below and to the right of the picture only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, pads=(0, 1))

    def forward(self, x: Field) -> Field:
        return x.through(self.conv)


class Upsample(nn.Module):
    """Nearest neighbour 2×, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = UpsampleConv2d(channels, channels)

    def forward(self, x: Field) -> Field:
        return x.through(self.conv)


class DownBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, act: Op, downsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups, act) for i in range(layers))
        self.downsamplers = nn.ModuleList([Downsample(c_out)] if downsample else [])

    def forward(self, x: Field) -> Field:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, layers: int, groups: int, act: Op, upsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups, act) for i in range(layers))
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if upsample else [])

    def forward(self, x: Field) -> Field:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int, act: Op, attention: bool):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups, EPS)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups, act) for _ in range(2))

    def forward(self, x: Field) -> Field:
        first, second = self.resnets
        for layer in (first, *self.attentions, second):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """Pixels `b 3 h w` → moments `b 2z h/f w/f` (before quant_conv); sizes are floored."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        widths, groups, act = config.block_out_channels, config.norm_num_groups, activation(config.act_fn)
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, pads=(1, 1))
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(i - 1, 0)], width, config.layers_per_block, groups, act, downsample=i < len(widths) - 1
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups, act, config.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, pads=(1, 1))

    def forward(self, x: Field) -> Field:
        x = x.through(self.conv_in)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return x.through(self.conv_norm_out, silu, self.conv_out)


class Decoder(nn.Module):
    """Latents `b z h w` (after post_quant_conv) → pixels `b 3 h·f w·f`, about [-1, 1], not clamped."""

    def __init__(self, config: AutoencoderKLConfig, widths: tuple[int, ...]):
        super().__init__()
        groups, act, up = config.norm_num_groups, activation(config.act_fn), widths[::-1]
        self.conv_in = Conv2d(config.latent_channels, up[0], 3, pads=(1, 1))
        self.up_blocks = nn.ModuleList(
            UpBlock(up[max(i - 1, 0)], width, config.layers_per_block + 1, groups, act, upsample=i < len(up) - 1)
            for i, width in enumerate(up)
        )
        self.mid_block = MidBlock(up[0], groups, act, config.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, up[-1], EPS)
        self.conv_out = Conv2d(up[-1], config.out_channels, 3, pads=(1, 1))

    def forward(self, z: Field) -> Field:
        x = z.through(self.conv_in)
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return x.through(self.conv_norm_out, silu, self.conv_out)


class KLNetwork(nn.Module):
    """Encoder, decoder and the 1×1 convolutions between them and the latent."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        z = config.latent_channels
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, config.get("decoder_block_out_channels") or config.block_out_channels)
        self.quant_conv = Conv2d(2 * z, 2 * z, 1) if config.use_quant_conv else None
        self.post_quant_conv = Conv2d(z, z, 1) if config.use_post_quant_conv else None

    def encode_field(self, x: Field) -> Field:
        """Pixels `b 3 h w` in [-1, 1] → moments `b 2z h/f w/f`: mean and logvar."""
        moments = self.encoder(x)
        return moments if self.quant_conv is None else moments.through(self.quant_conv)

    def decode_field(self, z: Field) -> Field:
        """Raw latents `b z h w` → pixels `b 3 h·f w·f`, about [-1, 1]."""
        return self.decoder(z if self.post_quant_conv is None else z.through(self.post_quant_conv))
