"""The vocabulary that networks are built from: layers that are torch modules and operations of a pass at once.

Each is an ordinary `nn.Module` with ordinary parameter names, callable on plain tensors; as an `Op` it also knows its geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .layouts import dense, is_innermost
from .memory import current
from .passes import Field, OnTile, Op, Place, Shape, Source, Tile
from .statistics import channel_statistics, group_norm_falls_short, stacked
from .undrawn import Undrawn


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    """One value for each channel of `x`, `c` → `1 c 1 …`; or for each image's, `b c` → `b c 1 …`."""
    return values.view(-1, x.shape[1], *(1,) * (x.ndim - 2))


class Normalise(Protocol):
    def __call__(self, x: Tensor, image: int, into: Tensor | None = None, /) -> Tensor: ...


class GroupNorm(Undrawn, nn.GroupNorm, Op):
    """Group normalisation; its statistics are the whole Field's, whatever the tile."""

    reads_statistics = True
    fuses = True
    fills = True

    def literal(self, x: Tensor) -> Tensor:
        return self(x)

    def of(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not group_norm_falls_short(x):
            return self(x)
        images = [x] if len(x) == 1 else x.split(1)
        means, variances = zip(*map(channel_statistics, images), strict=True)
        normalise = self._normalising(stacked(means), stacked(variances), x.dtype)
        if len(x) == 1:
            return normalise(x, 0)
        made = torch.empty_like(x)
        for i, image in enumerate(images):
            made[i : i + 1].copy_(normalise(image, i))
        return made

    def bind(self, source: Source) -> OnTile:
        normalise = self._normalising(*source.statistics(), source.dtype)
        return lambda tile, place: normalise(tile.data, tile.image, tile.into)

    def _normalising(self, mean: Tensor, var: Tensor, dtype: torch.dtype) -> Normalise:
        """What normalises a tile, `1 c …` of `dtype`, of an image whose channels have this mean and variance, `b c` each."""
        mean, var = self._of_groups(mean, var)
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        if mean.device.type != "cpu" or dtype != mean.dtype:
            # With its statistics known, it is a batch normalisation in evaluation mode: one read, one write, rounded once.
            def normalise(x: Tensor, image: int, into: Tensor | None = None) -> Tensor:
                if into is None:
                    return F.batch_norm(x, mean[image], var[image], weight, bias, training=False, eps=self.eps)
                nowhere = x.new_empty(0, dtype=mean.dtype)
                torch.ops.aten.native_batch_norm.out(
                    x, weight, bias, mean[image], var[image], False, 0.0, self.eps,
                    out=into, save_mean=nowhere, save_invstd=nowhere,
                )  # fmt: skip
                return into

            return normalise
        # The same, but quick on a strided tile too, where torch's CPU kernel takes four times as long.
        scale = weight * (var + self.eps).rsqrt()
        shift = bias - mean * scale
        return lambda x, image, into=None: torch.addcmul(
            along_channels(shift[image], x), x, along_channels(scale[image], x), out=into
        )

    @property
    def geometry(self) -> Hashable:
        return self.name, self.num_channels

    def kept(self, element_bytes: int) -> int:
        # Vectors of one value per channel: statistics of channels and of groups, weight and bias, and what comes in between.
        return 16 * self.num_channels * max(element_bytes, 4)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        # Where images are normalised one by one (group_norm_falls_short), one of them beside the result.
        one_by_one = self.weight.device.type != "cpu" or self.weight.dtype == torch.float32
        return prod(made[1:]) if made[0] > 1 and one_by_one else 0

    def _of_groups(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel's group, `b c`, from those of each channel."""
        b, c = mean.shape
        means, variances = mean.view(b, self.num_groups, -1), var.view(b, self.num_groups, -1)
        spread, group_mean = torch.var_mean(means, dim=2, correction=0, keepdim=True)
        group_var = variances.mean(2, keepdim=True).expand_as(means) + spread
        return group_mean.expand_as(means).reshape(b, c), group_var.view(b, c)


class Pointwise(Op):
    """A function of each element alone; `over` is the same function in place."""

    fuses = True

    def __init__(self, name: str, of: Callable[[Tensor], Tensor], over: Callable[[Tensor], Tensor] | None = None):
        self._name, self._of, self._over = name, of, over
        self.in_place = over is not None

    @property
    def name(self) -> str:
        return self._name

    def of(self, x: Tensor) -> Tensor:
        return self._of(x)

    def over(self, x: Tensor) -> Tensor:
        return self._over(x) if self._over is not None else self._of(x)


silu = Pointwise("silu", F.silu, lambda x: F.silu(x, inplace=True))
relu = Pointwise("relu", F.relu, lambda x: F.relu(x, inplace=True))
gelu = Pointwise("gelu", F.gelu)
mish = Pointwise("mish", F.mish, lambda x: F.mish(x, inplace=True))

ACTIVATIONS = {"silu": silu, "swish": silu, "relu": relu, "gelu": gelu, "mish": mish}


def activation(name: str) -> Pointwise:
    """The activation of a configuration's `act_fn`. Raises ConfigError for one that is not known."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"act_fn {name!r} is not known; expected one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


class Projection(Protocol):
    """A pointwise convolution, of pictures or of clips."""

    @property
    def geometry(self) -> Hashable: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def at(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]: ...

    def flops(self, read: Shape, made: Shape) -> int: ...


class Plus(Op):
    """Adds another Field, or a pointwise convolution of it that is never stored as a Field of its own."""

    in_place = True

    def __init__(self, other: Field, by: Projection | None = None):
        self.other, self.by = other, by
        self.strided_parts = by is None

    def of(self, x: Tensor) -> Tensor:
        return self._rest(self.other.data) + x  # type: ignore[attr-defined]

    def over(self, x: Tensor) -> Tensor:
        return x.add_(self._rest(self.other.data))  # type: ignore[attr-defined]

    def _rest(self, other: Tensor) -> Tensor:
        return other if self.by is None else self.by(other)

    @property
    def geometry(self) -> Hashable:
        return self.name, None if self.by is None else self.by.geometry

    def bind(self, source: Source) -> OnTile:
        by = None if self.by is None else self.by.at(source.dtype)

        def on_tile(tile: Tile, place: Place) -> Tensor:
            if tile.out is not None:  # the other Field lies there
                current().spares.add(tile.data)
                return tile.out.add_(tile.data)
            rest = source.part(self.other, tile.image, place.region)
            if by is not None:
                rest = by(dense(rest, is_innermost(tile.data)))
            return tile.data.add_(rest) if tile.owned else tile.data + rest

        return on_tile

    @property
    def added(self) -> Field | None:
        return self.other if self.by is None else None

    def reads(self) -> tuple[Field, ...]:
        return (self.other,)

    def flops(self, read: Shape, made: Shape) -> int:
        return 0 if self.by is None else self.by.flops(read, made)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        return 0 if self.by is None else prod(made)


def plus(other: Field, by: Projection | None = None) -> Plus:
    """Adds `other`, or `by(other)`."""
    return Plus(other, by)
