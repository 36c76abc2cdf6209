"""Layers whose random weights are not drawn where a checkpoint brings them."""

from __future__ import annotations

from typing import Any


class Undrawn:
    """Goes before a layer of torch's: on the meta device it draws nothing, which is a third of building a network there."""

    weight: Any

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]
