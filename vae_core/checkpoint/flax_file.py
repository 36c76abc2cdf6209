"""Flax: `diffusion_flax_model.msgpack`, read and written with the package `msgpack`, without jax or flax.

The file is one msgpack value: nested maps of text -> map | array. An array is an extension value of type 1 whose
payload is again msgpack: (shape, dtype name, raw C-order little-endian bytes); type 3, a scalar, has the same payload;
type 2 is a complex number. Arrays of more than 2**30 bytes are a map with `__msgpack_chunked_array__`, `shape` and
`chunks`, the latter two maps keyed "0", "1", ... Source: flax/serialization.py.

Such a file has no header: to see the shapes, all of it is read, one array in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError, MissingPackageError
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
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
# msgpack makes room for as many items as a list or map announces, before it sees one.
_MAX_LIST, _MAX_MAP = 64, 1 << 16


def read_flax(path: Path) -> Source:
    """Names (joined by dots, as Flax spells them) and shapes of the arrays in `path`.

    Raises CheckpointError, or MissingPackageError without msgpack.
    """
    leaves = _load(path, "meta")
    tensors = {key: Stored(tuple(leaf.shape), leaf.dtype) for key, leaf in leaves.items() if isinstance(leaf, Tensor)}
    others = {key: type(leaf).__name__ for key, leaf in leaves.items() if not isinstance(leaf, Tensor)}
    return Source(path, "Flax msgpack", tensors, partial(_opened, path), others=others)


def write_flax(file: BinaryIO, state: Mapping[str, Tensor]) -> None:
    """Writes arrays under dotted Flax names as nested maps, one array in memory at a time."""
    tree: dict[str, Any] = {}
    for key, tensor in state.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = tensor
    msgpack = _msgpack("writing")

    def array(tensor: Tensor) -> Any:
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        name = str(tensor.dtype).removeprefix("torch.")
        return msgpack.ExtType(_NDARRAY, msgpack.packb((tuple(tensor.shape), name, raw)))

    _write(file, msgpack.Packer(default=array), tree)


def _msgpack(doing: str) -> Any:
    try:
        import msgpack
    except ImportError:
        raise MissingPackageError(
            f'{doing} Flax weights needs the package msgpack: pip install "exact-vae[flax]"'
        ) from None
    return msgpack


@contextmanager
def _opened(path: Path) -> Iterator[Read]:
    try:
        leaves = _load(path, "cpu")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); it may have changed since it was opened") from error
    yield leaves.__getitem__


def _load(path: Path, device: str) -> dict[str, Any]:
    """Every leaf of the file's maps under its dotted name; arrays as tensors on `device`."""
    msgpack = _msgpack("reading")
    size = path.stat().st_size
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(
            file,
            max_buffer_size=size,  # nothing in the file is longer
            max_array_len=_MAX_LIST,
            max_map_len=_MAX_MAP,
            object_pairs_hook=_flat,
            ext_hook=partial(_extension, msgpack.unpackb, device),
        )
        leaves, fault = _unpacked(msgpack, unpacker, size)
    if fault:
        raise CheckpointError(
            f"{path}: is no Flax msgpack file, or is damaged: {fault} (byte {unpacker.tell()}); download it again"
        )
    if not isinstance(leaves, dict):
        raise CheckpointError(f"{path}: is no Flax state: its msgpack holds a {type(leaves).__name__} and not a map")
    return leaves


def _unpacked(msgpack: Any, unpacker: Any, size: int) -> tuple[Any, str]:
    """The one value of a file of `size` bytes, and what is wrong with it ("" if nothing)."""
    try:
        value, rest = unpacker.unpack(), size - unpacker.tell()
        return value, f"{rest} bytes follow its end" if rest else ""
    except (msgpack.OutOfData, msgpack.BufferFull):
        return None, "it is cut short"
    except msgpack.StackError:
        return None, "its maps nest more than msgpack follows"
    except msgpack.FormatError:
        return None, "no value begins with its next byte"
    except ValueError as error:
        return None, str(error)


def _flat(pairs: list[tuple[Any, Any]]) -> Any:
    """A map as its leaves, those of inner maps under dotted names; or as the tensor that it holds in chunks."""
    flat: dict[str, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise ValueError(f"the key {name!r} is no text")
        leaves = {f"{name}.{key}": leaf for key, leaf in value.items()} if isinstance(value, dict) else {name: value}
        twice = flat.keys() & leaves.keys()
        if twice:
            raise ValueError(f"the key `{min(twice)}` stands twice")
        flat |= leaves
    return _joined(flat) if _CHUNKED in flat else flat


def _joined(leaves: Mapping[str, Any]) -> Tensor:
    # Flax writes a tuple as a map keyed "0", "1", ...
    shape, chunks = (
        [leaves[f"{field}.{i}"] for i in range(len(leaves)) if f"{field}.{i}" in leaves]
        for field in ("shape", "chunks")
    )
    good = chunks and all(isinstance(chunk, Tensor) and chunk.dtype is chunks[0].dtype for chunk in chunks)
    if not good or not _is_shape(shape) or math.prod(shape) != sum(chunk.numel() for chunk in chunks):
        raise ValueError("a chunked array in it does not add up to its shape")
    return torch.cat([chunk.flatten() for chunk in chunks]).reshape(shape)


def _extension(unpackb: Callable[..., Any], device: str, code: int, payload: bytes) -> Any:
    if code in (_NDARRAY, _SCALAR):
        return _array(unpackb, payload).to(device)
    return 0j if code == _COMPLEX else None


def _array(unpackb: Callable[..., Any], payload: bytes) -> Tensor:
    parts = unpackb(payload, max_array_len=_MAX_LIST)
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError("an array in it is not (shape, dtype, bytes)")
    shape, name, raw = parts
    name = name.decode("latin-1") if isinstance(name, bytes) else str(name)
    if name not in _DTYPES:
        raise ValueError(f"an array in it has the unknown dtype {name!r}")
    if not _is_shape(shape):
        raise ValueError(f"an array in it has the shape {shape!r}")
    dtype, needed = _DTYPES[name], math.prod(shape) * _DTYPES[name].itemsize
    if not isinstance(raw, bytes) or len(raw) != needed:
        raise ValueError(f"an array of shape {shape} and dtype {name} should take {needed} bytes and does not")
    values = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return values.reshape(shape)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _write(file: BinaryIO, packer: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        file.write(packer.pack(value))
        return
    file.write(packer.pack_map_header(len(value)))
    for name, inner in value.items():
        file.write(packer.pack(name))
        _write(file, packer, inner)
