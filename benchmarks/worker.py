"""One side of a comparison in a process of its own: `run` on standard input runs its case once, and a line of JSON answers.

So each side has its memory, its threads and its caches to itself, and sides can be run in turn.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import sides
from .cases import Case
from .operations import operations_counter


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    dtype = None if asked["dtype"] == sides.DEFAULT else getattr(torch, asked["dtype"])
    worker = Worker(asked["side"], dtype, torch.device(asked["device"]))
    for line in sys.stdin:
        with torch.inference_mode():
            print(json.dumps(getattr(worker, line.split()[0])(*json.loads(line.partition(" ")[2] or "[]"))), flush=True)


class Worker:
    """What a line asks for: the name of a method, and its arguments as a list in JSON. Each answers with a dictionary."""

    def __init__(self, side: str, dtype: torch.dtype | None, device: torch.device) -> None:
        self.side, self.dtype, self.device = side, dtype, device
        self.ready: Any = None
        self.x: Any = None

    def build(self, case: dict[str, Any]) -> dict[str, Any]:
        """Make ready for a case, and let go of the one before. With one run where kernels are loaded or made, which takes long."""
        self.ready = self.x = None
        torch.cuda.empty_cache()
        with torch.inference_mode(False):
            ready = sides.build(self.side, Case(**case), self.dtype, self.device)
        noise = torch.randn(ready.shape, generator=torch.Generator().manual_seed(1)).clamp_(-1, 1)
        self.ready, self.x = ready, noise.to(self.device, self.dtype)
        if self.device.type == "cuda" or self.side == sides.COMPILED:
            with contextlib.suppress(torch.OutOfMemoryError):
                ready.run(self.x)
        return {}

    def count(self) -> dict[str, Any]:
        return {"operations": _operations(self.ready.run, self.x)}

    def run(self) -> dict[str, Any]:
        return _timed(self.ready.run, self.x, self.device)

    def error(self) -> dict[str, Any]:
        return {"error": _largest_difference(self.ready, self.x)}

    def about(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "dtype": str(self.ready.dtype).removeprefix("torch.")}


def _timed(run: sides.Run, x: torch.Tensor, device: torch.device) -> dict[str, float]:
    """One run. On CUDA after another that wakes its clock and takes its memory, which is given back for the other sides."""
    on_cuda = device.type == "cuda"
    try:
        if on_cuda:
            run(x)
            torch.cuda.synchronize(device)
        peak = Peak(device)
        start = time.perf_counter()
        run(x)
        if on_cuda:
            torch.cuda.synchronize(device)
        return {"seconds": time.perf_counter() - start, "peak_bytes": peak.read()}
    except torch.OutOfMemoryError:
        return {"seconds": math.inf, "peak_bytes": 0}
    finally:
        if on_cuda:
            torch.cuda.empty_cache()


def _operations(run: sides.Run, x: torch.Tensor) -> int:
    with operations_counter() as counter, contextlib.suppress(torch.OutOfMemoryError):
        run(x)
    return counter.get_total_flops()


class Peak:
    """Memory that a run takes beside what was there: on CUDA what torch allocates, else resident pages, which Linux tells."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.status = device, Path("/proc/self/status")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif self.status.exists():
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the high-water mark
            self.before = self._field("VmRSS")

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return self._field("VmHWM") - self.before if self.status.exists() else 0

    def _field(self, name: str) -> int:
        line = next(line for line in self.status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


def _largest_difference(ready: sides.Ready, x: torch.Tensor) -> float:
    try:
        return float((ready.run(x).float() - ready.plain(x).float()).abs().max())
    except torch.OutOfMemoryError:
        return math.nan


def command(side: str, dtype: str, device: str, threads: int) -> str:
    """The argument that this module takes."""
    return json.dumps({"side": side, "dtype": dtype, "device": device, "threads": threads})


if __name__ == "__main__":
    main()
