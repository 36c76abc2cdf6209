"""Predicted against measured peaks, under fake CUDA: `python -m benchmarks.memory` writes benchmarks/results/memory.csv.

Every network, dtype, direction and size is planned for budgets from the least that is feasible to plenty, and run on fake
tensors under the meter. The run computes one tile of each kind per pass, since tiles of one kind allocate alike. Bytes are
those of tensors; what cuDNN and the allocator take besides is not among them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vae_core.execution import Direction, Execution, Half, How, Planners
from vae_core.models import CLASSES
from vae_core.nets.trace import trace
from vae_core.plan import COSTS, Budget, Case, Plan, Planner, tiles_text
from vae_core.spec import VARIANTS, Spec

from .fake_cuda import FakeCudaMeter, fake_cuda, on_fake_cuda, one_tile_of_each_kind

NAMES = ("sdxl", "sd1", "flux1", "x4-upscaler")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIDES = (512, 1024, 2048, 4096, 8192)
BUDGETS = 8
PLENTY = 1 << 60
DEVICE = torch.device("cuda:0")
RESULTS = Path(__file__).parent / "results" / "memory.csv"
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One run. Bytes are peaks, in MiB; those of the device include the weights."""

    variant: str
    direction: str
    dtype: str
    width: int
    height: int
    budget_mib: float
    rung: str
    tiles: str
    device_predicted_mib: float
    device_measured_mib: float
    device_ratio: float
    host_predicted_mib: float
    host_measured_mib: float
    host_ratio: float
    weights_mib: float
    operations_to_whole: float
    moved_mib: float
    waits_for_device: int


class FullSize:
    """One full-size network on fake CUDA. To be made and used inside `fake_cuda`."""

    def __init__(self, name: str, dtype: str, meta: Any) -> None:
        self.name, self.dtype_name, self.dtype = name, dtype, DTYPES[dtype]
        self.net: Any = on_fake_cuda(meta, self.dtype)
        self.spec = Spec.of(VARIANTS[name], self.net.config)
        self.weight_bytes = sum(p.numel() * p.element_size() for p in self.net.parameters())


class Subject(FullSize):
    """One that decodes and encodes pictures."""

    def rows(self, direction: Direction, width: int, height: int, budgets: int = BUDGETS) -> Iterator[Row]:
        """Runs at budgets from the least feasible one to plenty, spaced evenly in ratio."""
        forward = self.net.decode_field if direction == "decode" else self.net.encode_field
        half = Half(direction, forward, self.net, DEVICE, self.dtype, may_overflow=False)
        channels = self.net.config.latent_channels if direction == "decode" else 3
        sizes = (height // self.spec.scale.h, width // self.spec.scale.w) if direction == "decode" else (height, width)
        shape = (1, channels, *sizes)
        traced = trace(forward, shape)
        case = Case(traced, 1, self.dtype.itemsize, self.weight_bytes, COSTS["cuda"], True, "host", self.dtype.itemsize)
        planner = Planner(case)
        most, least = planner.plan(None).device_bytes, least_device_bytes(planner)
        for i in range(budgets):
            budget = int(least * (most / least) ** (i / (budgets - 1))) + 1 if budgets > 1 else least
            plan = planner.plan(Budget(budget, PLENTY))
            device, host, waits = self._measured(half, plan, shape)
            yield Row(
                self.name,
                direction,
                self.dtype_name,
                width,
                height,
                round(budget / MIB, 1),
                plan.rung,
                tiles_text(plan.tile),
                round(plan.device_bytes / MIB, 1),
                round(device / MIB, 1),
                plan.device_bytes / device,
                round(plan.host_bytes / MIB, 1),
                round(host / MIB, 1),
                plan.host_bytes / host,
                round(self.weight_bytes / MIB, 1),
                plan.operations / traced.operations,
                round(plan.chosen.moved_bytes / MIB, 1),
                waits,
            )

    def _measured(self, half: Half, plan: Plan, shape: Sequence[int]) -> tuple[int, int, int]:
        """Peak bytes on device and host, and how often Python waited for the device."""
        x = torch.empty(shape, dtype=self.dtype)
        execution = Execution(half, How(), Planners(), shape, "host", self.dtype)
        with one_tile_of_each_kind(), FakeCudaMeter(self.net) as meter:
            meter.see(x)
            execution.carried_out(plan, x)
        return meter.peak["cuda"] + self.weight_bytes, meter.peak["cpu"], meter.waits


def least_device_bytes(planner: Planner) -> int:
    """The smallest device memory that some plan fits, with room for every Field in host memory."""
    return min(rung.device_bytes for rung in planner.rungs(Budget(0, PLENTY)))


def meta_net(name: str) -> Any:
    """A full-size network without data."""
    with torch.device("meta"):
        return CLASSES[VARIANTS[name].network](**VARIANTS[name].config)


def shown(row: Any) -> dict[str, Any]:
    """A row for the table, ratios to four digits."""
    return {k: f"{v:.4f}" if "ratio" in k or "_to_" in k else v for k, v in asdict(row).items()}


def main() -> None:
    """The whole table, or the part that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="in pixels")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*Row.__dataclass_fields__])
        writer.writeheader()
        for name in options.names:
            for dtype in options.dtypes:
                meta = meta_net(name)
                with fake_cuda():
                    subject = Subject(name, dtype, meta)
                    for direction in ("decode", "encode"):
                        for side in options.sides:
                            for width, height in ((side, side), (side * 2, side // 2)):
                                for row in subject.rows(direction, width, height):
                                    writer.writerow(shown(row))
                                file.flush()
                        print(name, dtype, direction, flush=True)


if __name__ == "__main__":
    main()
