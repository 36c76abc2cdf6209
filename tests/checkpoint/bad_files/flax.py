"""Flax files that are cut short, lie about their arrays, or hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
from checkpoint_files import flax_names, kl, state_of

from vae_core.errors import CheckpointError

from .registry import bad


def array(shape: Any, dtype: Any, raw: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, raw)))


def flax_file(folder: Path, content: Any) -> Path:
    (folder / "diffusion_flax_model.msgpack").write_bytes(msgpack.packb(content) or b"")
    return folder / "diffusion_flax_model.msgpack"


@bad(CheckpointError, "is cut short")
def flax_cut_short(folder: Path) -> Path:
    flat = {
        key: array(list(t.shape), "float32", t.numpy().tobytes()) for key, t in flax_names(state_of(kl(32, 64))).items()
    }
    path = flax_file(folder, flat)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@bad(CheckpointError, "should take 32 bytes and does not")
def flax_shape_that_lies(folder: Path) -> Path:
    return flax_file(folder, {"a": array([2, 4], "float32", bytes(8))})


@bad(CheckpointError, "unknown dtype 'float8'")
def flax_unknown_dtype(folder: Path) -> Path:
    return flax_file(folder, {"a": array([2], "float8", bytes(2))})


@bad(CheckpointError, "has the shape [-1, -8]")
def flax_negative_shape(folder: Path) -> Path:
    return flax_file(folder, {"a": array([-1, -8], "float32", bytes(32))})


@bad(CheckpointError, "is not (shape, dtype, bytes)")
def flax_array_that_is_none(folder: Path) -> Path:
    return flax_file(folder, {"a": msgpack.ExtType(1, msgpack.packb(7))})


@bad(CheckpointError, "does not add up to its shape")
def flax_chunks_that_lie(folder: Path) -> Path:
    chunks = {"0": array([2], "float32", bytes(8))}
    return flax_file(folder, {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": chunks}})


@bad(CheckpointError, "nest more than")
def flax_that_nests_without_end(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a" * 5000 + b"\xc0")
    return folder / "a.msgpack"


@bad(CheckpointError, "bytes follow its end")
def flax_with_a_tail(folder: Path) -> Path:
    path = flax_file(folder, {"a": array([1], "float32", bytes(4))})
    path.write_bytes(path.read_bytes() + b"\x00\x00")
    return path


@bad(CheckpointError, "holds a list and not a map")
def flax_that_is_a_list(folder: Path) -> Path:
    return flax_file(folder, [1, 2])


@bad(CheckpointError, "no value begins with its next byte")
def flax_that_is_no_msgpack(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a\xc1")
    return folder / "a.msgpack"


@bad(CheckpointError, "stands twice")
def flax_with_a_key_twice(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x82\xa1a\x01\xa1a\x01")
    return folder / "a.msgpack"


@bad(CheckpointError, "the key b'a' is no text")
def flax_with_a_key_of_bytes(folder: Path) -> Path:
    return flax_file(folder, {b"a": 1})


@bad(CheckpointError, "is not allowed for map key")
def flax_with_a_number_for_a_key(folder: Path) -> Path:
    return flax_file(folder, {1: 1})


@bad(CheckpointError, "exceeds max_ext_len(100)")
def flax_length_that_lies(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + bytes(91))
    return folder / "a.msgpack"


@bad(CheckpointError, "1000000 exceeds max_array_len(64)")
def flax_list_that_lies(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a\xdd\x00\x0f\x42\x40" + bytes(91))
    return folder / "a.msgpack"


@bad(CheckpointError, "1000000 exceeds max_map_len(65536)")
def flax_map_that_lies(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\xdf\x00\x0f\x42\x40" + bytes(91))
    return folder / "a.msgpack"


@bad(CheckpointError, "has the shape [0, 9223372036854775808]")
def flax_size_beyond_any_machine(folder: Path) -> Path:
    return flax_file(folder, {"a": array([0, 1 << 63], "float32", b"")})


@bad(CheckpointError, "`encoder.scale` is a complex")
def flax_complex_number(folder: Path) -> Path:
    return flax_file(folder, {"encoder": {"scale": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}})
