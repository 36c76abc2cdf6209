"""Latents in the three file types that are read, and one sentence for everything else."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vae_core.errors import CheckpointError, ExactVAEError, InputError
from vae_core.media import Latents, read_latents, write_latents

TENSOR = torch.arange(2 * 4 * 3 * 5, dtype=torch.float32).reshape(2, 4, 3, 5) / 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_our_own_round_trip(tmp_path, dtype):
    written = Latents(TENSOR.to(dtype), "sdxl", normalized=True, size=(23, 37), frames=7, fps=Fraction(30000, 1001))
    path = write_latents(tmp_path / "a.safetensors", written)
    read = read_latents(path)
    assert read.tensor.dtype == dtype and torch.equal(read.tensor, written.tensor)
    assert (read.variant, read.normalized, read.size) == ("sdxl", True, (23, 37))
    assert (read.frames, read.fps) == (7, Fraction(30000, 1001))


@pytest.mark.parametrize(("fps", "text"), [(Fraction(24), "24"), (Fraction(24000, 1001), "24000/1001")])
def test_the_rate_is_stored_exactly(tmp_path, fps, text):
    path = write_latents(tmp_path / "a.safetensors", Latents(TENSOR, fps=fps))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "exact-vae latents 1", "convention": "raw", "fps": text}
    assert read_latents(path).fps == fps


def test_files_written_before_there_were_clips_are_read(tmp_path):
    metadata = {"format": "exact-vae latents 1", "convention": "raw", "variant": "sd1", "height": "20", "width": "30"}
    save_file({"latents": TENSOR}, tmp_path / "a.safetensors", metadata)
    read = read_latents(tmp_path / "a.safetensors")
    assert (read.variant, read.size, read.frames, read.fps) == ("sd1", (20, 30), None, None)


def test_clips_keep_their_axis_of_time(tmp_path):
    clip = TENSOR.reshape(1, 4, 2, 3, 5)
    save_file({"latent_tensor": clip, "latent_format_version_0": torch.tensor([])}, tmp_path / "a.latent")
    np.save(tmp_path / "a.npy", clip.numpy())
    write_latents(tmp_path / "a.safetensors", Latents(clip))
    for name in ("a.latent", "a.npy", "a.safetensors"):
        assert torch.equal(read_latents(tmp_path / name).tensor, clip)


def test_others_may_read_the_file_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    path = write_latents(tmp_path / "a.safetensors", Latents(TENSOR))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_unknown_stays_unknown(tmp_path):
    read = read_latents(write_latents(tmp_path / "a.safetensors", Latents(TENSOR)))
    assert (read.variant, read.normalized, read.size, read.frames, read.fps) == (None, False, None, None, None)


def test_comfyui_latents(tmp_path):
    new, old = tmp_path / "new.latent", tmp_path / "old.latent"
    save_file({"latent_tensor": TENSOR, "latent_format_version_0": torch.tensor([])}, new, {"prompt": "{}"})
    save_file({"latent_tensor": TENSOR * 0.18215}, old)
    assert torch.equal(read_latents(new).tensor, TENSOR)
    assert torch.allclose(read_latents(old).tensor, TENSOR)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_numpy(tmp_path, dtype):
    np.save(tmp_path / "a.npy", TENSOR.numpy().astype(dtype))
    assert torch.allclose(read_latents(tmp_path / "a.npy").tensor.float(), TENSOR, rtol=1e-3)


def test_fortran_order_and_missing_batch_axis(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(TENSOR[0].numpy()))
    assert torch.equal(read_latents(tmp_path / "a.npy").tensor, TENSOR[:1])


class Bomb:
    """Unpickling it writes a file, which must not happen."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


CLIP_METADATA = {
    "frames.safetensors": {"frames": "0"},
    "half_frames.safetensors": {"frames": "2.5"},
    "fps.safetensors": {"fps": "fast"},
    "no_fps.safetensors": {"fps": "0"},
    "divided_by_zero.safetensors": {"fps": "24/0"},
    "backwards.safetensors": {"fps": "-24"},
}


def bad_files(folder: Path) -> dict[str, type[ExactVAEError]]:
    """Write one file of each wrong kind; its name → the error it must give."""
    lying = {"latents": {"dtype": "F32", "shape": [1, 4, 999, 999], "data_offsets": [0, 15_984_016]}}
    raw = {
        "empty.safetensors": b"",
        "page.safetensors": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "short.latent": safetensors_bytes(lying)[:20],
        "lying.safetensors": safetensors_bytes(lying, bytes(64)),
        "huge_header.safetensors": (2**60).to_bytes(8, "little") + b"{}",
        "empty.npy": b"",
        "text.npy": b"1 2 3",
        "lying.npy": npy_header((1, 4, 10**6, 10**6)) + bytes(64),
        "pickled.npy": pickle.dumps(Bomb(folder / "ran")),
    }
    for name, content in raw.items():
        (folder / name).write_bytes(content)
    np.save(folder / "objects.npy", np.array([Bomb(folder / "ran")], dtype=object), allow_pickle=True)
    np.save(folder / "flat.npy", np.zeros(7, np.float32))
    np.save(folder / "nothing.npy", np.zeros((1, 4, 0, 8), np.float32))
    np.save(folder / "whole_numbers.npy", np.zeros((1, 4, 8, 8), np.int64))
    np.save(folder / "complex.npy", np.zeros((1, 4, 8, 8), np.complex64))
    save_file({"weight": torch.zeros(2)}, folder / "lora.safetensors")
    save_file({"latents": torch.full((1, 4, 2, 2), torch.nan)}, folder / "nan.safetensors")
    save_file({"latents": TENSOR}, folder / "convention.safetensors", {"convention": "scaled"})
    save_file({"latents": TENSOR}, folder / "size.safetensors", {"height": "-3", "width": "5"})
    for name, metadata in CLIP_METADATA.items():
        save_file({"latents": TENSOR}, folder / name, metadata)
    (folder / "latents.pt").write_bytes(b"")
    odd = [
        "flat.npy",
        "nothing.npy",
        "whole_numbers.npy",
        "complex.npy",
        "nan.safetensors",
        "latents.pt",
        "missing.npy",
    ]
    broken = ["objects.npy", "lora.safetensors", "convention.safetensors", "size.safetensors", *CLIP_METADATA, *raw]
    return {name: InputError if name in odd else CheckpointError for name in odd + broken}


def test_bad_files_are_named_in_one_sentence_and_run_no_code(tmp_path):
    for name, error in bad_files(tmp_path).items():
        with pytest.raises(error) as caught:
            read_latents(tmp_path / name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: ") and "\n" not in message, message
    assert not (tmp_path / "ran").exists()


def test_writing_keeps_what_exists_and_its_own_ending(tmp_path):
    path = write_latents(tmp_path / "a.safetensors", Latents(TENSOR))
    with pytest.raises(InputError, match="already exists"):
        write_latents(path, Latents(TENSOR * 2))
    with pytest.raises(InputError, match="safetensors"):
        write_latents(tmp_path / "a.npy", Latents(TENSOR))
    assert torch.equal(read_latents(path).tensor, TENSOR)
    write_latents(path, Latents(TENSOR * 2), overwrite=True)
    assert torch.equal(read_latents(path).tensor, TENSOR * 2)
