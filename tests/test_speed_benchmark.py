"""`python -m benchmarks` runs, on the smallest of its cases."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.__main__ import kept

ROOT = Path(__file__).resolve().parent.parent


def test_a_side_by_side_run(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    options = [
        "--quick",
        "--only",
        "taesd encode",
        "--dtypes",
        "float32",
        "--runs",
        "1",
        "--device",
        "cpu",
        "--no-plot",
    ]
    subprocess.run([sys.executable, "-m", "benchmarks", *options, "-o", str(output)], cwd=ROOT, check=True)
    rows = [*csv.DictReader(output.open())]
    assert [row["side"] for row in rows] == ["vae_core", "vae_core, by default", "diffusers", "diffusers channels_last"]
    assert all(float(row["median_s"]) > 0 and float(row["peak_mib"]) >= 0 for row in rows)
    assert float(rows[0]["ratio"]) == 1.0 and all(float(row["gflop"]) > 0 for row in rows)

    again = kept(output, set())
    assert [{name: "" if value is None else str(value) for name, value in asdict(row).items()} for row in again] == rows
    assert kept(output, {(rows[0]["case"], "bfloat16")}) == again and kept(output, {(rows[0]["case"], "float32")}) == []


def test_importing_and_loading_are_timed(tmp_path: Path) -> None:
    output = tmp_path / "startup.csv"
    options = ["--runs", "1", "--cold", "-o", str(output)]
    subprocess.run([sys.executable, "-m", "benchmarks.startup", *options], cwd=ROOT, check=True)
    rows = [*csv.DictReader(output.open())]
    assert [(row["what"], row["side"]) for row in rows] == [
        ("import", "torch"),
        ("import", "vae_core"),
        ("import", "vae_core.AutoencoderKL"),
        ("import", "vae_core.load"),
        ("load", "safetensors"),
        ("load", "vae_core"),
    ]
    alone, everything = float(rows[1]["median_s"]), float(rows[3]["median_s"])
    assert alone < everything / 10, "nothing is imported before it is asked for"
    loaded = rows[-1]
    assert float(loaded["peak_mib"]) <= 1.1 * float(loaded["file_mib"]), "the file is held once"
