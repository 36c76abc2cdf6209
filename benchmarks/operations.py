"""Operations of a run, as torch counts them, and of oneDNN's convolutions, which torch's counter does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def operations_counter() -> FlopCounterMode:
    """Two for each multiplication; the CPU's fused attention is left out, as torch leaves it out."""
    ops = torch.ops.mkldnn
    known = {ops._convolution_pointwise_: _adding, ops._convolution_pointwise: _convolving}
    return FlopCounterMode(display=False, custom_mapping=known)


def _convolving(x: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


def _adding(there: Any, x: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return conv_flop_count(x, weight, out_shape)
