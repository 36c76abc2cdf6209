"""What it takes to begin: `python -m benchmarks.startup` times importing and loading: benchmarks/results/startup.csv.

Importing vae_core, and with it the networks, or all that loads and runs them, beside importing torch alone; loading a full-size
SDXL VAE (float32, diffusers' names) beside safetensors' own load of its tensors. Each run has a process of its own, the sides
take turns, and the first round is not counted: the file is in the system's cache then.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from .__main__ import MIB, RESULTS, ROOT, commit, machine

TIMED = """
import sys, time
start = time.perf_counter()
{code}
print(time.perf_counter() - start)
"""
LOADING = """
import json, sys, time
import torch
from benchmarks.worker import Peak
{imports}
peak, start = Peak(torch.device("cpu")), time.perf_counter()
held = {code}
seconds = time.perf_counter() - start
tensors = list((held if isinstance(held, dict) else held.net.state_dict()).values())
start = time.perf_counter()
total = sum(float(tensor.sum()) for tensor in tensors)
reading = time.perf_counter() - start
print(json.dumps({{"seconds": seconds, "peak_bytes": peak.read(), "read_seconds": seconds + reading}}))
"""
SIDES = {
    "import": {
        "torch": "import torch",
        "vae_core": "import vae_core",
        "vae_core.AutoencoderKL": "import vae_core; vae_core.AutoencoderKL",
        "vae_core.load": "import vae_core; vae_core.load",
    },
    "load": {
        "safetensors": ("from safetensors.torch import load_file", "load_file(sys.argv[1])"),
        "vae_core": ("from vae_core import load", "load(sys.argv[1], dtype=torch.float32)"),
    },
}


@dataclass(frozen=True)
class Row:
    """One side; the ratio is the median over rounds of its time to that of the first side."""

    what: str
    side: str
    runs: int
    median_s: float
    least_s: float
    most_s: float
    ratio: float
    read_median_s: float | None
    """Until every element has been read once: a file that is mapped comes into memory only then."""
    read_ratio: float | None
    peak_mib: float | None
    """Resident pages beside those before, every element read."""
    file_mib: float | None
    machine: str
    commit: str


def measured(what: str, side: str, file: Path) -> dict[str, float]:
    """One run in a process of its own."""
    code = SIDES[what][side]
    source = TIMED.format(code=code) if isinstance(code, str) else LOADING.format(imports=code[0], code=code[1])
    told = subprocess.run(
        [sys.executable, "-c", source, str(file)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    answer = json.loads(told.stdout)
    return answer if isinstance(answer, dict) else {"seconds": answer}


def rows(what: str, runs: int, file: Path, *, cold: bool = False) -> list[Row]:
    """The sides of a measurement, in turn; `cold` counts the first round too."""
    for _ in range(0 if cold else 1):
        for side in SIDES[what]:
            measured(what, side, file)
    rounds = [{side: measured(what, side, file) for side in SIDES[what]} for _ in range(runs)]
    first, *_ = SIDES[what]
    made = []
    for side in SIDES[what]:
        seconds = [r[side]["seconds"] for r in rounds]
        loads = what == "load"
        made.append(
            Row(
                what,
                side,
                runs,
                round(statistics.median(seconds), 4),
                round(min(seconds), 4),
                round(max(seconds), 4),
                round(statistics.median(r[side]["seconds"] / r[first]["seconds"] for r in rounds), 4),
                round(statistics.median(r[side]["read_seconds"] for r in rounds), 4) if loads else None,
                round(statistics.median(r[side]["read_seconds"] / r[first]["read_seconds"] for r in rounds), 4)
                if loads
                else None,
                round(max(r[side]["peak_bytes"] for r in rounds) / MIB, 1) if loads else None,
                round(file.stat().st_size / MIB, 1) if loads else None,
                machine(),
                commit(),
            )
        )
    return made


def save_sdxl(file: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from vae_core.models import CLASSES
    from vae_core.spec import VARIANTS

    torch.manual_seed(0)
    save_file(CLASSES["AutoencoderKL"](**VARIANTS["sdxl"].config).state_dict(), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each side")
    parser.add_argument("--only", nargs="+", choices=[*SIDES], default=[*SIDES], help="one of the two")
    parser.add_argument("--cold", action="store_true", help="count the first round too, whatever the system has cached")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "startup.csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sdxl_vae.safetensors"
        save_sdxl(file)
        found = [row for what in options.only for row in rows(what, options.runs, file, cold=options.cold)]
    with options.output.open("w", newline="") as table:
        writer = csv.DictWriter(table, [*Row.__dataclass_fields__], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in found)
    for row in found:
        read = f"  with its elements read ×{row.read_ratio:.3f}" if row.read_ratio else ""
        print(f"{row.what:8} {row.side:12} {row.median_s:8.3f} s  ×{row.ratio:.3f}{read}")


if __name__ == "__main__":
    main()
