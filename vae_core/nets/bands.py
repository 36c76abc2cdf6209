"""Parts of a tensor that stay in the processor's cache while several operations go over them, one after the other."""

from __future__ import annotations

from . import memory
from .layouts import Shape

BAND_ELEMENTS = 1 << 21
"""Of which one consists: eight MiB of float32."""


def pay(elements: int, itemsize: int, room: int) -> bool:
    """Whether a whole run begins a pass over so many elements band by band: where the result needs new memory anyway.

    It does where it is more than the allocator has at hand, and where there is to be `room` before it.
    """
    return elements > BAND_ELEMENTS and (elements * itemsize > memory.AT_HAND_BYTES or room > 0)


def band(shape: Shape) -> tuple[int, ...]:
    """The sides of a part of a tensor `b c …`, channels innermost, that lies in one piece in memory."""
    _, channels, *sizes = shape
    part, left = [], BAND_ELEMENTS // channels
    for size in reversed(sizes):
        part.append(min(size, max(left, 1)))
        left //= size
    return tuple(reversed(part))
