"""How each file format spells the tensors that our networks name as diffusers does: rules as data, good both ways.

A rule is a pair of fragments of a dotted name, theirs and ours. Fields in braces stand for a number:

    {i} {j}   the same number on both sides
    {up}      levels counted from the other end: ours = last level - theirs (LDM counts up-blocks from high resolution)
    {next}    theirs = ours + 1 (a TAESD decoder begins with a clamp, which has no slot in diffusers' class)

What no rule touches passes unchanged; whoever checks the result against a network finds it surplus.
Sources: ldm/modules/diffusionmodules/model.py (CompVis), src/flux2/autoencoder.py (black-forest-labs),
taesd.py (madebyollin), diffusers/models/autoencoders/vae.py and its Flax twin vae_flax.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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

_LDM = (
    Rename("down.{i}.block.{j}", "down_blocks.{i}.resnets.{j}"),
    Rename("down.{i}.downsample", "down_blocks.{i}.downsamplers.0"),
    Rename("up.{up}.block.{j}", "up_blocks.{up}.resnets.{j}"),
    Rename("up.{up}.upsample", "up_blocks.{up}.upsamplers.0"),
    Rename("mid.block_1", "mid_block.resnets.0"),
    Rename("mid.block_2", "mid_block.resnets.1"),
    Rename("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
    Rename("mid.attn_1.q", "mid_block.attentions.0.to_q"),
    Rename("mid.attn_1.k", "mid_block.attentions.0.to_k"),
    Rename("mid.attn_1.v", "mid_block.attentions.0.to_v"),
    Rename("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
    Rename("nin_shortcut", "conv_shortcut"),
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

    def ours(self, key: str, shape: Shape, last_level: int) -> tuple[str, Turn | None, Shape]:
        """Our name for the file's `key`, how its tensor is turned, and the shape that it then has."""
        for rule in self._to_ours:
            key = rule.apply(key, len(shape), last_level)
        turn = self._turn(key, shape)
        return key, turn, turned_shape(turn, shape)

    def theirs(self, name: str, tensor: Tensor, last_level: int) -> tuple[str, Tensor]:
        """The file's key for our `name`, and the tensor as the file lays it out."""
        key = name
        for rule in self._to_theirs:
            key = rule.apply(key, tensor.ndim, last_level)
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


def last_level(names: Iterable[str]) -> int:
    """The number of the last up-block, LDM's or ours, of a network without its prefix: what `{up}` counts from."""
    matches = (re.match(r"decoder\.up(?:_blocks)?\.(\d+)\.", name) for name in names)
    return max((int(match.group(1)) for match in matches if match), default=0)


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
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(source))
        self.pattern = re.compile(rf"(?<![^.]){pattern}(?![^.])")
        self.target, self.dims, self.step = target, dims, step

    def apply(self, key: str, ndim: int, last_level: int) -> str:
        if self.dims and ndim not in self.dims:
            return key

        def replace(match: re.Match[str]) -> str:
            numbers = match.groupdict().items()
            return self.target.format(**{name: _FIELDS[name](int(n), last_level, self.step) for name, n in numbers})

        return self.pattern.sub(replace, key)


_FIELDS: dict[str, Callable[[int, int, int], int]] = {
    "i": lambda number, last, step: number,
    "j": lambda number, last, step: number,
    "up": lambda number, last, step: last - number,
    "next": lambda number, last, step: number + step,
}

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
