"""Self-attention over every position of a Field, and the processors that compute its scores.

In streamed runs the keys and values are whole Fields, and the queries come tile by tile: attention is exact, and no more of the
scores exists at a time than one tile's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import prod
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutions import cast, wide
from .layers import GroupNorm, Plus
from .passes import Field, OnTile, Op, Place, Shape, Source, Tile
from .undrawn import Undrawn


def tokens(x: Tensor) -> Tensor:
    """`b c …` → `b n c`: a view."""
    return x.flatten(2).transpose(1, 2)


def untokens(x: Tensor, like: Tensor) -> Tensor:
    """`b n c` → `b c …`, the trailing axes as those of `like`: a view."""
    return x.transpose(1, 2).unflatten(2, like.shape[2:])


class Linear(Undrawn, nn.Linear, Op):
    """A linear map of the channels: on tokens `b n c` as a module, on `b c …` as an operation."""

    def of(self, x: Tensor) -> Tensor:
        return untokens(self(tokens(x)), like=x)

    def bind(self, source: Source) -> OnTile:
        weight, bias = self.weight.to(source.dtype), cast(self.bias, source.dtype)
        return lambda tile, place: untokens(F.linear(tokens(tile.data), weight, bias), like=tile.data)

    @property
    def geometry(self) -> Hashable:
        return self.name, self.in_features, self.out_features

    def out_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.out_features, *shape[2:])

    def flops(self, read: Shape, made: Shape) -> int:
        return 2 * prod(made) * self.in_features


class LinearPart(Op):
    """The `index`-th of `parts` equal parts of a fused linear map, which may be a 1×1 convolution."""

    def __init__(self, fused: nn.Linear | nn.Conv2d, index: int, parts: int):
        self.fused, self.index, self.parts = fused, index, parts

    def of(self, x: Tensor) -> Tensor:
        return untokens(F.linear(tokens(x), *self._part()), like=x)

    def literal(self, x: Tensor) -> Tensor:
        convolves = isinstance(self.fused, nn.Conv2d)
        made = tokens(self.fused(x)).contiguous() if convolves else self.fused(tokens(x))
        return untokens(made.chunk(self.parts, dim=2)[self.index], like=x)

    def _part(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.fused.weight.flatten(1), self.fused.bias
        assert bias is not None
        return weight.chunk(self.parts)[self.index], bias.chunk(self.parts)[self.index]

    def bind(self, source: Source) -> OnTile:
        weight, bias = (part.to(source.dtype) for part in self._part())
        return lambda tile, place: untokens(F.linear(tokens(tile.data), weight, bias), like=tile.data)

    @property
    def geometry(self) -> Hashable:
        return self.name, *self.fused.weight.shape[:2], self.parts

    def out_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.fused.weight.shape[0] // self.parts, *shape[2:])

    def flops(self, read: Shape, made: Shape) -> int:
        return 2 * prod(made) * self.fused.weight.shape[1]


@runtime_checkable
class Scored(Protocol):
    """A processor that only says how queries, keys and values combine, so that the queries may come in blocks."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`b n c`, `b m c`, `b m c` → `b n c`."""
        ...

    def scratch(self, channels: int, queries: int, keys: int) -> int:
        """Elements held besides q, k, v and the result."""
        ...


class _Processor:
    """Makes a `Scored` processor callable as diffusers' are: on the attention module and a whole `b c h w` tensor."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        x = attn.group_norm.of(hidden_states)
        q, k, v = (tokens(project.of(x)) for project in attn.projections())
        out = self.attend(q, k, v)  # type: ignore[attr-defined]
        return untokens(attn.to_out[0](out), like=x) + hidden_states


class AttnProcessor2_0(_Processor):
    """torch's fused attention: the scores are never stored.

    torch 2.13 has no forward-mode derivative of it (`torch.func.jvp`, `jacfwd`); `AttnProcessor` has one.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)

    def scratch(self, channels: int, queries: int, keys: int) -> int:
        # Each query's log-sum in float32, two elements in half precision, which torch returns beside the result.
        return 2 * queries


class FusedAttnProcessor2_0(AttnProcessor2_0):
    """The same over fused projections (`fuse_qkv_projections`)."""


def probabilities(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) over the keys, `b n m`, in float32 or better, rounded to the dtype of `q`."""
    # With beta=0 the first argument is not read. In one expression, so that each copy of the scores goes when the next is there.
    return (
        torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=scale)
        .to(wide(q.dtype))
        .softmax(-1)
        .to(q.dtype)
    )


class AttnProcessor(_Processor):
    """Plain attention: scores stored, softmax in float32 or better."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return probabilities(q, k, q.shape[-1] ** -0.5) @ v

    def scratch(self, channels: int, queries: int, keys: int) -> int:
        # In half precision: the scores widened and their softmax, two elements each. Half of that in float32.
        return 4 * queries * keys


class Attend(Op):
    """Each position's query against the keys and values of every position: `b c …` → `b c …`."""

    def __init__(self, keys: Field, values: Field, processor: Scored):
        self.keys, self.values, self.processor = keys, values, processor

    def of(self, x: Tensor) -> Tensor:
        q, k, v = tokens(x), tokens(self.keys.data), tokens(self.values.data)  # type: ignore[attr-defined]
        made = self.processor.attend(q, k, v)
        if not torch.is_grad_enabled():
            made.add_(_tainted(q, -1)).add_(_tainted(k, (1, 2)))
        return untokens(made, like=x)

    def bind(self, source: Source) -> OnTile:
        k, v = tokens(source.everything(self.keys)), tokens(source.everything(self.values))
        bad_keys = _tainted(k, (1, 2))

        def on_tile(tile: Tile, place: Place) -> Tensor:
            one, q = slice(tile.image, tile.image + 1), tokens(tile.data)
            made = self.processor.attend(q, k[one], v[one])
            return untokens(made.add_(_tainted(q, -1)).add_(bad_keys[one]), like=tile.data)

        return on_tile

    def reads_all(self) -> tuple[Field, ...]:
        return (self.keys, self.values)

    def flops(self, read: Shape, made: Shape) -> int:
        positions = prod(self.keys.shape[2:])
        return 4 * prod(made) * positions

    @property
    def geometry(self) -> Hashable:
        return self.name, tuple(self.keys.shape), type(self.processor)

    def scratch(self, read: Shape, made: Shape, place: Place) -> int:
        queries = prod(read[2:])
        return max(self.processor.scratch(read[1], queries, prod(self.keys.shape[2:])), 3 * queries)  # `_tainted`


def _tainted(x: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """`x` reduced to size 1 along `axes`: 0, or NaN where something is not finite.

    torch 2.13's fused attention on CPUs gives zeros for a query of NaN or infinity, and passes over an infinite key: added to its
    result, this keeps what has overflowed from going unseen.
    """
    return (x.amax(axes, keepdim=True) * 0).add_(x.amin(axes, keepdim=True) * 0)


class Residual(Plus):
    """Adds the Field that the attention began with.

    Linear maps leave their channels innermost. A sum is laid out as its first summand, so that the Field's layout goes on and what
    follows is not slowed; in the published code it is the attention's, which changes the last bits of every later GroupNorm.
    """

    in_place = False

    def of(self, x: Tensor) -> Tensor:
        return self.other.data + x  # type: ignore[attr-defined]

    over = of

    def literal(self, x: Tensor) -> Tensor:
        return x + self.other.data  # type: ignore[attr-defined]


class Attention(nn.Module):
    """One head over every position, with its own norm and residual.

    The attributes below `to_out` are those that diffusers' own processors ask for, so that they work here unchanged.
    """

    heads = 1
    spatial_norm = norm_cross = norm_q = norm_k = None
    residual_connection = True
    rescale_output_factor = 1.0
    upcast_softmax = True
    is_cross_attention = False

    def __init__(self, channels: int, groups: int, eps: float = 1e-6):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, eps)
        self.to_q, self.to_k, self.to_v = (Linear(channels, channels) for _ in range(3))
        self.to_out: Any = nn.ModuleList([Linear(channels, channels), nn.Dropout(0.0)])
        self.scale = channels**-0.5
        self.fused_projections = False
        self.processor: Callable[..., Tensor] = AttnProcessor2_0()

    def get_processor(self) -> Callable[..., Tensor]:
        """What combines queries, keys and values."""
        return self.processor

    def set_processor(self, processor: Callable[..., Tensor]) -> None:
        """Another one; a module (a processor with weights of its own) becomes part of this one, and a function may follow it."""
        self._modules.pop("processor", None)  # nn.Module refuses to put anything but a module in a module's place
        self.processor = processor

    def projections(self) -> tuple[Op, Op, Op]:
        """The maps to queries, keys and values."""
        if self.fused_projections:
            return LinearPart(self.to_qkv, 0, 3), LinearPart(self.to_qkv, 1, 3), LinearPart(self.to_qkv, 2, 3)
        return self.to_q, self.to_k, self.to_v

    def forward(self, x: Field) -> Field:
        if not isinstance(self.processor, Scored):
            return x.whole(lambda data: self.processor(self, data))
        q, k, v = self.projections()
        keys = x.through(self.group_norm, k)
        values = x.through(self.group_norm, v)
        return x.through(self.group_norm, q, Attend(keys, values, self.processor), self.to_out[0], Residual(x))

    def fuse_projections(self) -> None:
        """Adds `to_qkv`, the three projections in one; the separate ones stay, as in diffusers."""
        if self.fused_projections:
            return
        parts = (self.to_q, self.to_k, self.to_v)
        weight = parts[0].weight
        self.to_qkv = Linear(weight.shape[1], 3 * weight.shape[0], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.to_qkv.weight.copy_(torch.cat([p.weight for p in parts]))
            self.to_qkv.bias.copy_(torch.cat([p.bias for p in parts]))
        self.fused_projections = True

    def unfuse_projections(self) -> None:
        """Takes `to_qkv` away again; what it learned meanwhile goes back to the separate projections."""
        if not self.fused_projections:
            return
        parts = (self.to_q, self.to_k, self.to_v)
        with torch.no_grad():
            for part, weight, bias in zip(parts, self.to_qkv.weight.chunk(3), self.to_qkv.bias.chunk(3), strict=True):
                part.weight.copy_(weight)
                part.bias.copy_(bias)
        del self.to_qkv
        self.fused_projections = False

    # --- what diffusers' own processors call --------------------------------------------------------------------------

    def prepare_attention_mask(self, attention_mask: None, *args: object, **kwargs: object) -> None:
        if attention_mask is not None:
            raise NotImplementedError("the mid-block attention of an image VAE takes no mask")

    def head_to_batch_dim(self, x: Tensor) -> Tensor:
        return x

    def batch_to_head_dim(self, x: Tensor) -> Tensor:
        return x

    def get_attention_scores(self, query: Tensor, key: Tensor, attention_mask: None = None) -> Tensor:
        self.prepare_attention_mask(attention_mask)
        return probabilities(query, key, self.scale)
