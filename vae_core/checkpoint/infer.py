"""The configuration that the shapes of a network's tensors show (our names), for any widths, levels and layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import StateDictError
from ..spec import COGVIDEOX, KL, KL_FLUX2, QWEN, TINY, WAN

Shapes = Mapping[str, tuple[int, ...]]


def infer_configs(file: Path, network: str, shapes: Shapes) -> dict[str, dict[str, Any]]:
    """Every constructor field that shapes can show, for `network` and each class that may have the same tensors.

    Raises StateDictError if a tensor that shows one is missing or has the wrong number of dimensions, or if half of the
    network is not there.
    """
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if not any(name.startswith(f"{half}.") for name in shapes):
            raise StateDictError(
                f"{file}: holds the {other} of a VAE and not its {half} (no `{half}.*`); a file with both is needed"
            )
    found = _Shapes(file, shapes)
    if network == TINY:
        return {TINY: found.tiny()}
    if network == COGVIDEOX:
        return {COGVIDEOX: found.cogvideox()}
    if network in (WAN, QWEN):
        return _as_wan_or_qwen(found.wan())
    return {network: found.convolutional(network)}


def _as_wan_or_qwen(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Qwen-Image's class has one field for the channels of both ends, and none for a width of the decoder's own."""
    channels = {shown["in_channels"], shown["out_channels"]}
    if len(channels) > 1 or shown["decoder_base_dim"] is not None:
        return {WAN: shown}
    shared = {name: shown[name] for name in ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample")}
    return {WAN: shown, QWEN: shared | {"input_channels": channels.pop()}}


class _Shapes:
    def __init__(self, file: Path, shapes: Shapes) -> None:
        self.file, self.shapes = file, shapes

    def sizes(self, name: str, dims: int = 4) -> tuple[int, int]:
        """(out, in) channels of the convolution `name`, whose weight has so many dimensions."""
        shape = self.shapes.get(f"{name}.weight")
        if shape is None:
            raise StateDictError(f"{self.file}: `{name}.weight` is missing; the file is incomplete: download it again")
        if len(shape) != dims:
            raise StateDictError(
                f"{self.file}: `{name}.weight` has the shape {list(shape)}, where {dims} dimensions are expected"
            )
        return shape[0], shape[1]

    def numbers(self, pattern: str) -> list[int]:
        """The numbers that the tensors have in the place of `(N)` in `pattern`, in order."""
        regex = re.compile(pattern.replace("(N)", r"(\d+)"))
        return sorted({int(match.group(1)) for match in map(regex.match, self.shapes) if match})

    def count(self, pattern: str) -> int:
        """How many there are, from 0 on without a gap."""
        found = self.numbers(pattern)
        if found != list(range(len(found))):
            name = pattern.replace("\\", "").replace("(N)", str(found[-1]))
            raise StateDictError(f"{self.file}: has `{name}*` and not all that are numbered below it; it is incomplete")
        return len(found)

    def convolutional(self, network: str) -> dict[str, Any]:
        config, decoder = self.blocks()
        config |= {
            "use_quant_conv": "quant_conv.weight" in self.shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in self.shapes,
            "mid_block_add_attention": any(".mid_block.attentions." in name for name in self.shapes),
        }
        if network == KL_FLUX2:
            return config | self.flux2(config["latent_channels"], config["block_out_channels"], decoder)
        self.require_equal_widths(KL, config, decoder)
        return config

    def cogvideox(self) -> dict[str, Any]:
        config, decoder = self.blocks(".conv", 5)
        self.require_equal_widths(COGVIDEOX, config, decoder)
        return config

    def blocks(self, leaf: str = "", dims: int = 4) -> tuple[dict[str, Any], tuple[int, ...]]:
        """What networks of down_blocks and up_blocks share, and the decoder's widths; `leaf` ends a convolution's name."""
        levels = self.levels(self.count(r"encoder\.down_blocks\.(N)\."))
        widths = [self.sizes(f"encoder.down_blocks.{i}.resnets.0.conv1{leaf}", dims)[0] for i in range(levels)]
        decoder = [self.sizes(f"decoder.up_blocks.{i}.resnets.0.conv1{leaf}", dims)[0] for i in range(levels)]
        config = {
            "in_channels": self.sizes(f"encoder.conv_in{leaf}", dims)[1],
            "out_channels": self.sizes(f"decoder.conv_out{leaf}", dims)[0],
            "latent_channels": self.sizes(f"decoder.conv_in{leaf}", dims)[1],
            "block_out_channels": tuple(widths),
            "layers_per_block": self.count(r"encoder\.down_blocks\.0\.resnets\.(N)\."),
        }
        return config, tuple(reversed(decoder))

    def levels(self, encoder: int) -> int:
        """How many levels there are: those of the encoder, which the decoder has to have too."""
        if encoder != self.count(r"decoder\.up_blocks\.(N)\."):
            raise StateDictError(f"{self.file}: its encoder has {encoder} levels and its decoder another number")
        if encoder == 0:
            raise StateDictError(f"{self.file}: `encoder.down_blocks.*` are missing; the file is incomplete")
        return encoder

    def require_equal_widths(self, network: str, config: Mapping[str, Any], decoder: tuple[int, ...]) -> None:
        encoder = config["block_out_channels"]
        if decoder != encoder:
            raise StateDictError(
                f"{self.file}: its decoder is {decoder} wide and its encoder {encoder}; {network} has equal widths, "
                "and no other network loaded here fits"
            )

    def wan(self) -> dict[str, Any]:
        # The encoder counts its layers through all levels: blocks, a halving, blocks, ...
        layers = self.count(r"encoder\.down_blocks\.(N)\.")
        halvings = self.numbers(r"encoder\.down_blocks\.(N)\.resample\.")
        blocks = halvings[0] if halvings else layers
        levels = self.levels(min(layers, len(halvings) + 1))
        base = self.sizes("encoder.conv_in", 5)[0]
        firsts = [f"encoder.down_blocks.{level * (blocks + 1)}.conv1" for level in range(levels)]
        dim_mult = tuple(self.multiple(name, self.sizes(name, 5)[0], base) for name in firsts)
        last = "decoder.conv_out"
        decoder_base = self.multiple(last, self.sizes(last, 5)[1], dim_mult[0])
        return {
            "base_dim": base,
            "decoder_base_dim": None if decoder_base == base else decoder_base,
            "z_dim": self.sizes("decoder.conv_in", 5)[1],
            "dim_mult": dim_mult,
            "num_res_blocks": blocks,
            "temperal_downsample": tuple(f"encoder.down_blocks.{i}.time_conv.weight" in self.shapes for i in halvings),
            "in_channels": self.sizes("encoder.conv_in", 5)[1],
            "out_channels": self.sizes(last, 5)[0],
        }

    def multiple(self, name: str, channels: int, unit: int) -> int:
        if unit == 0 or channels % unit:
            raise StateDictError(
                f"{self.file}: `{name}.weight` has {channels} channels, which is no multiple of {unit}"
            )
        return channels // unit

    def flux2(self, latent_channels: int, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> dict[str, Any]:
        length = self.shapes["bn.running_mean"][0] if self.shapes["bn.running_mean"] else 0
        side = math.isqrt(length // max(latent_channels, 1))
        if side == 0 or side * side * latent_channels != length:
            raise StateDictError(
                f"{self.file}: `bn.running_mean` has {length} channels, which is no square patch of {latent_channels}"
            )
        return {"patch_size": (side, side), "decoder_block_out_channels": None if decoder == encoder else decoder}

    def tiny(self) -> dict[str, Any]:
        encoder, decoder = list(self.steps("encoder")), list(self.steps("decoder"))
        if not encoder or not decoder:
            raise StateDictError(f"{self.file}: half of its `layers.*` are missing; the file is incomplete")
        # Each stage of the encoder begins with its convolution, each stage of the decoder ends with one.
        widths, blocks = _stages(encoder[:-1])
        back_widths, back_blocks = _stages(decoder[::-1][:-1])
        return {
            "in_channels": self.sizes(encoder[0][1])[1],
            "out_channels": self.sizes(decoder[-1][1])[0],
            "latent_channels": self.sizes(encoder[-1][1])[0],
            "encoder_block_out_channels": widths,
            "num_encoder_blocks": blocks,
            "decoder_block_out_channels": tuple(reversed(back_widths)),
            "num_decoder_blocks": tuple(reversed(back_blocks)),
            "pool_mid_blocks": any(".pool." in name for name in self.shapes),
        }

    def steps(self, half: str) -> Iterator[tuple[str, str, int]]:
        """("conv" | "block", name of a convolution in it, its width), in order, for layers with weights."""
        for name in (f"{half}.layers.{number}" for number in self.numbers(rf"{half}\.layers\.(N)\.")):
            if f"{name}.weight" in self.shapes:
                yield "conv", name, self.sizes(name)[0 if half == "encoder" else 1]
            elif any(key.startswith(f"{name}.") for key in self.shapes):
                yield "block", f"{name}.conv.0", self.sizes(f"{name}.conv.0")[0]


def _stages(steps: list[tuple[str, str, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(width, number of blocks) of each stage of a list that begins each stage with a convolution."""
    widths: list[int] = []
    blocks: list[int] = []
    for kind, _, width in steps:
        if kind == "conv":
            widths.append(width)
            blocks.append(0)
        elif blocks:
            blocks[-1] += 1
    return tuple(widths), tuple(blocks)
