"""Whatever goes wrong: one sentence, the right exit status, nothing half-done on disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import interruptible

from vae_core.media import Latents, write_latents

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder(tmp_path, picture):
    """Inputs good and bad."""
    write_latents(tmp_path / "good.safetensors", Latents(torch.zeros(1, 4, 2, 2)))
    write_latents(tmp_path / "sixteen.safetensors", Latents(torch.zeros(1, 16, 2, 2)))
    np.save(tmp_path / "good.npy", np.zeros((1, 4, 2, 2), np.float32))
    (tmp_path / "page.png").write_text("<!DOCTYPE html>")
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "taken.png").write_text("mine")
    (tmp_path / "taken.safetensors").write_text("mine")
    (tmp_path / "empty").mkdir()
    return tmp_path


BAD = {
    "no command": "",
    "unknown command": "enlarge picture.png",
    "unknown option": "decode good.npy -o out.png --bigger",
    "no output": "decode good.npy",
    "missing picture": "encode missing.png -o out.safetensors",
    "missing latents": "decode missing.safetensors -o out.png",
    "html as picture": "encode page.png -o out.safetensors",
    "html as latents": "decode page.safetensors -o out.png",
    "picture as latents": "decode picture.png -o out.png",
    "latents of another VAE": "decode sixteen.safetensors -o out.png",
    "unknown output format": "decode good.npy -o out.bmp",
    "no output format": "decode good.npy -o out",
    "encode to a picture": "encode picture.png -o out.png",
    "output exists": "decode good.npy -o taken.png",
    "encoded output exists": "encode picture.png -o taken.safetensors",
    "roundtrip output exists": "roundtrip picture.png -o taken.png",
    "output folder missing": "decode good.npy -o nowhere/out.png",
    "two of one name": "decode good.npy good.safetensors -o out",
    "several into one file": "decode good.npy sixteen.safetensors -o taken.png",
    "empty folder": "decode empty -o out",
    "missing VAE": "decode good.npy -o out.png --vae missing.safetensors",
    "broken VAE": "decode good.npy -o out.png --vae page.safetensors",
    "variant without VAE": "decode good.npy -o out.png --variant sdxl --no-vae",
    "unknown variant": "decode good.npy -o out.png --variant sd9",
    "unknown device": "decode good.npy -o out.png --device warp",
    "device that is not here": "decode good.npy -o out.png --device cuda:99",
    "unknown dtype": "decode good.npy -o out.png --dtype int3",
    "unknown mode": "decode good.npy -o out.png --mode quick",
    "memory in no unit": "decode good.npy -o out.png --memory 2XB",
    "too little memory": "decode good.npy -o out.png --memory 1KiB",
    "tile of nothing": "decode good.npy -o out.png --tile 0",
    "quality beyond 100": "decode good.npy -o out.jpg --quality 101",
    "seed without sample": "encode picture.png -o out.safetensors --seed 3",
    "plan without a size": "plan --width 64",
    "plan of nothing": "plan --width 0 --height 64",
    "inspect a page": "inspect page.safetensors --no-vae",
    "inspect latents": "inspect good.safetensors --no-vae",
    "inspect nothing": "inspect missing --no-vae",
    "convert a page": "convert page.safetensors out --to diffusers --no-vae",
    "convert to another format": "convert page.safetensors out --to onnx --no-vae",
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence_and_exit_status_2(run, vae_path, folder, monkeypatch, line):
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = [word for word in line.split() if word != "--no-vae"]
    if arguments and "--vae" not in arguments and "--no-vae" not in line:
        arguments += ["--vae", vae_path]
    ran = run(*arguments)
    assert ran.status == 2, ran.err
    assert ran.out == ""
    assert ran.err.startswith("vae_core: ") and ran.err.count("\n") == 1, ran.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_force_overwrites(run, vae_path, folder):
    ran = run("decode", folder / "good.npy", "-o", folder / "taken.png", "--vae", vae_path, "--force")
    assert ran.status == 0 and Image.open(folder / "taken.png").size == (16, 16)


def test_a_full_disk_is_exit_status_1_and_leaves_nothing(run, vae_path, folder, monkeypatch):
    def fill(image, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(Image.Image, "save", fill)
    before = set(folder.rglob("*"))
    ran = run("decode", folder / "good.npy", "-o", folder / "out.png", "--vae", vae_path, "--quiet")
    assert ran.status == 1 and "No space left" in ran.err and ran.err.count("\n") == 1
    assert set(folder.rglob("*")) == before


def start_decode(folder: Path, vae_path: Path) -> subprocess.Popen[str]:
    """A decode that takes a while, in a process of its own, until its first progress is seen."""
    source = write_latents(folder / "large.safetensors", Latents(torch.zeros(1, 4, 160, 160)))
    command = [sys.executable, "-m", "vae_core", "decode", str(source), "-o", str(folder / "out.png")]
    options = ["--vae", str(vae_path), "--tile", "32"]
    started = interruptible([*command, *options], ROOT)
    assert started.stderr is not None
    while started.poll() is None and "%" not in started.stderr.read(1):
        pass
    return started


def test_ctrl_c_is_exit_status_130_and_leaves_nothing(vae_path, tmp_path):
    decode = start_decode(tmp_path, vae_path)
    time.sleep(0.2)
    decode.send_signal(signal.SIGINT)
    _, err = decode.communicate(timeout=60)
    assert decode.returncode == 130, err
    assert err.endswith("vae_core: stopped\n") and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]
