"""Opens one file of tensors, whatever its container. The content decides; a misleading extension does no harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, UnknownModelError
from .flax_file import read_flax
from .pickled_file import read_pickled
from .safetensors_file import looks_like_safetensors, read_safetensors
from .source import Source

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
FLAX_SUFFIXES = (".msgpack",)
SUFFIXES = SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES + FLAX_SUFFIXES

_WEB_PAGE = "is a web page and not weights: the download saved a page; use the file's direct link"
# First bytes of files that are often found where weights are expected, and what to do about each.
_NOT_WEIGHTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the weights: run `git lfs pull`, or download the file"),
    (b"<!doctype", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"\x89hdf", "is an HDF5 (Keras) file, which is not read; use a .safetensors file of the same weights"),
    (b"{", "is a JSON text and not weights: name the weights file, or the folder that holds both"),
)


def read_source(path: Path) -> Source:
    """The header of `path`.

    Reads .safetensors, torch pickles (.pt, .pth, .ckpt, .bin) and Flax .msgpack. Raises CheckpointError where the file
    is damaged or no file of tensors, UnknownModelError for GGUF.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
        if not head:
            raise CheckpointError(f"{path}: is empty (0 bytes); download it again")
        if not looks_like_safetensors(head):  # whose header may be 123 bytes long, and 123 is the code of `{`
            _refuse_known_others(path, head)
        return _reader(path, head)(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _refuse_known_others(path: Path, head: bytes) -> None:
    if head.startswith(b"GGUF"):
        raise UnknownModelError(
            f"{path}: looks like a GGUF file, whose quantised tensors this version does not load; "
            "use the VAE's .safetensors file"
        )
    text = head.lower().lstrip()
    for start, sentence in _NOT_WEIGHTS:
        if text.startswith(start):
            raise CheckpointError(f"{path}: {sentence}")


def _reader(path: Path, head: bytes) -> Callable[[Path], Source]:
    suffix = path.suffix.lower()
    if suffix in FLAX_SUFFIXES:
        return read_flax
    if looks_like_safetensors(head):
        return read_safetensors
    if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and 2 <= head[1] <= 5):  # zip, or a pickle's protocol
        return read_pickled
    if suffix in SAFETENSORS_SUFFIXES:
        return read_safetensors  # it will say what is wrong
    if suffix in PICKLE_SUFFIXES:
        return read_pickled
    raise CheckpointError(f"{path}: is no kind of file that holds a VAE here; expected one of {', '.join(SUFFIXES)}")
