"""In which number format the convolutions of a half-precision network are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def convolving_dtype(x: Tensor) -> torch.dtype:
    """That of convolutions of tensors such as `x`: its own, but float32 on CPUs that have no unit for it.

    Such a CPU takes nearly twice as long in bfloat16 or float16 as in float32, conversions included (benchmarks/README.md).
    """
    slow = x.device.type == "cpu" and x.dtype.itemsize == 2 and not cpu_convolves(x.dtype)
    return torch.float32 if slow else x.dtype


def cpu_convolves(dtype: torch.dtype) -> bool:
    """Whether the CPU has a unit for matrices of bfloat16 or float16, as torch sees it: AMX, or the arithmetic of Arm.

    AVX512-BF16 and AVX512-FP16 alone do not do. torch before 2.6 tells nothing of it.
    """
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    tell = getattr(torch.cpu, "get_capabilities", None)
    if tell is not None:
        has = tell()
        return bool(has.get(f"amx_{name}") or (name == "bf16" and has.get("bf16")))
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return name == "bf16" and ask is not None and ask()
