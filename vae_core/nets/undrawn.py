"""Layers whose random weights are not drawn where a checkpoint brings them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_FIRST: ContextVar[dict[Hashable, dict[str, Any]] | None] = ContextVar("first_of_its_kind", default=None)
"""While a network is built without weights: class and arguments of a layer -> the attributes of the first one built of them."""


@contextmanager
def without_weights() -> Iterator[None]:
    """Layers built within have their weights on the meta device: shapes alone, for a checkpoint to fill.

    `torch.device("meta")` does the same for everything, and makes each call of torch meanwhile a detour through Python.
    """
    token = _FIRST.set({})
    try:
        yield
    finally:
        _FIRST.reset(token)


class Undrawn:
    """Goes before a layer of torch's: without weights it draws nothing, which is a third of building a network.

    Nor does it go through the layer's constructor, another half, where one of the same class and arguments was built before:
    it then begins with that one's attributes, and has their containers for itself.
    """

    weight: Any

    def __init__(self, *sizes: Any, **options: Any):
        if (first := _FIRST.get()) is None:
            super().__init__(*sizes, **options)
            return
        kind = (type(self), sizes, *options.items())
        if kind not in first:
            super().__init__(*sizes, **{"device": "meta", **options})
            first[kind] = dict(self.__dict__)
        else:
            for name, value in first[kind].items():
                self.__dict__[name] = value.copy() if isinstance(value, (dict, list, set)) else value

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]
