"""safetensors: the header read and checked, the data mapped into memory.

Format: 8 bytes little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end)}}, then the
data without gap or overlap. Source: github.com/huggingface/safetensors, README, "Format".
Checking the header here, and not in the library, gives sentences that say what is wrong, and lets a size that lies be seen
without touching one byte of data. Tensors are views of one map of the file, which takes an eighth of the
time of `safe_open` (benchmarks/README.md).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .jsontext import parse_object
from .source import Read, Source, Stored

MAX_HEADER_BYTES = 100_000_000  # the library's own limit (safetensors/src/tensor.rs, MAX_HEADER_SIZE)

# Name in the header -> bits per value, and the torch dtype where there is one.
_DTYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "F64": (64, torch.float64),
    "F32": (32, torch.float32),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E4M3FNUZ": (8, torch.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, torch.float8_e5m2fnuz),
    "I64": (64, torch.int64),
    "I32": (32, torch.int32),
    "I16": (16, torch.int16),
    "I8": (8, torch.int8),
    "U64": (64, torch.uint64),
    "U32": (32, torch.uint32),
    "U16": (16, torch.uint16),
    "U8": (8, torch.uint8),
    "BOOL": (8, torch.bool),
    "C64": (64, torch.complex64),
    # A full checkpoint may hold these in its other parts; a network's own tensor in one of them is refused later.
    "F8_E8M0": (8, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "F4": (4, None),
}


def looks_like_safetensors(head: bytes) -> bool:
    """True if the first 9 bytes can begin a safetensors file: a sane length, then `{`."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(path: Path) -> Source:
    """The header of `path`, checked in full. Raises CheckpointError, naming the tensor where one is to blame."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _header_length(path, file.read(8), size)
        text = file.read(length)
    header = parse_object(text, f"{path}: its safetensors header")
    metadata = _metadata(path, header.pop("__metadata__", {}))
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Stored] = {}
    begins: dict[str, int] = {}
    for key, row in header.items():
        tensors[key], (begin, end) = _entry(path, key, row)
        spans.append((begin, end, key))
        begins[key] = 8 + length + begin
    _check_spans(path, sorted(spans), size - 8 - length)
    return Source(path, "safetensors", tensors, partial(_opened, path, size, text, tensors, begins), metadata)


@contextmanager
def _opened(
    path: Path, size: int, header: bytes, tensors: Mapping[str, Stored], begins: Mapping[str, int]
) -> Iterator[Read]:
    """Reads tensors as views of a private map of the file: pages come when they are touched, and copies when written."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path}: cannot be read ({error}); it may have changed since it was opened") from error
    if len(mapped) != size or mapped[8 : 8 + len(header)] != header:
        raise CheckpointError(f"{path}: has changed since it was opened; open it again")

    def read(key: str) -> Tensor:
        shape, dtype = tensors[key]
        assert dtype is not None  # refused before, as no tensor of a network
        if not (count := math.prod(shape)):
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=begins[key]).view(shape)

    yield read


def _header_length(path: Path, head: bytes, size: int) -> int:
    if len(head) < 8:
        raise CheckpointError(f"{path}: is cut short: {size} bytes, where a safetensors header alone begins with 8")
    length = int.from_bytes(head, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: is no safetensors file, or is damaged: it announces a header of {length} bytes, "
            f"and the format allows {MAX_HEADER_BYTES}"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path}: is cut short: its header should take {length} bytes, the whole file has {size}; download it again"
        )
    return length


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{path}: `__metadata__` in its safetensors header is not a map of texts to texts")
    return value


def _entry(path: Path, key: str, row: Any) -> tuple[Stored, tuple[int, int]]:
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: `{key}` in its header lacks one of dtype, shape, data_offsets, or has more")
    name, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(f"{path}: `{key}` has the unknown dtype {name!r}; known are {', '.join(_DTYPES)}")
    if not _sizes(shape):
        raise CheckpointError(f"{path}: `{key}` has the shape {shape!r}, which is not a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path}: `{key}` has data_offsets {offsets!r}, which are not [begin, end]")
    bits, dtype = _DTYPES[name]
    needed, stored = math.prod(shape) * bits, (offsets[1] - offsets[0]) * 8
    if needed != stored:
        raise CheckpointError(
            f"{path}: `{key}` of shape {shape} and dtype {name} takes {needed // 8} bytes, "
            f"and its data_offsets hold {stored // 8}; the header is wrong"
        )
    return Stored(tuple(shape), dtype), (offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and {*map(type, value)} <= {int} and min(value, default=0) >= 0


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    cursor = 0
    for begin, end, key in spans:
        if begin < cursor:
            raise CheckpointError(f"{path}: `{key}` overlaps the tensor before it at byte {begin} of the data")
        if begin > cursor:
            raise CheckpointError(f"{path}: there is a gap of {begin - cursor} bytes before `{key}` in the data")
        cursor = end
    if cursor > data_bytes:
        raise CheckpointError(
            f"{path}: is cut short: its tensors take {cursor} bytes, the file has {data_bytes}; download it again"
        )
    if cursor < data_bytes:
        raise CheckpointError(f"{path}: has {data_bytes - cursor} bytes after its last tensor that its header denies")
