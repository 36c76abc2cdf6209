"""Spans, windows and grids against their definitions."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vae_core.geometry import Span, convolution_window, grid, tile_kinds

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@given(sizes, st.data())
def test_a_grid_partitions_every_cell(size: list[int], data: st.DataObject) -> None:
    tile = [data.draw(st.integers(1, 50)) for _ in size]
    seen: Counter[tuple[int, ...]] = Counter()
    for region in grid(size, tile):
        assert all(0 <= s.start < s.stop <= n for s, n in zip(region, size, strict=True))
        corners = [(s.start, s.stop) for s in region]
        seen[tuple(stop - start for start, stop in corners)] += 1
    total = sum(count * _volume(shape) for shape, count in seen.items())
    assert total == _volume(tuple(size))
    starts = [tuple(s.start for s in region) for region in grid(size, tile)]
    assert len(set(starts)) == len(starts)


@given(sizes, st.data())
def test_tile_kinds_stand_for_every_tile(size: list[int], data: st.DataObject) -> None:
    """As many tiles of each shape and border position as a walk over the grid finds."""
    tile = [data.draw(st.integers(1, 50)) for _ in size]

    def kind(region: tuple[Span, ...]) -> tuple[tuple[int, bool, bool], ...]:
        return tuple((s.size, s.start == 0, s.stop == n) for s, n in zip(region, size, strict=True))

    walked = Counter(kind(region) for region in grid(size, tile))
    counted: Counter[tuple[tuple[int, bool, bool], ...]] = Counter()
    for region, count in tile_kinds(size, tile):
        counted[kind(region)] += count
    assert counted == walked


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.data())
def test_a_convolution_window_is_what_its_outputs_touch(
    size: int, kernel: int, stride: int, before: int, after: int, data: st.DataObject
) -> None:
    before, after = min(before, kernel - 1), min(after, kernel - 1)  # or an output would lie beyond the picture
    out_size = (size + before + after - kernel) // stride + 1
    if out_size < 1:
        return
    start = data.draw(st.integers(0, out_size - 1))
    stop = data.draw(st.integers(start + 1, out_size))
    window = convolution_window(Span(start, stop), size, kernel, stride, before)
    touched = {i * stride - before + k for i in range(start, stop) for k in range(kernel)}
    # What lies between two strides is read along, so that the window is one piece.
    reach = range(min(touched), max(touched) + 1)
    assert window.before == sum(i < 0 for i in reach)
    assert window.after == sum(i >= size for i in reach)
    inside = [i for i in reach if 0 <= i < size]
    assert not inside or list(range(*window.span)) == inside


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for n in shape:
        volume *= n
    return volume
