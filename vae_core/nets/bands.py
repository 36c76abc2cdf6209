"""Parts of a tensor that stay in the processor's cache while several operations go over them, one after the other."""

from __future__ import annotations

from .layouts import Shape

BAND_ELEMENTS = 1 << 21
"""Of which one consists: eight MiB of float32."""


def band(shape: Shape) -> tuple[int, ...]:
    """The sides of a part of a tensor `b c …`, channels innermost, that lies in one piece in memory."""
    _, channels, *sizes = shape
    part, left = [], BAND_ELEMENTS // channels
    for size in reversed(sizes):
        part.append(min(size, max(left, 1)))
        left //= size
    return tuple(reversed(part))
