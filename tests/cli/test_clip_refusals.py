"""What cannot be done with a clip is refused in one sentence that says what to do, and no file is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_files import clip_file, stored
from clip_twins import random_latents
from PIL import Image

from vae_core.cli.main import BAD_INPUT

pytest.importorskip("av")


@pytest.fixture
def folder(tmp_path: Path, vae_path: Path, wan: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs for both kinds of VAE, which are `images` and `clips`."""
    stored(tmp_path, random_latents(2, 2, 3), "clip.safetensors")
    stored(tmp_path, random_latents(1, 2, 3), "still.safetensors")
    stored(tmp_path, random_latents(1, 2, 3)[:, :, 0], "picture.safetensors")
    stored(tmp_path, random_latents(2, 2, 3).repeat(1, 12, 1, 1, 1), "mochi.safetensors")
    clip_file(tmp_path / "clip.mp4", frames=5)
    clip_file(tmp_path / "clip.webp", frames=5)
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    (tmp_path / "mixed").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "mixed" / "picture.png")
    (tmp_path / "mixed" / "clip.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes())
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html>")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "mine.txt").write_text("mine")
    (tmp_path / "images").symlink_to(vae_path)
    (tmp_path / "clips").symlink_to(wan)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = {
    "a video for pictures": ("encode clip.mp4 -o out.safetensors --vae images", "--vae"),
    "a video to and fro for pictures": ("roundtrip clip.mp4 -o out.mp4 --vae images", "--vae"),
    "a picture's latents for clips": ("decode picture.safetensors -o out.mp4 --vae clips", "axis of time"),
    "a clip's latents for pictures": ("decode clip.safetensors -o out.mp4 --vae images", "--vae"),
    "latents of another model": ("decode mochi.safetensors -o out.mp4 --vae clips", "Wan 2.2"),
    "frames into one picture": ("decode clip.safetensors -o out.png --vae clips", ".mp4"),
    "a clip as jpg in a folder": ("decode clip.safetensors -o out --format jpg --vae clips", "folder"),
    "a clip of an unknown format": ("decode clip.safetensors -o out.xyz --vae clips", ".mp4"),
    "into a folder with files": ("decode clip.safetensors -o frames --vae clips", "--force"),
    "rate of a picture": ("decode still.safetensors -o out.png --fps 16 --vae clips", "--fps"),
    "resumed picture": ("decode still.safetensors -o out.png --resume --vae clips", "--resume"),
    "rate in words": ("decode clip.safetensors -o out.mp4 --fps fast --vae clips", "30000/1001"),
    "no rate at all": ("decode clip.safetensors -o out.mp4 --fps 0 --vae clips", "30000/1001"),
    "rate over nothing": ("decode clip.safetensors -o out.mp4 --fps 24/0 --vae clips", "30000/1001"),
    "unknown codec": ("decode clip.safetensors -o out.mp4 --codec divx --vae clips", "divx"),
    "codec of another container": ("decode clip.safetensors -o out.webm --codec h264 --vae clips", "h264"),
    "crf out of range": ("decode clip.safetensors -o out.mp4 --crf 99 --vae clips", "99"),
    "crf of a gif": ("decode clip.safetensors -o out.gif --crf 9 --vae clips", "crf"),
    "sound in a gif": ("decode clip.safetensors -o out.gif --audio clip.mp4 --vae clips", "sound"),
    "sound from nowhere": ("decode clip.safetensors -o out.mp4 --audio missing.wav --vae clips", "missing.wav"),
    "sound from a page": ("decode clip.safetensors -o out.mp4 --audio page.mp4 --vae clips", "page.mp4"),
    "output exists": ("decode clip.safetensors -o clip.mp4 --vae clips", "--force"),
    "blended clip": ("decode clip.safetensors -o out.mp4 --mode blend --vae clips", "--mode blend"),
    "blended source": ("encode clip.mp4 -o out.safetensors --mode blend --vae clips", "--mode blend"),
    "drawn clip": ("encode clip.mp4 -o out.safetensors --sample --vae clips", "--sample"),
    "no video": ("encode page.mp4 -o out.safetensors --vae clips", "page.mp4"),
    "pictures and videos": ("encode mixed -o out.safetensors --vae clips", "mixed"),
    "no memory": ("decode clip.safetensors -o out.mp4 --memory 1KiB --vae clips", "needs"),
    "frames of a picture": ("plan --width 64 --height 64 --frames 5 --vae images", "--batch"),
    "an output that is taken, to and fro": ("roundtrip clip.mp4 -o clip.webp --vae clips", "--force"),
}


@pytest.mark.parametrize(("line", "says"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_one_sentence_that_says_what_to_do(run, folder, line, says):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ran = run(*line.split())
    assert ran.status == BAD_INPUT, ran.err
    errors = [said for said in ran.err.splitlines() if said.startswith("vae_core: ")]
    assert len(errors) == 1 and says in errors[0] and ran.out == ""
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
