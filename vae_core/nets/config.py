"""Configurations: frozen dataclasses that also read like the mappings of a config.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from ..errors import ConfigError


class Config:
    """Base of a network's configuration: `config.sample_size`, `config["sample_size"]`, `dict(config)`."""

    def keys(self) -> Iterator[str]:
        return (f.name for f in fields(self))  # type: ignore[arg-type]

    __iter__ = keys

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.keys() else default


def require(holds: bool, sentence: str) -> None:
    """Raises ConfigError with `sentence` unless `holds`."""
    if not holds:
        raise ConfigError(sentence)


def require_block_types(name: str, given: Sequence[str], known: str, levels: int) -> tuple[str, ...]:
    """The block types of a network with `levels` levels, by default `known` for each; raises ConfigError for any others."""
    types = tuple(given) or (known,) * levels
    right = len(types) == levels and set(types) == {known}
    require(right, f"{name} must name {known!r} once for each of the {levels} block_out_channels; got {types!r}")
    return types


def require_positive_ints(name: str, values: tuple[int, ...]) -> None:
    """Raises ConfigError unless `values` is a non-empty tuple of positive integers."""
    good = len(values) > 0 and all(isinstance(v, int) and v > 0 for v in values)
    require(good, f"{name} must be positive integers, at least one; got {values!r}")
