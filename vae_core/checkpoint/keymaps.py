"""How each file format spells the tensors that our networks name as diffusers does: rules as data, good both ways.

A rule is a pair of fragments of a dotted name, theirs and ours. Fields in braces stand for a number:

    {i} {j}   the same number on both sides
    {up}      levels counted from the other end: ours = last level - theirs (LDM counts up-blocks from high resolution)
    {next}    theirs = ours + 1 (a TAESD decoder begins with a clamp, which has no slot in diffusers' class)
    {flat}    theirs = {group} · length of a group + {slot} of ours, or where ours has no {slot} the last of the group
              (Wan counts the layers of a decoder through all of its levels)

What no rule touches passes unchanged; whoever checks the result against a network finds it surplus.
Sources: ldm/modules/diffusionmodules/model.py (CompVis), src/flux2/autoencoder.py (black-forest-labs), taesd.py (madebyollin),
sat/vae_modules/cp_enc_dec.py (THUDM/CogVideo), wan/modules/vae.py (Wan-Video/Wan2.1), diffusers/models/autoencoders/vae.py and
its Flax twin vae_flax.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

Shape = tuple[int, ...]


class Rename(NamedTuple):
    theirs: str
    ours: str
    dims: tuple[int, ...] = ()
    """Only tensors of so many dimensions; () means any."""


class Turn(NamedTuple):
    """A change of layout between the file's tensor and ours."""

    ours: str
    """Pattern of our name."""
    dims: tuple[int, ...]
    """Dimensions of the file's tensor that is turned."""
    permute: tuple[int, ...] = ()
    """Axes of the file's tensor in our order; () means: drop the trailing axes, all of size 1, beyond two."""


# A projection of the mid block: linear for us, a 1x1 convolution in LDM files, [C, C, 1] in some old conversions.
_PROJECTION = r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$"
_FLATTEN = Turn(_PROJECTION, (3, 4))

_BLOCKS = (
    Rename("down.{i}.block.{j}", "down_blocks.{i}.resnets.{j}"),
    Rename("down.{i}.downsample", "down_blocks.{i}.downsamplers.0"),
    Rename("up.{up}.block.{j}", "up_blocks.{up}.resnets.{j}"),
    Rename("up.{up}.upsample", "up_blocks.{up}.upsamplers.0"),
    Rename("mid.block_1", "mid_block.resnets.0"),
    Rename("mid.block_2", "mid_block.resnets.1"),
    Rename("nin_shortcut", "conv_shortcut"),
)
_LDM = (
    *_BLOCKS,
    Rename("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
    Rename("mid.attn_1.q", "mid_block.attentions.0.to_q"),
    Rename("mid.attn_1.k", "mid_block.attentions.0.to_k"),
    Rename("mid.attn_1.v", "mid_block.attentions.0.to_v"),
    Rename("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
    Rename("norm_out", "conv_norm_out"),
)
# black-forest-labs' FLUX.2 file keeps the quant convolutions inside the halves.
_BFL = (
    Rename("encoder.quant_conv", "quant_conv"),
    Rename("decoder.post_quant_conv", "post_quant_conv"),
)
# diffusers before 0.18 named the projections so; Flax never stopped.
_OLD_ATTENTION = (
    Rename("attentions.{i}.query", "attentions.{i}.to_q"),
    Rename("attentions.{i}.key", "attentions.{i}.to_k"),
    Rename("attentions.{i}.value", "attentions.{i}.to_v"),
    Rename("attentions.{i}.proj_attn", "attentions.{i}.to_out.0"),
)
_FLAX = (
    *(
        Rename(f"{name}_{{i}}", f"{name}.{{i}}")
        for name in ("down_blocks", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers")
    ),
    *_OLD_ATTENTION,
    Rename("kernel", "weight", dims=(2, 4)),
    Rename("scale", "weight", dims=(1,)),
)
_TAESD = (
    Rename("taesd_encoder.{i}", "encoder.layers.{i}"),
    Rename("taesd_decoder.{next}", "decoder.layers.{next}"),
)
_TAESD_MODULE = (
    Rename("encoder.{i}", "encoder.layers.{i}"),
    Rename("decoder.{next}", "decoder.layers.{next}"),
)
_WAN = (
    # `conv1` is a name at three depths: the one that stands alone is renamed before residual.2 takes its name.
    Rename("encoder.conv1", "encoder.conv_in"),
    Rename("decoder.conv1", "decoder.conv_in"),
    Rename("conv1", "quant_conv"),
    Rename("conv2", "post_quant_conv"),
    Rename("decoder.upsamples.{flat}.resample", "decoder.up_blocks.{group}.upsamplers.0.resample"),
    Rename("decoder.upsamples.{flat}.time_conv", "decoder.up_blocks.{group}.upsamplers.0.time_conv"),
    Rename("decoder.upsamples.{flat}", "decoder.up_blocks.{group}.resnets.{slot}"),
    Rename("encoder.downsamples.{i}", "encoder.down_blocks.{i}"),
    Rename("middle.0", "mid_block.resnets.0"),
    Rename("middle.1", "mid_block.attentions.0"),
    Rename("middle.2", "mid_block.resnets.1"),
    Rename("residual.0", "norm1"),
    Rename("residual.2", "conv1"),
    Rename("residual.3", "norm2"),
    Rename("residual.6", "conv2"),
    Rename("shortcut", "conv_shortcut"),
    Rename("head.0", "norm_out"),
    Rename("head.2", "conv_out"),
)


class Numbering:
    """What the rules have to know of a network to renumber its parts, from all of its names, theirs or ours, without a prefix.

    Looked for where a rule asks.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    @cached_property
    def last_level(self) -> int:
        """The number of the last up-block, what `{up}` counts from."""
        return max(_numbers(r"decoder\.up(?:_blocks)?\.(\d+)\.", self._names), default=0)

    @cached_property
    def group(self) -> int:
        """Layers of a level of the decoder where they are counted through, what `{flat}` goes by: its blocks and the upsampling."""
        last_block = max(_numbers(r"decoder\.(?:upsamples|up_blocks\.0\.resnets)\.(\d+)\.", self._names), default=0)
        upsampling = min(_numbers(r"decoder\.upsamples\.(\d+)\.resample\.", self._names), default=last_block + 1)
        return upsampling + 1


def _numbers(pattern: str, names: Iterable[str]) -> list[int]:
    return [int(match.group(1)) for match in map(re.compile(pattern).match, names) if match]


@dataclass(frozen=True)
class Keymap:
    """The spelling of one format."""

    renames: tuple[Rename, ...] = ()
    turns: tuple[Turn, ...] = ()
    read_only: tuple[Rename, ...] = ()
    """Aliases that are understood and never written."""

    @cached_property
    def _to_ours(self) -> list[_Substitution]:
        return [_Substitution(rule.theirs, rule.ours, rule.dims, -1) for rule in self.renames + self.read_only]

    @cached_property
    def _to_theirs(self) -> list[_Substitution]:
        # Backwards, so that what the last rule made while reading is undone first.
        return [_Substitution(rule.ours, rule.theirs, rule.dims, +1) for rule in reversed(self.renames)]

    def ours(self, key: str, shape: Shape, at: Numbering) -> tuple[str, Turn | None, Shape]:
        """Our name for the file's `key`, how its tensor is turned, and the shape that it then has."""
        for rule in self._to_ours:
            key = rule.apply(key, len(shape), at)
        turn = self._turn(key, shape)
        return key, turn, turned_shape(turn, shape)

    def theirs(self, name: str, tensor: Tensor, at: Numbering) -> tuple[str, Tensor]:
        """The file's key for our `name`, and the tensor as the file lays it out."""
        key = name
        for rule in self._to_theirs:
            key = rule.apply(key, tensor.ndim, at)
        return key, self._turn_back(name, tensor)

    def _turn(self, name: str, shape: Shape) -> Turn | None:
        for turn in self.turns:
            flattens = turn.permute or all(size == 1 for size in shape[2:])
            if len(shape) in turn.dims and flattens and re.search(turn.ours, name):
                return turn
        return None

    def _turn_back(self, name: str, tensor: Tensor) -> Tensor:
        for turn in self.turns:
            if not re.search(turn.ours, name):
                continue
            if not turn.permute and tensor.ndim == 2:
                return tensor[:, :, None, None]
            if turn.permute and tensor.ndim in turn.dims:
                return tensor.permute(*sorted(range(tensor.ndim), key=turn.permute.__getitem__))
        return tensor


def turned_shape(turn: Turn | None, shape: Shape) -> Shape:
    """The shape of a tensor of `shape` after `turn`."""
    if turn is None:
        return shape
    return tuple(shape[axis] for axis in turn.permute) if turn.permute else shape[:2]


def turned(turn: Turn | None, tensor: Tensor) -> Tensor:
    """A tensor of the file in our layout; contiguous if it was."""
    if turn is None:
        return tensor
    return tensor.permute(turn.permute).contiguous() if turn.permute else tensor.reshape(tensor.shape[:2])


class _Substitution:
    """One rule in one direction, compiled: whole dotted parts are matched, never a piece of a part."""

    def __init__(self, source: str, target: str, dims: tuple[int, ...], step: int) -> None:
        self.source, self.target, self.dims, self.step = source, target, dims, step
        words = re.split(r"\{\w+\}", source)
        self.first_word, self.last_word = words[0], words[-1]
        self.fields = re.findall(r"\{(\w+)\}", target)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(self.source))
        return re.compile(rf"(?<![^.]){pattern}(?![^.])")

    def apply(self, key: str, ndim: int, at: Numbering) -> str:
        # Most rules leave most keys alone, which is seen soonest so.
        if self.first_word not in key or self.last_word not in key or (self.dims and ndim not in self.dims):
            return key

        def replace(match: re.Match[str]) -> str:
            found = {name: int(number) for name, number in match.groupdict().items()}
            return self.target.format(**{name: _FIELDS[name](found, at, self.step) for name in self.fields})

        return self.pattern.sub(replace, key)


_FIELDS: dict[str, Callable[[Mapping[str, int], Numbering, int], int]] = {
    "i": lambda found, at, step: found["i"],
    "j": lambda found, at, step: found["j"],
    "up": lambda found, at, step: at.last_level - found["up"],
    "next": lambda found, at, step: found["next"] + step,
    "flat": lambda found, at, step: found["group"] * at.group + found.get("slot", at.group - 1),
    "group": lambda found, at, step: found["flat"] // at.group,
    "slot": lambda found, at, step: found["flat"] % at.group,
}
"""A field of the name that is written, from those of the name that was found."""

PLAIN = Keymap()
"""Our names as they are: those of diffusers' video VAEs."""
DIFFUSERS = Keymap((), (_FLATTEN,), read_only=_OLD_ATTENTION)
LDM = Keymap(_LDM, (_FLATTEN,), read_only=_BFL)
LDM_FLUX2 = Keymap(_BFL + _LDM, (_FLATTEN,))
FLAX = Keymap(
    _FLAX,
    (
        Turn(r"\.weight$", (4,), (3, 2, 0, 1)),  # convolution: height, width, in, out
        Turn(r"\.weight$", (2,), (1, 0)),  # linear: in, out
    ),
)
TAESD = Keymap(_TAESD)
TAESD_MODULE = Keymap(_TAESD_MODULE)
WAN_ORIGINAL = Keymap(_WAN)
COGVIDEOX_ORIGINAL = Keymap(_BLOCKS)
