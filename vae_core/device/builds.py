"""Versions of torch and its libraries that are known to compute wrongly, slowly, or in far too much memory.

A row is recognised by version and either avoided where it would bite (`avoided` says where) or told to the user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Version = tuple[int, ...]


@dataclass(frozen=True)
class Build:
    """What torch reports of itself; `cudnn` is (major, minor, patch), () without it."""

    torch: Version
    cudnn: Version
    device: str

    @classmethod
    def here(cls, device: torch.device) -> Build:
        """The one that runs."""
        cudnn = (
            torch.backends.cudnn.version() if device.type == "cuda" and torch.backends.cudnn.is_available() else None
        )
        return cls(_numbers(torch.__version__), _cudnn_numbers(cudnn), device.type)


@dataclass(frozen=True)
class Problem:
    """One known problem of some builds."""

    name: str
    affects: Callable[[Build], bool]
    symptom: str
    source: str
    avoided: str | None = None
    """Where our code works around it; None where the user should act."""
    advice: str = ""


PROBLEMS = (
    Problem(
        "onednn-bf16-one-column",
        lambda b: b.device == "cpu" and b.torch >= (2, 13),
        "a strided bfloat16 convolution whose output is one column wide returns garbage (oneDNN with AMX)",
        "found by tests/nets of this repository on torch 2.13",
        avoided="nets/convolutions.py, Conv2d: one more column is computed and dropped",
    ),
    Problem(
        "cudnn-conv3d-memory",
        lambda b: b.device == "cuda" and (2, 9) <= b.torch < (2, 11) and (9, 10, 2) <= b.cudnn < (9, 15),
        "three-dimensional convolutions in bfloat16 and float16 take several times the memory they should",
        "pytorch/pytorch#166643, #177406; ComfyUI works around it for cuDNN 9.10.2 up to 9.15",
        advice="for video VAEs update torch to 2.11 or later, or go back to 2.8",
    ),
)


def known_problems(device: torch.device, dimensions: int = 2) -> tuple[str, ...]:
    """Sentences on what this build is known to do wrong and nothing here avoids; `dimensions` of the network's convolutions."""
    build = Build.here(device)
    return tuple(
        f"this build of torch has a known problem ({row.source}): {row.symptom}; {row.advice}"
        for row in PROBLEMS
        if row.avoided is None and row.affects(build) and (dimensions == 3 or "conv3d" not in row.name)
    )


def _numbers(version: str) -> Version:
    """ "2.13.0+cpu" → (2, 13, 0)."""
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


def _cudnn_numbers(version: int | None) -> Version:
    """91002 → (9, 10, 2); versions before 9 had one digit less for the major number: 8902 → (8, 9, 2)."""
    if version is None:
        return ()
    major = 10_000 if version >= 90_000 else 1_000
    return version // major, version % major // 100, version % 100
