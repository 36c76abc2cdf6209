"""3×3 convolutions with fewer multiplications, for CPUs: Winograd's minimal filtering, as products of matrices.

Along one axis, two outputs y of a kernel g take four multiplications, where the plain way takes six; and three where the cells
are those of an upsampled picture, each twice:

    d0 d1 d2 d3    m = (d0 - d2) g0, (d1 + d2) (g0 + g1 + g2) / 2, (d2 - d1) (g0 - g1 + g2) / 2, (d1 - d3) g2
                   y = m0 + m1 + m2, m1 - m2 - m3
    x0 x1 x1 x2    m = (x0 - x1) g0, x1 (g0 + g1 + g2), (x1 - x2) g2
                   y = m0 + m1, m1 - m2

That is F(2, 3) of S. Winograd, "Arithmetic Complexity of Computations" (1980), brought to networks by A. Lavin and S. Gray, "Fast
Algorithms for Convolutional Neural Networks" (2015). Nested over both axes, a kernel becomes 16 (or 9) matrices of channels, by
which the combined cells are multiplied. What it adds up is shorter than in a plain convolution, and the result no less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from ..geometry import grid
from .arithmetic import convolving_dtype
from .layouts import Shape, stored
from .memory import current

Pads = tuple[tuple[int, int], ...]

DEPTH = 128
"""Input channels times frames of the kernel, at least: with fewer, combining cells outweighs the multiplications saved."""

FAST_DEPTH, FAST_UPSAMPLING_DEPTH = 192, 512
"""The same where plain convolutions come near to what the CPU can do: with AVX-512, before AVX512-BF16, as on an Ice Lake Xeon; and
with AMX, on whose Xeons upsampling is filtered from `DEPTH` on."""

PART_ELEMENTS, MOST_THREADS = 2**15, 8
"""What is computed at a time, so that it stays in the cache: matrices of so many elements for each thread, for no more threads
than this, which bounds the memory. Measured with two threads."""

PART_PAIRS, PART_WIDTH = 256, 32
"""But matrices of no fewer rows (pairs of outputs by pairs of outputs), which would slow their product; and parts so many pairs
wide, so that their border is short."""

Head = Callable[[int, Tensor, tuple[int, int]], Tensor]
"""(which image, a part of it `1 c h w`, the part's first cell in x) → what is convolved there."""


@dataclass(frozen=True)
class Filtering:
    """How the cells, the kernel and the products of one axis are combined. `upsamples`: each input cell counts twice."""

    upsamples: bool

    @property
    def products(self) -> int:
        """For each two outputs."""
        return 3 if self.upsamples else 4

    @property
    def step(self) -> int:
        """Input cells from one pair of outputs to the next; two more belong to each."""
        return 1 if self.upsamples else 2

    @property
    def kernel_weights(self) -> Tensor:
        """`(u v) 9`: what each product of both axes multiplies its cells by, as a sum of the nine elements of a kernel."""
        if self.upsamples:
            axis = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
        else:
            axis = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
        return torch.kron(axis, axis)

    def combine(self, d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The cells, into `out`."""
        if self.upsamples:
            torch.sub(d[0], d[1], out=out[0])
            out[1].copy_(d[1])
            torch.sub(d[1], d[2], out=out[2])
        else:
            torch.sub(d[0], d[2], out=out[0])
            torch.add(d[1], d[2], out=out[1])
            torch.sub(d[2], d[1], out=out[2])
            torch.sub(d[1], d[3], out=out[3])

    def outputs(self, m: Sequence[Tensor]) -> None:
        """The two outputs, in place of the first two products."""
        m[0].add_(m[1])
        if not self.upsamples:
            m[0].add_(m[2])
            m[1].sub_(m[2])
        m[1].sub_(m[-1])


PLAIN, UPSAMPLING = Filtering(False), Filtering(True)


def gains(weight: Tensor, how: Filtering) -> bool:
    """Whether a convolution of stride 1 by a kernel `o i (t) h w` is faster so (benchmarks/README.md).

    That is measured on CPUs with Intel's MKL only, and computed in float32.
    """
    if weight.device.type != "cpu":
        return False
    o, i, *taps, h, w = weight.shape
    return (
        h == w == 3
        and min(prod(taps) * i, 2 * o) >= least_depth(how)
        and convolving_dtype(weight) == torch.float32
        and torch.backends.mkl.is_available()
    )


def least_depth(how: Filtering) -> int:
    """Of the CPU at hand, as torch sees it; torch before 2.6 tells nothing of it."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    if has.get("amx_bf16"):
        return DEPTH if how.upsamples else FAST_DEPTH
    if not has.get("avx512_f") or has.get("avx512_bf16"):
        return DEPTH
    return FAST_UPSAMPLING_DEPTH if how.upsamples else FAST_DEPTH


def kernel_elements(weight: Tensor, how: Filtering) -> int:
    """Of a Filter's kernel, in float32."""
    return weight.numel() // 9 * how.products**2


def preparing_elements(weight: Tensor, how: Filtering) -> int:
    """At most alive while a Filter makes its kernel, itself included."""
    copy = 0 if weight.dtype == torch.float32 and weight.is_contiguous() else weight.numel()
    return kernel_elements(weight, how) + copy + 2 * 9 * how.products**2


def operations(i: int, taps: int, made: Shape, how: Filtering) -> int:
    """Of the products that make a tile `b o (t) h w` of i channels and so many frames each; two for each multiplication."""
    pairs = prod(-(-n // 2) for n in made[-2:])
    return 2 * i * taps * how.products**2 * pairs * prod(made[:-2])


def part_pairs(i: int, o: int) -> int:
    """How many pairs by pairs of outputs are computed at a time."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    return max(threads * PART_ELEMENTS // max(i, o), PART_PAIRS)


def part_sizes(pairs: Sequence[int], most: int) -> tuple[int, int]:
    """The sides of parts of `most` pairs at most."""
    w = min(pairs[1], PART_WIDTH)
    return min(pairs[0], most // w), w


def workspace_elements(weight: Tensor, how: Filtering) -> int:
    """Of the memory that a Filter works in, whatever the size of a tile."""
    o, i, *taps = weight.shape[:-2]
    return max(_elements(how, h, w, prod(taps), i, o) for h, w in _narrowest(i, o))


def window_elements(weight: Tensor, how: Filtering) -> int:
    """Of the largest part of x that is read at a time."""
    o, i = weight.shape[:2]
    return max(prod(_shapes(how, h, w, 1, i, o)[0]) for h, w in _narrowest(i, o))


def _narrowest(i: int, o: int) -> list[tuple[int, int]]:
    """Parts whose borders are largest."""
    most = part_pairs(i, o)
    return [(most // w, w) for w in (1, PART_WIDTH)]


class Filter:
    """A 3×3 convolution of stride 1, in space; over as many frames as the kernel has."""

    def __init__(self, weight: Tensor, bias: Tensor | None, how: Filtering):
        self.how = how
        self.kernel = _transformed(weight, how)
        self.bias = None if bias is None else bias.float()

    def __call__(
        self,
        x: Tensor,
        pads: Pads,
        before: Sequence[Tensor | None] = (),
        head: Head | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`b c h w` or `b c t h w` with zeros around each frame as `pads` says; the result is in the dtype of x.

        `before` are the frames `b c h w` before the first, None for zeros. A kernel with more frames than there are in all meets
        zeros before them. `head` is computed of each part of x before that is convolved. `out` is where the result goes, if given.
        """
        if x.ndim == 4:
            made = self(x.unsqueeze(2), pads, before, head, None if out is None else out.unsqueeze(2))
            return made.squeeze(2) if out is None else out
        kernel = self.kernel[-(len(before) + x.shape[2]) :]
        taps, _, i, o = kernel.shape
        frames = len(before) + x.shape[2] - taps + 1
        step = self.how.step
        pairs = [-(-(n + sum(pad) - 2) // step) for n, pad in zip(x.shape[3:], pads, strict=True)]
        sizes = [(n + sum(pad) - 2) * 2 // step for n, pad in zip(x.shape[3:], pads, strict=True)]
        shape = stored((len(x), o, frames, *sizes))
        made = current().spares.empty(shape, x.dtype) if out is None else out.movedim(1, -1)
        most = part_sizes(pairs, part_pairs(i, o))
        part = _Part(self.how, *most, taps, i, o)
        for image in range(len(x)):
            entering = [None if f is None else f[image : image + 1] for f in before]
            entering += [x[image : image + 1, :, t] for t in range(x.shape[2])]
            for rows, columns in grid(pairs, most):
                view = part.view(rows.size, columns.size)
                for t, frame in enumerate(entering):
                    first = step * rows.start - pads[0][0], step * columns.start - pads[1][0]
                    view.read(frame, t % taps, first, None if head is None else partial(head, image))
                    if t >= taps - 1:
                        view.multiply(kernel, t + 1)
                        view.write(made[image, t + 1 - taps], self.bias, 2 * rows.start, 2 * columns.start)
        return made.movedim(-1, 1) if out is None else out


def _transformed(weight: Tensor, how: Filtering) -> Tensor:
    """A kernel `o i (t) 3 3` → `t (u v) i o`, u and v the products of both axes."""
    weights = how.kernel_weights
    weight = weight.to(weights.dtype, memory_format=torch.contiguous_format).contiguous()
    taps = weight.unsqueeze(2) if weight.ndim == 4 else weight
    o, i, t, *_ = taps.shape
    made = weight.new_empty(t, len(weights), o, i)
    for planes, tap in zip(made, taps.unbind(2), strict=True):
        torch.mm(weights, tap.view(o * i, 9).T, out=planes.view(-1, o * i))
    return made.transpose(2, 3)


class _Part:
    """Memory for one part of a picture, which all parts share."""

    def __init__(self, how: Filtering, h: int, w: int, taps: int, i: int, o: int):
        self.how, self.taps, self.channels = how, taps, (i, o)
        self.memory = current().workspace(_elements(how, h, w, taps, i, o))
        self.views: dict[tuple[int, int], _View] = {}

    def view(self, h: int, w: int) -> _View:
        """For a part of h × w pairs of outputs."""
        if (h, w) not in self.views:
            shapes = _shapes(self.how, h, w, self.taps, *self.channels)
            sizes = [prod(shape) for shape in shapes]
            pieces = self.memory[: sum(sizes)].split(sizes)
            self.views[h, w] = _View(self.how, *(m.view(shape) for m, shape in zip(pieces, shapes, strict=True)))
        return self.views[h, w]


def _elements(how: Filtering, h: int, w: int, taps: int, i: int, o: int) -> int:
    return sum(map(prod, _shapes(how, h, w, taps, i, o)))


def _shapes(how: Filtering, h: int, w: int, taps: int, i: int, o: int) -> tuple[Shape, ...]:
    """Of what _View holds."""
    n, s = how.products, how.step
    return (s * h + 2, s * w + 2, i), (n, h, s * w + 2, i), (taps, n, n, h, w, i), (n, n, h, w, o)


class _View:
    """One part under way: its window `h w i`, the cells combined by rows, then by columns too (for each frame), the products."""

    def __init__(self, how: Filtering, window: Tensor, by_rows: Tensor, cells: Tensor, products: Tensor):
        self.how, self.window = how, window
        step, (h, w) = how.step, products.shape[2:4]
        self.rows = [window[k : k + step * (h - 1) + 1 : step] for k in range(step + 2)]
        self.columns = [by_rows[:, :, k : k + step * (w - 1) + 1 : step] for k in range(step + 2)]
        self.cells = [frame.unbind(1) for frame in cells]
        self.matrices = [frame.flatten(0, 1).flatten(1, 2) for frame in cells]
        self.product = products.flatten(0, 1).flatten(1, 2)
        self.product_rows, self.product_columns = products.unbind(0), products[:2].unbind(1)
        self.row_cells = by_rows.unbind(0)
        self.constant = products[1, 1]
        """Of all products the one that goes into every output with the sign +, and so takes the bias."""
        self.outputs = products[:2, :2]

    def read(self, frame: Tensor | None, slot: int, first: tuple[int, int], head: Callable[..., Tensor] | None) -> None:
        """Takes the window that begins at a cell of a frame `1 i h w`, zeros beyond its borders, and combines its cells."""
        if frame is None:
            self.window.zero_()
        else:
            rows, into_rows = self._inside(0, first[0], frame.shape[2])
            columns, into_columns = self._inside(1, first[1], frame.shape[3])
            part = frame[..., rows, columns]
            if head is not None:
                part = head(part, (rows.start, columns.start))
            self.window[into_rows, into_columns].copy_(part[0].movedim(0, -1))
        self.how.combine(self.rows, self.row_cells)
        self.how.combine(self.columns, self.cells[slot])

    def _inside(self, axis: int, start: int, size: int) -> tuple[slice, slice]:
        """Which cells of an axis of a frame the window has, and where; the others are zeroed."""
        length = self.window.shape[axis]
        first, stop = max(-start, 0), min(size - start, length)
        if first:
            self.window.narrow(axis, 0, first).zero_()
        if stop < length:
            self.window.narrow(axis, stop, length - stop).zero_()
        return slice(start + first, start + stop), slice(first, stop)

    def multiply(self, kernel: Tensor, first: int) -> None:
        """The frames' cells by the kernel; the oldest frame is in slot `first` (modulo the frames)."""
        taps = len(kernel)
        torch.bmm(self.matrices[first % taps], kernel[0], out=self.product)
        for tap in range(1, taps):
            torch.baddbmm(self.product, self.matrices[(first + tap) % taps], kernel[tap], out=self.product)

    def write(self, frame: Tensor, bias: Tensor | None, row: int, column: int) -> None:
        """The outputs into a frame `h w o`, from a cell on, as far as it goes."""
        if bias is not None:
            self.constant.add_(bias)
        self.how.outputs(self.product_rows)
        self.how.outputs(self.product_columns)
        for u in range(2):
            for v in range(2):
                made = self.outputs[u, v]
                place = frame[row + u : row + 2 * made.shape[0] : 2, column + v : column + 2 * made.shape[1] : 2]
                place.copy_(made[: place.shape[0], : place.shape[1]])
