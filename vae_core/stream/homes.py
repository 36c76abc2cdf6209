"""Where the Fields of a run are put: on the device, in host memory, or in temporary files that no crash leaves behind."""

from __future__ import annotations

import os
import re
import tempfile
from functools import lru_cache
from itertools import count
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..nets.layouts import stored
from ..nets.memory import Spares
from ..nets.passes import Shape
from ..schedule import Home

SCRATCH_VARIABLE = "EXACT_VAE_SCRATCH"
"""Environment variable that names the folder of temporary files."""

NAME = re.compile(r"exact-vae-(\d+)-\d+\.field")

_numbers = count()


class Homes:
    """Memory for the Fields of one run on `device`: contiguous, or with the channels `innermost`."""

    def __init__(self, device: torch.device, innermost: bool = False):
        self.device, self.innermost = device, innermost
        self.scratch: Scratch | None = None
        self.spares = Spares()
        """The memory of Fields that no one reads any more."""

    def empty(self, shape: Shape, dtype: torch.dtype, home: Home, tokens: bool = False) -> Tensor:
        """An unwritten Field `b c …`; with `tokens` its channels lie innermost in any case, so that `b n c` is a view of it.

        Raises OSError if the disk is full.
        """
        if home == "disk" and self.scratch is None:
            self.scratch = Scratch()
        innermost = tokens or self.innermost
        lies = stored(shape) if innermost else shape
        if home == "disk":
            assert self.scratch is not None
            data = self.scratch.empty(prod(lies), dtype).view(lies)
        elif home == "host" or self.device.type == "cpu":
            self.spares.keep_only([prod(lies) * dtype.itemsize])
            data = self.spares.empty(lies, dtype)
        else:
            data = torch.empty(lies, dtype=dtype, device=self.device)
        self.spares.keep_only()
        return data.movedim(-1, 1) if innermost else data

    def recycle(self, field: Tensor) -> None:
        """The host memory of a Field that no one reads any more, for the next one, if that is as large."""
        if field.device.type == "cpu":
            self.spares.add(field)

    def beyond(self, home: Home) -> Home | None:
        """The next place farther away; None behind the last. The CPU's own memory is the host's."""
        if home == "device" and self.device.type != "cpu":
            return "host"
        return None if home == "disk" else "disk"


class Scratch:
    """Memory-mapped temporary files, one for each Field.

    A file loses its name as soon as it is mapped, and the system takes its space back when the mapping goes, however the process
    ends. Windows cannot do that: there, and where a process was killed between the two steps, the next run removes what is left.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = scratch_folder() if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)

    def empty(self, elements: int, dtype: torch.dtype) -> Tensor:
        """An unwritten flat tensor in a file. Raises OSError if the disk is full."""
        path = self.folder / f"exact-vae-{os.getpid()}-{next(_numbers)}.field"
        try:
            with path.open("xb") as file:
                _reserve(file.fileno(), elements * dtype.itemsize)
            return torch.from_file(str(path), shared=True, size=elements, dtype=dtype)
        finally:
            _remove(path)


def _reserve(file: int, size: int) -> None:
    """Take the space now: writing to a mapped hole on a full disk would end the process with a signal."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def scratch_folder() -> Path:
    """EXACT_VAE_SCRATCH, else the system's temporary folder, or where that is itself in memory the user's cache."""
    chosen = os.environ.get(SCRATCH_VARIABLE)
    if chosen:
        return Path(chosen)
    usual = Path(tempfile.gettempdir())
    return Path.home() / ".cache" / "exact-vae" if _in_memory(usual) else usual


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the files of processes that are gone, and return them."""
    left = [path for path in folder.iterdir() if (match := NAME.fullmatch(path.name)) and not _alive(int(match[1]))]
    return [path for path in left if _remove(path)]


def _alive(process: int) -> bool:
    """Whether another process of this number runs. Windows refuses to delete a file in use, so that there no one need ask."""
    if process == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


@lru_cache(maxsize=8)
def _in_memory(folder: Path) -> bool:
    """Whether a folder lies in a file system that is itself memory, as far as Linux tells."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    under = [(place, kind) for place, kind in mounts if folder.resolve().is_relative_to(place)]
    return bool(under) and max(under, key=lambda mount: len(mount[0]))[1] in ("tmpfs", "ramfs")
