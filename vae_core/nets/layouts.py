"""How a tensor `b c …` lies in memory: contiguous, or with its channels innermost, which torch calls channels_last."""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int, ...]
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_innermost(x: Tensor) -> bool:
    """Whether the channels of `x` lie innermost, without gaps."""
    expected = 1
    for axis in (1, *range(x.ndim - 1, 1, -1), 0):
        if x.shape[axis] != 1 and x.stride(axis) != expected:
            return False
        expected *= x.shape[axis]
    return x.ndim in _FORMATS


def innermost(x: Tensor) -> Tensor:
    """`x` with its channels innermost; itself if it is so, or has no other axes."""
    return x.contiguous(memory_format=_FORMATS[x.ndim]) if x.ndim in _FORMATS else x


def dense(x: Tensor, channels_innermost: bool) -> Tensor:
    """`x` without gaps, in one layout or the other; itself if it is so."""
    return innermost(x) if channels_innermost else x.contiguous()


def stored(shape: Shape) -> Shape:
    """The shape of the contiguous tensor that `movedim(-1, 1)` makes one of `shape` with its channels innermost."""
    return (shape[0], *shape[2:], shape[1])


def select(x: Tensor, axis: int, cells: Tensor) -> Tensor:
    """`x.index_select(axis, cells)` of an axis behind the channels, laid out as `x`; torch's own is always contiguous."""
    if x.is_contiguous() or not is_innermost(x):
        return x.index_select(axis, cells)
    return x.movedim(1, -1).index_select(axis - 1, cells).movedim(-1, 1)


def new_empty(like: Tensor, shape: Shape) -> Tensor:
    """An unwritten tensor of another shape, laid out as `like`."""
    if like.is_contiguous() or not is_innermost(like):
        return like.new_empty(shape)
    return like.new_empty(stored(shape)).movedim(-1, 1)
