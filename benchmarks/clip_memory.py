"""Predicted against measured peaks of clips, under fake CUDA: `python -m benchmarks.clip_memory` writes results/clip_memory.csv.

Full-size video networks decode and encode clips of several chunks within device memories from the least that is feasible to plenty.
As in benchmarks.memory, one tile of each kind is computed in each pass, and bytes are those of tensors.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vae_core.clip_run import ClipRun
from vae_core.clips import ClipCodec, cut
from vae_core.errors import BudgetError
from vae_core.execution import RESERVE, Direction, Half, How, Planners
from vae_core.plan import tiles_text

from .fake_cuda import FakeCudaMeter, fake_cuda, one_tile_of_each_kind
from .memory import DEVICE, DTYPES, MIB, FullSize, meta_net, shown

NAMES = ("wan21", "cogvideox-5b", "qwen-image")
SIZES = {
    "wan21": ((832, 480), (1280, 720)),
    "cogvideox-5b": ((720, 480), (1360, 768)),
    "qwen-image": ((1328, 1328), (4096, 4096)),
}
"""Width and height in pixels that the models are made for, and of Qwen-Image one that is hard."""

FRAMES = {"wan21": 17, "cogvideox-5b": 25, "qwen-image": 1}
"""Enough for chunks in the middle, with a full causal cache, and memory does not depend on more."""

PLENTY_MIB = 1 << 20
RESULTS = Path(__file__).parent / "results" / "clip_memory.csv"


@dataclass(frozen=True)
class Row:
    """One run. Bytes are peaks, in MiB; those of the device include the weights."""

    variant: str
    direction: str
    dtype: str
    width: int
    height: int
    frames: int
    budget_mib: float
    rung: str
    tiles: str
    caches_away: int
    """Of the causal caches, how many live in host memory."""
    device_predicted_mib: float
    device_measured_mib: float
    device_ratio: float
    host_predicted_mib: float
    host_measured_mib: float
    host_ratio: float
    weights_mib: float
    operations_to_plain: float
    """To those of the same network run whole."""
    moved_mib: float


class Subject(FullSize):
    """One that decodes and encodes clips."""

    def codec(self) -> ClipCodec:
        def half(direction: Direction) -> Half:
            forward = self.net.decode_field if direction == "decode" else self.net.encode_field
            return Half(direction, forward, self.net, DEVICE, self.dtype, may_overflow=False)

        return ClipCodec(self.net, half, Planners())

    def run(self, direction: Direction, width: int, height: int, frames: int, budget_mib: float) -> ClipRun:
        """Raises BudgetError."""
        scale, spec = self.spec.scale, self.spec
        shape: tuple[int, ...] = (1, spec.pixel_channels, frames, height, width)
        if direction == "decode":
            shape = (1, spec.latent_channels, self.net.latents_of(frames), height // scale.h, width // scale.w)
        codec = self.codec()
        clip = codec.clip(direction, shape, "host", self.dtype)
        return codec.run(direction, clip, How(), free=int(budget_mib * MIB / (1 - RESERVE)) + 1)

    def row(self, direction: Direction, width: int, height: int, budget_mib: float) -> Row:
        """Plans and runs. Raises BudgetError, also where this machine's memory would not do: fake tensors have no files."""
        frames = FRAMES[self.name]
        run = self.run(direction, width, height, frames, budget_mib)
        if "disk" in run.homes.values() or run.plan().disk_bytes:
            raise BudgetError("this needs files")
        shape = run.outlook.shape
        x = torch.empty(shape, dtype=self.dtype)
        with one_tile_of_each_kind(), FakeCudaMeter(self.net) as meter:
            meter.see(x)
            for made in run.through(cut(x, run.outlook.lengths)):
                del made
        report, device = run.report(shape), meter.peak["cuda"] + self.weight_bytes
        # The clip itself is the caller's; a plan counts the chunk that is taken out of it, or that it is.
        host = meter.peak["cpu"] - (x.numel() * x.element_size() if len(run.traces) > 1 else 0)
        assert report is not None
        plan = report.plan
        return Row(
            self.name,
            direction,
            self.dtype_name,
            width,
            height,
            frames,
            round(budget_mib, 1),
            plan.rung,
            tiles_text(plan.tile),
            sum(home != "device" for home in run.homes.values()),
            round(plan.device_bytes / MIB, 1),
            round(device / MIB, 1),
            plan.device_bytes / device,
            round(plan.host_bytes / MIB, 1),
            round(host / MIB, 1),
            plan.host_bytes / host if host else 1.0,
            round(self.weight_bytes / MIB, 1),
            plan.operations / sum(trace.operations for trace in run.traces),
            round(plan.chosen.moved_bytes / MIB, 1),
        )

    def rows(self, direction: Direction, width: int, height: int, budgets: Sequence[float]) -> Iterator[Row]:
        """Those of the budgets that some plan fits."""
        for budget in budgets:
            try:
                yield self.row(direction, width, height, budget)
            except BudgetError:
                continue


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--gib", nargs="+", type=float, default=(1, 2, 3, 4, 6, 8, 12, 24, 80), help="device memories")
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
                        for width, height in SIZES[name]:
                            for row in subject.rows(direction, width, height, [gib * 1024 for gib in options.gib]):
                                writer.writerow(shown(row))
                                file.flush()
                                print(row, flush=True)


if __name__ == "__main__":
    main()
