"""A decode with --resume that was killed or stopped goes on where it was, and leaves the work of any other alone."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_files import frames_of, in_npy, stored
from clip_twins import random_latents
from processes import interruptible

import vae_core
from vae_core.cli.main import BAD_INPUT, DONE, STOPPED
from vae_core.spec import COGVIDEOX, WAN

pytest.importorskip("av")

ROOT = Path(__file__).resolve().parents[2]


def start(source: Path, out: Path, vae: Path) -> subprocess.Popen[str]:
    """A decode in a process of its own, with --resume."""
    command = [sys.executable, "-m", "vae_core", "decode", str(source), "-o", str(out), "--vae", str(vae), "--resume"]
    options = ["--device", "cpu", "--dtype", "fp32"]
    return interruptible([*command, *options], ROOT)


def chunks_in(folder: Path) -> int:
    return len(list(folder.glob("chunk-*")))


def stop_at_some_moment(decode: subprocess.Popen[str], folder: Path, how: signal.Signals, chunks: int = 1) -> str:
    """After so many more chunks are on the disk; what it said on standard error."""
    before = chunks_in(folder)
    while decode.poll() is None and chunks_in(folder) < before + chunks:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    decode.send_signal(how)
    return decode.communicate(timeout=60)[1]


def killed_and_resumed(run: Callable[..., Any], vae: Path, folder: Path, latents: int, times: int) -> None:
    source, out = stored(folder, random_latents(latents, 8, 8)), folder / "out.npy"
    for _ in range(times):
        decode = start(source, out, vae)
        stop_at_some_moment(decode, folder / "out.npy.resume", signal.SIGKILL)
        assert decode.returncode == -signal.SIGKILL, "it was killed before it was done"
        assert not out.exists() and chunks_in(folder / "out.npy.resume") > 0
    ran = run("decode", source, "-o", out, "--vae", vae, "--resume", "--dtype", "fp32", "--device", "cpu")
    assert ran.status == DONE, ran.err
    assert f"of {4 * latents - 3} frames are those of the run that was stopped" in ran.err
    assert sorted(path.name for path in folder.iterdir()) == ["latents.safetensors", "out.npy"]
    assert run("decode", source, "-o", folder / "undisturbed.npy", "--vae", vae).status == DONE
    assert torch.equal(in_npy(out), in_npy(folder / "undisturbed.npy"))


@pytest.mark.parametrize(("network", "latents"), [(WAN, 25), (COGVIDEOX, 33)])
def test_a_killed_decode_goes_on(run, clip_vae, tmp_path, network, latents):
    killed_and_resumed(run, clip_vae(network), tmp_path, latents, times=2)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "latents"), [(WAN, 161), (COGVIDEOX, 81)])
def test_a_decode_killed_ten_times_goes_on(run, clip_vae, tmp_path, network, latents):
    killed_and_resumed(run, clip_vae(network), tmp_path, latents, times=10)


def test_ctrl_c_says_how_to_go_on(run, wan, tmp_path):
    source, out = stored(tmp_path, random_latents(41, 8, 8)), tmp_path / "out.mp4"
    decode = start(source, out, wan)
    said = stop_at_some_moment(decode, tmp_path / "out.mp4.resume", signal.SIGINT, chunks=2)
    assert decode.returncode == STOPPED, said
    last = said.splitlines()[-1]
    assert last.startswith("vae_core: stopped; ") and "of 161 frames" in last and "--resume" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents.safetensors", "out.mp4.resume"]
    ran = run("decode", source, "-o", out, "--vae", wan, "--resume", "--fps", 8)
    assert ran.status == DONE and "of 161 frames" in ran.err, ran.err
    assert frames_of(out).shape[1] == 161 and not (tmp_path / "out.mp4.resume").exists()


def test_all_but_the_file_was_done(run, wan, tmp_path):
    latents = random_latents(3, 2, 2)
    expected = torch.cat([*vae_core.load(wan).decode_frames(latents, resume=tmp_path / "out.npy.resume")], dim=2)[0]
    source = stored(tmp_path, latents)
    ran = run("decode", source, "-o", tmp_path / "out.npy", "--vae", wan, "--resume")
    assert ran.status == DONE and "9 of 9 frames" in ran.err and torch.equal(in_npy(tmp_path / "out.npy"), expected)


def test_a_batch_of_pictures_goes_on(run, vae, vae_path, tmp_path):
    latents, folder = random_latents(1, 3, 4)[:, :, 0].repeat(4, 1, 1, 1), tmp_path / "out.resume"
    chunks = vae.decode_frames(latents, resume=folder)
    next(chunks), next(chunks)
    ran = run("decode", stored(tmp_path, latents), "-o", tmp_path / "out.npy", "--vae", vae_path)
    assert ran.status == DONE and folder.is_dir(), "without --resume it is left alone"
    folder.rename(tmp_path / "again.npy.resume")
    ran = run("decode", tmp_path / "latents.safetensors", "-o", tmp_path / "again.npy", "--vae", vae_path, "--resume")
    assert ran.status == DONE and "2 of 4 frames" in ran.err, ran.err
    assert torch.equal(in_npy(tmp_path / "out.npy"), in_npy(tmp_path / "again.npy"))
    assert not (tmp_path / "again.npy.resume").exists()


def test_the_work_of_another_decode_is_left_alone(run, wan, tmp_path):
    latents, folder = random_latents(3, 2, 2), tmp_path / "out.npy.resume"
    chunks = vae_core.load(wan).decode_frames(latents, resume=folder)
    next(chunks)
    kept = sorted(folder.iterdir())
    other = stored(tmp_path, latents + 1)
    ran = run("decode", other, "-o", tmp_path / "out.npy", "--vae", wan, "--resume")
    assert ran.status == BAD_INPUT and "another decode" in ran.err and sorted(folder.iterdir()) == kept
    assert not (tmp_path / "out.npy").exists()
