"""`python -m benchmarks` runs, on the smallest of its cases."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.__main__ import Row, earlier, updated

ROOT = Path(__file__).resolve().parent.parent


def test_a_side_by_side_run(tmp_path: Path) -> None:
    output = tmp_path / "speed.csv"
    options = [
        "--quick",
        "--only",
        "taesd encode",
        "--dtypes",
        "default",
        "--runs",
        "1",
        "--device",
        "cpu",
        "--no-plot",
    ]
    subprocess.run([sys.executable, "-m", "benchmarks", *options, "-o", str(output)], cwd=ROOT, check=True)
    rows = [*csv.DictReader(output.open())]
    assert [row["side"] for row in rows] == ["vae_core", "vae_core, by default", "diffusers", "diffusers channels_last"]
    assert all(row["dtype"].startswith("default: ") for row in rows) and rows[2]["dtype"] == "default: float32"
    assert all(float(row["median_s"]) > 0 and float(row["peak_mib"]) >= 0 for row in rows)
    assert float(rows[0]["ratio"]) == 1.0 and all(float(row["gflop"]) > 0 for row in rows)

    again = earlier(output)
    assert [{name: "" if value is None else str(value) for name, value in asdict(row).items()} for row in again] == rows


def test_rows_that_are_made_anew_take_the_place_of_the_old() -> None:
    found = [row(case, dtype, 1.0) for case in ("a", "b", "c") for dtype in ("float32", "default: bfloat16")]
    made = [row("b", "default: float32", 2.0), row("b", "default: float32", 3.0)]
    assert updated(found, made) == [*found[:3], *made, *found[4:]]
    assert updated(found, [row("d", "float32", 2.0)]) == [*found, row("d", "float32", 2.0)]


def row(case: str, dtype: str, seconds: float) -> Row:
    return Row(case, "vae_core", dtype, "cpu", 2, 1, seconds, seconds, seconds, 1.0, 1.0, 1.0, None, "", "", "")


def startup_rows(what: str, output: Path) -> list[dict[str, str]]:
    options = ["--only", what, "--runs", "1", "--cold", "-o", str(output)]
    subprocess.run([sys.executable, "-m", "benchmarks.startup", *options], cwd=ROOT, check=True)
    rows = [*csv.DictReader(output.open())]
    assert all(row["what"] == what for row in rows)
    return rows


@pytest.mark.slow
def test_importing_is_timed(tmp_path: Path) -> None:
    rows = startup_rows("import", tmp_path / "startup.csv")
    assert [row["side"] for row in rows] == ["torch", "vae_core", "vae_core.AutoencoderKL", "vae_core.load"]
    alone, everything = float(rows[1]["median_s"]), float(rows[3]["median_s"])
    assert alone < everything / 10, "nothing is imported before it is asked for"


def test_loading_is_timed(tmp_path: Path) -> None:
    rows = startup_rows("load", tmp_path / "startup.csv")
    assert [row["side"] for row in rows] == ["safetensors", "vae_core"]
    loaded = rows[-1]
    assert float(loaded["peak_mib"]) <= 1.1 * float(loaded["file_mib"]), "the file is held once"
