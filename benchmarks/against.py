"""This checkout against an earlier commit: `python -m benchmarks.against COMMIT`; appends to benchmarks/results/against.csv.

Whole runs at SDXL's size with random weights, each side in a process of its own, in turn, so that the ratios of neighbouring runs
hold even where the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "against.csv"
FIELDS = (
    "before",
    "after",
    "direction",
    "side_px",
    "dtype",
    "threads",
    "runs",
    "before_s",
    "after_s",
    "ratio",
    "spread",
    "torch",
)

WORKER = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
direction, side, dtype, threads = sys.argv[2], int(sys.argv[3]), getattr(torch, sys.argv[4]), int(sys.argv[5])
import vae_core
torch.set_num_threads(threads)
torch.manual_seed(0)
net = vae_core.AutoencoderKL(**vae_core.VARIANTS["sdxl"].config).to(dtype).eval()
vae = vae_core.VAE.of(net, vae_core.VARIANTS["sdxl"])
x = torch.randn((1, 4, side // 8, side // 8) if direction == "decode" else (1, 3, side, side), dtype=dtype).clamp_(-1, 1)
for line in sys.stdin:
    start = time.perf_counter()
    getattr(vae, direction)(x, mode="whole")
    print(time.perf_counter() - start, flush=True)
"""


class Side:
    """One checkout, ready to run again and again."""

    def __init__(self, root: Path, *options: object) -> None:
        command = [sys.executable, "-c", WORKER, str(root), *map(str, options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def seconds(self) -> float:
        """Of one run."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Let the process go."""
        self.process.communicate()


def compare(before: Path, options: tuple[object, ...], runs: int) -> tuple[float, float, list[float]]:
    """Median seconds of both, and the ratio after/before of each pair; the first pair is not counted."""
    sides = Side(before, *options), Side(ROOT, *options)
    pairs = [(sides[0].seconds(), sides[1].seconds()) for _ in range(runs + 1)][1:]
    for side in sides:
        side.end()
    firsts, seconds = zip(*pairs, strict=True)
    return statistics.median(firsts), statistics.median(seconds), sorted(b / a for a, b in pairs)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Decode and encode, whole."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--side", type=int, default=256, help="in pixels (default 256)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    import torch

    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with tempfile.TemporaryDirectory() as folder, RESULTS.open("a", newline="") as file:
        before = Path(folder) / "before"
        git("worktree", "add", "--detach", str(before), options.commit)
        try:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            for direction in ("decode", "encode"):
                settings = (direction, options.side, options.dtype, options.threads)
                a, b, ratios = compare(before, settings, options.runs)
                row = {
                    "before": git("rev-parse", "--short", options.commit),
                    "after": git("rev-parse", "--short", "HEAD"),
                    "direction": direction,
                    "side_px": options.side,
                    "dtype": options.dtype,
                    "threads": options.threads,
                    "runs": options.runs,
                    "before_s": f"{a:.3f}",
                    "after_s": f"{b:.3f}",
                    "ratio": f"{statistics.median(ratios):.3f}",
                    "spread": f"{ratios[0]:.3f}-{ratios[-1]:.3f}",
                    "torch": torch.__version__,
                }
                writer.writerow(row)
                file.flush()
                print(row, flush=True)
        finally:
            git("worktree", "remove", "--force", str(before))


if __name__ == "__main__":
    main()
