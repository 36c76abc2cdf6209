"""Every error that vae_core raises for a reason of its own.

    ExactVAEError
    ├── CheckpointError            a file that cannot be read, or is not what it seems
    │   ├── UnknownModelError      readable, but no network that we know
    │   └── StateDictError         a known network with missing, surplus or wrongly shaped tensors
    ├── ConfigError                a network configuration that cannot be built      (also a ValueError)
    ├── InputError                 latents, pixels or options that do not fit        (also a ValueError)
    ├── BudgetError                no plan fits the memory limit, or memory ran out for good
    ├── NonFiniteError             a layer gives NaN or infinite values, in float32 too
    └── MissingPackageError        an optional package is not installed              (also an ImportError)

A message is one sentence that a person can act on: the file, the key or value, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ExactVAEError(Exception):
    """Base of all errors below; catching it catches every refusal of this library and nothing else."""


class CheckpointError(ExactVAEError):
    """A file that cannot be read, or is not what it seems."""


class UnknownModelError(CheckpointError):
    """A readable file whose tensors belong to no network that vae_core knows."""


class StateDictError(CheckpointError):
    """Tensors that do not fit the network: missing, surplus, or of another shape."""


class ConfigError(ExactVAEError, ValueError):
    """A network configuration that cannot be built."""


class InputError(ExactVAEError, ValueError):
    """Latents, pixels or options that do not fit the network or each other."""


class BudgetError(ExactVAEError):
    """No plan fits the memory limit, or memory ran out for good; the message says what would fit.

    `rungs` are the ways that were weighed (vae_core.plan.Rung), `table` the same as text, `limit_bytes` what they had to fit in.
    """

    def __init__(self, message: str, table: str = "", rungs: Sequence[Any] = (), limit_bytes: int | None = None):
        super().__init__(message)
        self.table, self.rungs, self.limit_bytes = table, tuple(rungs), limit_bytes


class NonFiniteError(ExactVAEError):
    """A layer gives NaN or infinite values, in float32 too; the message names it."""


class MissingPackageError(ExactVAEError, ImportError):
    """An optional package is needed and not installed; the message says how to install it."""
