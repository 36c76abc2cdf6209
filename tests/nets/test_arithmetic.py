"""Half-precision convolutions on CPUs without a unit for them: computed in float32, rounded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vae_core.nets import arithmetic
from vae_core.nets.arithmetic import convolving_dtype
from vae_core.nets.causal_convolution import CausalConv3d
from vae_core.nets.convolutions import Conv2d, UpsampleConv2d

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "3×3": (lambda: Conv2d(8, 6, 3, pads=(1, 1)), (1, 8, 9, 7)),
    "stride 2, one side": (lambda: Conv2d(8, 6, 3, stride=2, pads=(0, 1)), (1, 8, 10, 8)),
    "upsampling": (lambda: UpsampleConv2d(8, 6), (1, 8, 5, 7)),
    "causal": (lambda: CausalConv3d(8, 6, 3), (1, 8, 4, 5, 6)),
    "lone frame": (lambda: CausalConv3d(8, 6, 3), (1, 8, 1, 5, 6)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", LAYERS)
@torch.inference_mode()
def test_convolutions_are_rounded_once(layer: str, dtype: torch.dtype) -> None:
    """Equal, bit for bit, to float32's result rounded; `literal`, which is the published code's, keeps its own arithmetic."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    op, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    made = op.of(x)
    assert made.dtype == dtype
    assert torch.equal(made, op.float().of(x.float()).to(dtype))


def test_only_where_the_cpu_has_no_unit_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    for units, expected in (((), torch.float32), ((torch.bfloat16,), torch.bfloat16)):
        monkeypatch.setattr(arithmetic, "cpu_convolves", lambda dtype, units=units: dtype in units)
        assert convolving_dtype(half) == expected
        assert convolving_dtype(half.to(torch.float16)) == torch.float32
        assert convolving_dtype(half.to("meta")) == torch.bfloat16, "of another device nothing is known"
        assert convolving_dtype(single) == torch.float32
