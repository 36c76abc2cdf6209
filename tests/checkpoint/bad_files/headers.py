"""Safetensors files that are cut short, or whose headers lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from checkpoint_files import kl, raw_safetensors, save, state_of

from vae_core.errors import CheckpointError, UnknownModelError

from .registry import bad


def entry(shape: Any, begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@bad(CheckpointError, "is empty (0 bytes)")
def empty(folder: Path) -> Path:
    (folder / "a.safetensors").touch()
    return folder / "a.safetensors"


@bad(CheckpointError, "is cut short: 3 bytes")
def shorter_than_a_header(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(b"\x10\x00\x00")
    return folder / "a.safetensors"


@bad(CheckpointError, "is cut short: its header should take")
def header_cut_short(folder: Path) -> Path:
    path = save(folder / "a.safetensors", state_of(kl(32, 64)))
    path.write_bytes(path.read_bytes()[:300])
    return path


@bad(CheckpointError, "announces a header of")
def header_longer_than_the_format_allows(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 40)
    return folder / "a.safetensors"


@bad(CheckpointError, "is cut short: its tensors take")
def data_cut_short(folder: Path) -> Path:
    path = save(folder / "a.safetensors", state_of(kl(32, 64)))
    path.write_bytes(path.read_bytes()[:-100])
    return path


@bad(CheckpointError, "bytes after its last tensor")
def data_too_long(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2], 0, 8)}, bytes(12))


@bad(CheckpointError, "is not valid JSON")
def header_is_no_json(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", b'{"a": ')


@bad(CheckpointError, "is not valid JSON")
def header_is_no_utf8(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", b'{"\xff": 1}')


@bad(CheckpointError, "is not valid JSON")
def header_nests_without_end(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", b'{"a":' * 200_000)


@bad(CheckpointError, "names `a` twice")
def duplicate_keys(folder: Path) -> Path:
    one = json.dumps(entry([1], 0, 4))
    return raw_safetensors(folder / "a.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4))


@bad(CheckpointError, "unknown dtype 'F31'")
def unknown_dtype(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([1], 0, 4, "F31")}, bytes(4))


@bad(CheckpointError, "takes 16 bytes, and its data_offsets hold 8")
def shape_that_lies(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2, 2], 0, 8)}, bytes(8))


@bad(CheckpointError, "takes 4000000000000 bytes")
def shape_that_is_huge(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([10**6, 10**6], 0, 8)}, bytes(8))


@bad(CheckpointError, "not a list of sizes")
def negative_shape(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([-2, -1], 0, 8)}, bytes(8))


@bad(CheckpointError, "not [begin, end]")
def negative_offsets(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2], -8, 0)}, bytes(8))


@bad(CheckpointError, "not [begin, end]")
def reversed_offsets(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2], 8, 0)}, bytes(8))


@bad(CheckpointError, "`b` overlaps the tensor before it at byte 4")
def overlapping_tensors(folder: Path) -> Path:
    header = {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}
    return raw_safetensors(folder / "a.safetensors", header, bytes(12))


@bad(CheckpointError, "a gap of 4 bytes before `b`")
def gap_in_the_data(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))


@bad(CheckpointError, "lacks one of dtype, shape, data_offsets")
def entry_without_a_shape(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4))


@bad(CheckpointError, "`__metadata__`")
def metadata_that_is_no_text(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"__metadata__": {"format": 1}, "a": entry([1], 0, 4)}, bytes(4))


@bad(UnknownModelError, "it holds no tensors")
def no_tensors(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {})
