"""Layers whose random weights are not drawn where a checkpoint brings them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_WITHOUT_WEIGHTS: ContextVar[bool] = ContextVar("without_weights", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Layers built within have their weights on the meta device: shapes alone, for a checkpoint to fill.

    `torch.device("meta")` does the same for everything, and makes each call of torch meanwhile a detour through Python.
    """
    token = _WITHOUT_WEIGHTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_WEIGHTS.reset(token)


class Undrawn:
    """Goes before a layer of torch's: on the meta device it draws nothing, which is a third of building a network there."""

    weight: Any

    def __init__(self, *sizes: Any, **options: Any):
        if _WITHOUT_WEIGHTS.get():
            options.setdefault("device", "meta")
        super().__init__(*sizes, **options)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]
