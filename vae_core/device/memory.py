"""How much memory there is, how much is free, and how to tell that it ran out."""

from __future__ import annotations

import errno
import gc
import os
import re
import shutil
import time
from pathlib import Path

import torch

from ..errors import InputError
from ..schedule import Home

UNITS = {"": 1, "b": 1, "k": 2**10, "kb": 10**3, "kib": 2**10, "m": 2**20, "mb": 10**6, "mib": 2**20}
UNITS |= {"g": 2**30, "gb": 10**9, "gib": 2**30, "t": 2**40, "tb": 10**12, "tib": 2**40}


def parse_bytes(value: int | str) -> int:
    """A number of bytes, or text such as "2GiB", "1.5 GB" or "800M". Raises InputError."""
    if isinstance(value, int):
        count = value
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower()) if isinstance(value, str) else None
        if match is None or match[2] not in UNITS:
            raise InputError(
                f'memory limit {value!r} is not understood; write bytes, a size such as "2GiB" or "800MiB", or a share: "50%"'
            )
        count = int(float(match[1]) * UNITS[match[2]])
    if count <= 0:
        raise InputError(f"memory limit {value!r} must be more than zero")
    return count


def parse_limit(value: int | str, total: int) -> int:
    """A memory limit in bytes: a number, text as `parse_bytes` takes it, or a share of `total` such as "50%". Raises InputError."""
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    if share is None:
        return parse_bytes(value)
    if not 0 < float(share[1]) <= 100:
        raise InputError(f"memory limit {value!r} must be more than 0% and no more than 100%")
    return int(total * float(share[1]) / 100)


def default_device() -> torch.device:
    """CUDA if torch can use it, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> int:
    """Bytes that a run may take: on CUDA the driver's free ones and what torch holds unused; on the CPU what is available."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_bytes()


def total_bytes(device: torch.device) -> int:
    """All of a device's memory; of the host's, what the control group of this process allows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = (_read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min([_physical(), *(int(text) for text in limits if text is not None and text.strip().isdigit())])


def disk_bytes(folder: Path) -> int:
    """Free bytes of the file system that holds `folder`, or will hold it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def ran_out_of(error: BaseException, device: torch.device) -> Home | None:
    """Which memory an error says has run out; None for an error that says something else.

    CUDA's caching allocator has an error class of its own; the driver, cuBLAS and the CPU's allocator raise a RuntimeError that
    only its text tells apart.
    """
    text = str(error)
    if isinstance(error, OSError):
        return "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "device" if device.type == "cpu" else "host"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "device"
    if isinstance(error, RuntimeError) and (
        "CUDA error: out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text
    ):
        return "device"
    return None


def release(device: torch.device) -> None:
    """Give back what a failed attempt held: tensors caught in reference cycles, and what torch keeps for later use."""
    gc.collect()
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()


LOOKS_APART_S = 0.01
"""Between two looks at the host's memory."""


class MeasuredPeak:
    """The most bytes held from now until `read`: on CUDA what torch allocated, on Linux what the process's own pages grew by.

    On the CPU the pages are looked at when `sample` is called and they were not a moment before, so a peak in between is missed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.on_cuda = device.type == "cuda" and torch.cuda.is_available()
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        self.start = self.most = _own_pages()
        self.looked = time.perf_counter()

    def sample(self) -> None:
        """Look at the host's memory, unless that was done a moment ago: a small tile takes less time than a look."""
        if time.perf_counter() - self.looked >= LOOKS_APART_S:
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, _own_pages())
        self.looked = time.perf_counter()

    def read(self) -> tuple[int | None, int | None]:
        """Bytes on the device, weights included, and growth in host memory; None where nothing can be measured."""
        self._look()
        grown = self.most - self.start if self.most else None
        return (torch.cuda.max_memory_allocated(self.device) if self.on_cuda else None), grown


def _own_pages() -> int:
    """Resident bytes of this process that no file backs; 0 where the system does not tell."""
    fields = (_read("/proc/self/statm") or "").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 2 else 0


def host_bytes() -> int:
    """Available host memory, no more than the control group of this process allows."""
    return min(n for n in (_available(), _cgroup_v2(), _cgroup_v1()) if n is not None)


def _available() -> int:
    meminfo = _read("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo or "")
    if match:
        return int(match[1]) * 1024
    if _has_sysconf():
        return _physical() // 2  # macOS does not tell what is available; half leaves room for the rest of the system
    return _windows_status()[1]


def _physical() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if _has_sysconf() else _windows_status()[0]


def _has_sysconf() -> bool:
    return hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names


def _windows_status() -> tuple[int, int]:
    """Bytes of memory in all, and available."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)]
        _fields_ += [(name, ctypes.c_ulonglong) for name in ("total", "available", *"abcde")]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.total), int(status.available)


def _cgroup_v2() -> int | None:
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    return _room(limit, used)


def _cgroup_v1() -> int | None:
    folder = "/sys/fs/cgroup/memory/memory"
    return _room(_read(f"{folder}.limit_in_bytes"), _read(f"{folder}.usage_in_bytes"))


def _room(limit: str | None, used: str | None) -> int | None:
    if limit is None or used is None or not limit.strip().isdigit():
        return None
    return max(int(limit) - int(used), 0)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None
