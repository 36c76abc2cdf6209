"""Operations of a run, as torch counts them, and of oneDNN's convolutions that add, which torch's counter does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def operations_counter() -> FlopCounterMode:
    """Two for each multiplication; the CPU's fused attention is left out, as torch leaves it out."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._convolution_pointwise_: _adding})


def _adding(there: Any, x: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return conv_flop_count(x, weight, out_shape)
