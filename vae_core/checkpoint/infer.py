"""The configuration that the shapes of a network's tensors show (our names), for any widths, levels and layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import StateDictError
from ..spec import KL, KL_FLUX2, TINY

Shapes = Mapping[str, tuple[int, ...]]


def infer_config(file: Path, network: str, shapes: Shapes) -> dict[str, Any]:
    """Every constructor field of `network` that shapes can show.

    Raises StateDictError if a tensor that shows one is missing or has the wrong number of dimensions, or if half of the
    network is not there.
    """
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        if not any(name.startswith(f"{half}.") for name in shapes):
            raise StateDictError(
                f"{file}: holds the {other} of a VAE and not its {half} (no `{half}.*`); a file with both is needed"
            )
    return _Shapes(file, shapes).tiny() if network == TINY else _Shapes(file, shapes).convolutional(network)


class _Shapes:
    def __init__(self, file: Path, shapes: Shapes) -> None:
        self.file, self.shapes = file, shapes

    def sizes(self, name: str) -> tuple[int, int]:
        """(out, in) channels of the convolution `name`."""
        shape = self.shapes.get(f"{name}.weight")
        if shape is None:
            raise StateDictError(f"{self.file}: `{name}.weight` is missing; the file is incomplete: download it again")
        if len(shape) != 4:
            raise StateDictError(
                f"{self.file}: `{name}.weight` has the shape {list(shape)}, where 4 dimensions are expected"
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
        levels = self.count(r"encoder\.down_blocks\.(N)\.")
        if levels != self.count(r"decoder\.up_blocks\.(N)\."):
            raise StateDictError(f"{self.file}: its encoder has {levels} levels and its decoder another number")
        if levels == 0:
            raise StateDictError(f"{self.file}: `encoder.down_blocks.*` are missing; the file is incomplete")
        encoder = tuple(self.sizes(f"encoder.down_blocks.{i}.resnets.0.conv1")[0] for i in range(levels))
        decoder = tuple(self.sizes(f"decoder.up_blocks.{i}.resnets.0.conv1")[0] for i in reversed(range(levels)))
        layers = self.count(r"encoder\.down_blocks\.0\.resnets\.(N)\.")
        config = {
            "in_channels": self.sizes("encoder.conv_in")[1],
            "out_channels": self.sizes("decoder.conv_out")[0],
            "latent_channels": self.sizes("decoder.conv_in")[1],
            "block_out_channels": encoder,
            "layers_per_block": layers,
            "use_quant_conv": "quant_conv.weight" in self.shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in self.shapes,
            "mid_block_add_attention": any(".mid_block.attentions." in name for name in self.shapes),
        }
        if network == KL_FLUX2:
            return config | self.flux2(config["latent_channels"], encoder, decoder)
        if decoder != encoder:
            raise StateDictError(
                f"{self.file}: its decoder is {decoder} wide and its encoder {encoder}; {KL} has equal widths, "
                "and no other network loaded here fits"
            )
        return config

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
