"""Convolutions that add their result to what is there already, as those of oneDNN do on CPUs.

The sum is taken while the result is in the cache, in float32, and needs no memory besides. torch.compile uses the operator for the
same; torch does not document it, and where it is missing, it is a convolution and an addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arithmetic import convolving_dtype
from .layouts import is_innermost

DTYPES = (torch.float32, torch.bfloat16)


def adds(weight: Tensor) -> bool:
    """Whether convolutions by `weight`, of tensors of its dtype, can add their result to another tensor."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and convolving_dtype(weight) == weight.dtype
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
        and (weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pads: Sequence[int]) -> Tensor:
    """The convolution of `x`, `b c …`. Where its channels lie innermost, so do those of the result.

    That of torch has other code for small clips, and lays out what it makes in another way.
    """
    innermost = is_innermost(x) and not x.is_contiguous()
    if innermost and adds(weight) and x.dtype == weight.dtype and not torch.is_grad_enabled():
        once = [1] * len(stride)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [*pads], [*stride], once, 1, "none", [], None)
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, tuple(stride), tuple(pads))


def convolve_onto(
    there: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pads: Sequence[int]
) -> Tensor:
    """The convolution of `x`, `b c …`, added to `there`; which is returned.

    Both lie with their channels innermost; in other layouts the result is the same, and its memory is allocated before it is added.
    """
    if not (adds(weight) and x.dtype == there.dtype == weight.dtype and is_innermost(there)):
        return there.add_(convolve(x, weight, bias, stride, pads))
    once = [1] * len(stride)
    torch.ops.mkldnn._convolution_pointwise_.binary(
        there, x, weight, bias, [*pads], [*stride], once, 1, "add", 1.0, None, [], None
    )
    return there
