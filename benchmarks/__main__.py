"""Speed beside diffusers and ComfyUI: `python -m benchmarks` writes benchmarks/results/speed.csv and a plot of it.

Same random weights at full size, same dtype, sides in turn within one round, each in a process of its own; the first round is not
counted. ComfyUI takes part where COMFYUI_PATH names a checkout, run by COMFYUI_PYTHON if that is set. A CUDA device is used where
there is one, and its memory measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from vae_core.whole_files import whole

from . import sides, worker
from .cases import FULL, QUICK, SCALING, Case

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One side of one case. Seconds of one run; the ratio is the median over rounds of this side's time to the first one's."""

    case: str
    side: str
    dtype: str
    """Of each side's own choice, "default: " and what that is."""
    device: str
    threads: int
    runs: int
    median_s: float
    least_s: float
    most_s: float
    ratio: float
    peak_mib: float
    gflop: float
    """As torch's FlopCounterMode counts, which leaves out the CPU's fused attention."""
    largest_error: float | None
    """Of a tiled run, from the same side untiled; pixels and latents as they come."""
    machine: str
    torch: str
    commit: str

    @property
    def group(self) -> tuple[str, str]:
        """What is compared: a case in a dtype that was asked for."""
        return self.case, self.dtype.partition(":")[0]


class Side:
    """A worker process, for one case after another."""

    def __init__(self, name: str, options: argparse.Namespace, dtype: str) -> None:
        python = os.environ.get("COMFYUI_PYTHON", sys.executable) if name in sides.COMFYUI else sys.executable
        told = worker.command(name, dtype, options.device, options.threads)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def ask(self, what: str) -> dict[str, Any]:
        self.tell(what)
        return self.answer()

    def tell(self, what: str, *arguments: Any) -> None:
        """Ask without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {json.dumps(arguments)}\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"{self.name}: the worker has ended with status {self.process.wait()}")
            if line.startswith("{"):
                return json.loads(line)

    def end(self) -> None:
        self.process.communicate()


def rows(case: Case, dtype: str, options: argparse.Namespace, workers: Sequence[Side]) -> list[Row]:
    """The sides of a case, in turn."""
    for side in workers:
        side.tell("build", asdict(case))
    for side in workers:
        side.answer()
    counted = [side.ask("count")["operations"] for side in workers]  # the round that is not timed
    rounds = [[side.ask("run") for side in workers] for _ in range(options.runs)]
    made = []
    for i, side in enumerate(workers):
        seconds, ratios = [r[i]["seconds"] for r in rounds], [r[i]["seconds"] / r[0]["seconds"] for r in rounds]
        about = side.ask("about")
        made.append(
            Row(
                case.name,
                side.name,
                f"{dtype}: {about['dtype']}" if dtype == sides.DEFAULT else dtype,
                options.device,
                options.threads,
                options.runs,
                round(statistics.median(seconds), 4),
                round(min(seconds), 4),
                round(max(seconds), 4),
                round(statistics.median(ratios), 4),
                round(max(r[i]["peak_bytes"] for r in rounds) / MIB, 1),
                round(counted[i] / 1e9, 3),
                side.ask("error")["error"] if side.name in sides.TILED and not options.scaling else None,
                machine(),
                about["torch"],
                commit(),
            )
        )
    return made


def earlier(table: Path) -> list[Row]:
    """The rows of a table that was written before."""
    if not table.exists():
        return []
    of = {name: float if name == "largest_error" else typed for name, typed in get_type_hints(Row).items()}
    with table.open(newline="") as file:
        return [
            Row(**{name: of[name](text) if text else None for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


def updated(found: Sequence[Row], made: Sequence[Row]) -> list[Row]:
    """The rows with those of one group that were made anew, in the place of the group's old ones."""
    groups = [row.group for row in found]
    at = groups.index(made[0].group) if made[0].group in groups else len(found)
    others = [row for row in found if row.group != made[0].group]
    return [*others[:at], *made, *others[at:]]


def save(found: Sequence[Row], table: Path) -> None:
    """Writes all of a table, or leaves the old one as it is."""
    with whole(table, overwrite=True) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*Row.__dataclass_fields__])
        writer.writeheader()
        writer.writerows(map(asdict, found))


def machine() -> str:
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu.split(':')[-1].strip()} ({' '.join(known)}){gpu}"


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return told.stdout.strip()


def plot(found: Sequence[Row], path: Path) -> None:
    """Times relative to vae_core's whole run, a group of bars for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(row.group for row in found))
    colours = {side: f"C{i}" for i, side in enumerate(dict.fromkeys(row.side for row in found))}
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.13 * (len(found) + len(groups))))
    ticks, y = [], 0
    for group in groups:
        mine = [row for row in found if row.group == group]
        ticks.append(y + (len(mine) - 1) / 2)
        for row in mine:
            done = math.isfinite(row.ratio)
            took = f"{row.median_s:.2f} s" if done else "out of memory"
            axes.barh(y, row.ratio if done else 0, 0.9, color=colours[row.side])
            axes.text(row.ratio if done else 0, y, f" {row.side}: {took}", va="center", fontsize=6)
            y += 1
        y += 1  # a gap
    axes.set_yticks(ticks, map(" ".join, groups), fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.01)
    axes.set_xlabel("time, relative to vae_core untiled (less is better)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def names_of(case: Case, options: argparse.Namespace) -> list[str]:
    """The sides that take part."""
    if options.scaling:
        return ["vae_core, tiles of 512"]
    wanted = {*sides.of(case)} - {sides.COMPILED} if options.sides is None else {"vae_core", *options.sides}
    return [name for name in sides.of(case) if name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small cases in one dtype, once: some two minutes")
    parser.add_argument("--scaling", action="store_true", help="SDXL decode from 256 to 2048 px over tiles of 512")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--sides", nargs="+", help="only these")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        help='float32, bfloat16, float16, or "default" for what each side chooses itself; '
        "without: float32 and bfloat16, with --quick what the device is quick in",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, help="counted runs of each side (5, with --quick 1)")
    parser.add_argument("--update", action="store_true", help="keep the table's rows of cases that are not run now")
    parser.add_argument("--no-plot", action="store_true", help="write the table only, without matplotlib")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 5)
    quick_dtype = "bfloat16" if options.device.startswith("cuda") else "float32"
    options.dtypes = options.dtypes or ([quick_dtype] if options.quick else ["float32", "bfloat16"])
    cases = QUICK if options.quick else SCALING if options.scaling else FULL[options.device.split(":")[0]]
    output = (
        options.output or RESULTS / f"speed{'_quick' if options.quick else '_scaling' if options.scaling else ''}.csv"
    )
    chosen = [case for case in cases if options.only in case.name]
    found = earlier(output) if options.update else []
    for dtype in options.dtypes:
        workers: dict[str, Side] = {}
        for case in chosen:
            for name in names_of(case, options):
                workers[name] = workers.get(name) or Side(name, options, dtype)
            made = rows(case, dtype, options, [workers[name] for name in names_of(case, options)])
            found = updated(found, made)
            save(found, output)
            for row in made:
                took = f"{row.median_s:8.3f} s  ×{row.ratio:.3f}"
                error = "" if row.largest_error is None else f"  {row.largest_error:.1e} off untiled at most"
                print(f"{row.case:28} {row.dtype:9} {row.side:26} {took}{error}", flush=True)
        for side in workers.values():
            side.end()
    if not options.no_plot:
        plot(found, output.with_suffix(".png"))


if __name__ == "__main__":
    main()
