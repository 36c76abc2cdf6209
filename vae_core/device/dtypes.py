"""Which number format to compute in, where the user does not say."""

from __future__ import annotations

import torch

from ..nets.arithmetic import cpu_convolves
from ..spec import Spec


def default_dtype(device: torch.device, spec: Spec, direction: str) -> torch.dtype:
    """The fastest format that the device has and that is safe for the variant: bfloat16, float16, else float32.

    Encoding is float32 unless the variant allows less: a rounded latent is what everything afterwards starts from (FastVideo#1472
    measured a bfloat16 encode at SSIM 0.76 where float32 gives 0.98), while a rounded pixel is seen once.
    """
    safe = spec.decode_dtypes if direction == "decode" else spec.encode_dtypes
    return next((dtype for dtype in safe if _is_fast(dtype, device)), torch.float32)


def _is_fast(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the hardware computes in it; where it does not, torch converts back and forth, several times slower."""
    if device.type == "cuda":
        if dtype == torch.bfloat16:
            # Emulated before Ampere (compute capability 8.0).
            return torch.cuda.get_device_capability(device) >= (8, 0) if torch.cuda.is_available() else True
        return dtype == torch.float16
    return dtype == torch.bfloat16 and device.type == "cpu" and cpu_convolves(dtype)
