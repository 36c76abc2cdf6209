"""`.pt`, `.pth`, `.ckpt`, `.bin`: torch's pickles, by `torch.load(weights_only=True)` alone: no code of a file runs.

The header pass loads onto the meta device (of a zip archive, that reads the pickle and no storage); later the tensors
are memory-mapped. Old archives (before torch 1.6) are no zip files and cannot be mapped.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .source import Read, Source, Stored

_WRAPPERS = ("state_dict", "model", "module", "model_state_dict")


class _Inert:
    """Takes the place of a harmless bookkeeping object of a training run; holds nothing, does nothing."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _inert(full_name: str) -> type:
    # torch finds an allowed class by its __module__ and __name__, in every version that knows `safe_globals`.
    module, _, name = full_name.rpartition(".")
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


# What pytorch-lightning left beside the state dict in the checkpoints of SD 1.x (sd-v1-4.ckpt and its fine-tunes).
_BOOKKEEPING = [
    _inert(name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.utilities.types._Metadata",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.dtypes.Float64DType",
    )
]


def read_pickled(path: Path) -> Source:
    """Names and shapes in the archive, with nesting unwrapped. Raises CheckpointError."""
    outer = _load(path, "meta")
    state, nesting = _unwrap(path, outer)
    tensors = {key: Stored(tuple(value.shape), value.dtype) for key, value in state.items() if _plain(value)}
    others = {key: type(value).__name__ for key, value in state.items() if not _plain(value)}
    metadata = {key: value for key, value in outer.items() if isinstance(value, str)} if nesting else {}
    return Source(path, "torch pickle", tensors, partial(_opened, path, nesting), metadata, others, nesting)


@contextmanager
def _opened(path: Path, nesting: tuple[str, ...]) -> Iterator[Read]:
    state = _load(path, "cpu")
    for key in nesting:
        state = state[key]
    yield lambda key: state[key].detach()


def _load(path: Path, device: str) -> Any:
    allowing = getattr(torch.serialization, "safe_globals", nullcontext)  # since torch 2.5
    try:
        with allowing(_BOOKKEEPING):
            return _torch_load(path, device)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, error)) from None
    except Exception as error:  # a malformed pickle can raise anything at all
        raise CheckpointError(_damage(path, error)) from None


def _torch_load(path: Path, device: str) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        # torch goes by the extension of a path, so a misnamed archive is handed over open; only a path can be mapped.
        mapped = zipped and path.suffix.lower() not in (".safetensors", ".sft")
        return torch.load(path if mapped else file, map_location=device, weights_only=True, mmap=mapped)


def _refusal(path: Path, error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused is None:
        return _damage(path, error)
    return (
        f"{path}: holds Python code or objects (`{refused.group(1)}`) and not tensors alone; nothing of it was run; "
        "get it as .safetensors, or save its state dict alone"
    )


def _damage(path: Path, error: Exception) -> str:
    lines = str(error).splitlines()
    reason = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return f"{path}: is no torch archive of tensors, or is damaged or cut short ({reason}); download it again"


def _unwrap(path: Path, value: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    nesting: tuple[str, ...] = ()
    while isinstance(value, Mapping):
        inner = _inner_key(value)
        if inner is None:
            break
        nesting, value = (*nesting, inner), value[inner]
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        kind = type(value).__name__
        raise CheckpointError(f"{path}: holds a {kind}, where a state dict (names -> tensors) is expected")
    return value, nesting


def _inner_key(value: Mapping[Any, Any]) -> str | None:
    named = [key for key in _WRAPPERS if isinstance(value.get(key), Mapping)]
    if named:
        return named[0]
    only = next(iter(value)) if len(value) == 1 else None
    return only if isinstance(only, str) and isinstance(value[only], Mapping) else None


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
