"""Flax: `diffusion_flax_model.msgpack`, read and written without jax, flax or msgpack.

The file is one msgpack value: nested maps of text -> map | array. An array is an extension value of type 1 whose
payload is again msgpack: (shape, dtype name, raw C-order little-endian bytes); type 3, a scalar, has the same payload;
type 2 is a complex number. Arrays of more than 2**30 bytes are a map with `__msgpack_chunked_array__`, `shape` and
`chunks`, the latter two maps keyed "0", "1", ... Source: flax/serialization.py.

Only the small part of msgpack that occurs there is needed (github.com/msgpack/msgpack, spec.md). A general decoder has
to copy every array to see its shape; this one walks the memory-mapped file and notes where each array lies.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from .source import Read, Source, Stored

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32  # a VAE nests six deep; more is a file made to exhaust the stack


@dataclass(frozen=True)
class _Array:
    """Where an array lies: one span of raw bytes, or one per chunk."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    spans: tuple[tuple[int, int], ...]


def read_flax(path: Path) -> Source:
    """Names (joined by dots, as Flax spells them) and shapes of the arrays in `path`. Raises CheckpointError."""
    with _mapped(path) as data:
        walker = _Walker(path, data)
        tree = walker.value()
        if walker.at != len(data):
            raise walker.wrong(f"{len(data) - walker.at} bytes follow its end")
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: is no Flax state: its msgpack holds a {type(tree).__name__} and not a map")
    arrays: dict[str, _Array] = {}
    others: dict[str, str] = {}
    nesting = ("params",) if list(tree) == ["params"] and isinstance(tree["params"], dict) else ()
    _flatten(path, tree["params"] if nesting else tree, "", arrays, others)
    tensors = {key: Stored(array.shape, array.dtype) for key, array in arrays.items()}
    return Source(path, "Flax msgpack", tensors, partial(_opened, path, arrays), {}, others, nesting)


def write_flax(file: BinaryIO, state: Mapping[str, Tensor]) -> None:
    """Writes arrays under dotted Flax names as nested maps. Each is on its way to the file alone, never all at once."""
    tree: dict[str, Any] = {}
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = tensor
    _write_value(file, tree)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


@contextmanager
def _opened(path: Path, arrays: Mapping[str, _Array]) -> Iterator[Read]:
    with _mapped(path) as data:

        def read(key: str) -> Tensor:
            array = arrays[key]
            # Copied out: the raw bytes of a msgpack file lie at any address, and tensors want aligned memory.
            raw = bytearray().join(data[begin:end] for begin, end in array.spans)
            if not raw:
                return torch.empty(array.shape, dtype=array.dtype)
            return torch.frombuffer(raw, dtype=array.dtype).reshape(array.shape)

        yield read


def _flatten(
    path: Path, node: Mapping[str, Any], prefix: str, arrays: dict[str, _Array], others: dict[str, str]
) -> None:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and _CHUNKED in value:
            arrays[key] = _joined(path, key, value)
        elif isinstance(value, dict):
            _flatten(path, value, f"{key}.", arrays, others)
        elif isinstance(value, _Array):
            arrays[key] = value
        else:
            others[key] = type(value).__name__


def _joined(path: Path, key: str, node: Mapping[str, Any]) -> _Array:
    shape, chunks = (_listed(node.get(field)) for field in ("shape", "chunks"))
    good = all(type(size) is int for size in shape) and all(isinstance(chunk, _Array) for chunk in chunks) and chunks
    if not good or math.prod(shape) != sum(math.prod(chunk.shape) for chunk in chunks):
        raise CheckpointError(f"{path}: the chunked array `{key}` does not add up to its shape")
    spans = tuple(span for chunk in chunks for span in chunk.spans)
    return _Array(tuple(shape), chunks[0].dtype, spans)


def _listed(value: Any) -> list[Any]:
    # Flax writes a tuple as a map keyed "0", "1", ...
    return [value[str(index)] for index in range(len(value)) if str(index) in value] if isinstance(value, dict) else []


class _Walker:
    """Reads msgpack values from `at` on, never past `end`."""

    def __init__(self, path: Path, data: mmap.mmap, at: int = 0, end: int | None = None) -> None:
        self.path, self.data, self.at = path, data, at
        self.end = len(data) if end is None else end

    def wrong(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: is no Flax msgpack file, or is damaged: {what} (byte {self.at})")

    def value(self, depth: int = 0) -> Any:
        """The next value: a dict, an _Array, an int, a text, ...; bytes as the span where they lie."""
        if depth > _MAX_DEPTH:
            raise self.wrong(f"its maps nest more than {_MAX_DEPTH} deep")
        code = self.take(1)[0]
        if code <= 0x7F:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code <= 0x8F:
            return self.map(code & 0x0F, depth)
        if code <= 0x9F:
            return [self.value(depth + 1) for _ in range(code & 0x0F)]
        if code <= 0xBF:
            return self.text(code & 0x1F)
        return self.long_form(code, depth)

    def long_form(self, code: int, depth: int) -> Any:
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if code in _FIXED_EXT:
            return self.extension(_FIXED_EXT[code])
        if code not in _SIZED:
            raise self.wrong(f"it has the byte 0x{code:02x} where a value begins")
        kind, size_format = _SIZED[code]
        size = self.number(size_format)
        if kind == "ext":
            return self.extension(size)
        if kind == "map":
            return self.map(size, depth)
        if kind == "array":
            return [self.value(depth + 1) for _ in range(size)]
        return self.text(size) if kind == "text" else self.span(size)

    def take(self, count: int) -> bytes:
        begin, end = self.span(count)
        return self.data[begin:end]

    def span(self, count: int) -> tuple[int, int]:
        if self.at + count > self.end:
            raise self.wrong(f"it is cut short: {count} bytes should follow, {self.end - self.at} do")
        begin, self.at = self.at, self.at + count
        return begin, self.at

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            raise self.wrong("a text in it is not UTF-8") from None

    def map(self, count: int, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in result:
                raise self.wrong(f"the key {key!r} is no text or stands twice in one map")
            result[key] = self.value(depth + 1)
        return result

    def extension(self, count: int) -> Any:
        kind = self.number("b")
        begin, end = self.span(count)
        if kind not in (_NDARRAY, _SCALAR):
            return 0j if kind == _COMPLEX else None
        return _Walker(self.path, self.data, begin, end).array()

    def array(self) -> _Array:
        """The payload of an array: (shape, dtype name, raw bytes)."""
        payload = self.value()
        if not isinstance(payload, list) or len(payload) != 3:
            raise self.wrong("an array in it is not (shape, dtype, bytes)")
        shape, dtype_name, span = payload
        name = self.data[slice(*dtype_name)].decode("latin-1") if isinstance(dtype_name, tuple) else dtype_name
        if name not in _DTYPES:
            raise self.wrong(f"an array in it has the unknown dtype {name!r}")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise self.wrong(f"an array in it has the shape {shape!r}")
        needed = math.prod(shape) * _DTYPES[name].itemsize
        if not isinstance(span, tuple) or span[1] - span[0] != needed:
            raise self.wrong(f"an array of shape {shape} and dtype {name} should take {needed} bytes and does not")
        return _Array(tuple(shape), _DTYPES[name], (span,))


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"} | {
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_SIZED = {
    0xC4: ("bytes", ">B"),
    0xC5: ("bytes", ">H"),
    0xC6: ("bytes", ">I"),
    0xC7: ("ext", ">B"),
    0xC8: ("ext", ">H"),
    0xC9: ("ext", ">I"),
    0xD9: ("text", ">B"),
    0xDA: ("text", ">H"),
    0xDB: ("text", ">I"),
    0xDC: ("array", ">H"),
    0xDD: ("array", ">I"),
    0xDE: ("map", ">H"),
    0xDF: ("map", ">I"),
}


def _write_value(file: BinaryIO, value: Any) -> None:
    if isinstance(value, Tensor):
        _write_array(file, value)
        return
    file.write(b"\xdf" + struct.pack(">I", len(value)))
    for key, inner in value.items():
        text = key.encode()
        file.write(b"\xd9" + struct.pack(">B", len(text)) + text)
        _write_value(file, inner)


def _write_array(file: BinaryIO, tensor: Tensor) -> None:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    name = _NAMES[tensor.dtype].encode()
    sizes = b"".join(b"\xce" + struct.pack(">I", size) for size in tensor.shape)
    head = b"\x93" + bytes([0x90 | tensor.ndim]) + sizes + b"\xc4" + struct.pack(">B", len(name)) + name
    head += b"\xc6" + struct.pack(">I", raw.nbytes)
    file.write(b"\xc9" + struct.pack(">Ib", len(head) + raw.nbytes, _NDARRAY) + head)
    file.write(raw.data)
