"""Devices: how much memory is free, which dtype to use. The only module that uses torch.cuda."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from .errors import InputError

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
                f'memory limit {value!r} is not understood; write bytes or a size such as "2GiB" or "800MiB"'
            )
        count = int(float(match[1]) * UNITS[match[2]])
    if count <= 0:
        raise InputError(f"memory limit {value!r} must be more than zero")
    return count


def default_device() -> torch.device:
    """CUDA if torch can use it, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device) -> int:
    """Bytes that a run may take: on CUDA the driver's free ones and what torch holds unused; on the CPU what is available."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_bytes()


def host_bytes() -> int:
    """Available host memory, no more than the control group of this process allows."""
    return min(n for n in (_available(), _cgroup_v2(), _cgroup_v1()) if n is not None)


def _available() -> int:
    meminfo = _read("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo or "")
    if match:
        return int(match[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        # macOS does not tell what is available; half of what there is leaves room for the rest of the system.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _available_on_windows()


def _available_on_windows() -> int:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)]
        _fields_ += [(name, ctypes.c_ulonglong) for name in ("total", "available", *"abcde")]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.available)


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
