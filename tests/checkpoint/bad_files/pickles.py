"""Pickles that would run code, are damaged, or hold something else than tensors."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from checkpoint_files import kl, state_of

from vae_core.errors import CheckpointError

from .registry import bad


class RunsOnLoading:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@bad(CheckpointError, "nothing of it was run")
def pickle_with_code(folder: Path) -> Path:
    torch.save({"state_dict": state_of(kl(32, 64)), "x": RunsOnLoading(folder / "ran")}, folder / "a.ckpt")
    return folder / "a.ckpt"


@bad(CheckpointError, "nothing of it was run")
def pickle_with_code_before_zip(folder: Path) -> Path:
    content = {"x": RunsOnLoading(folder / "ran")}
    torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


@bad(CheckpointError, "nothing of it was run")
def pickle_with_code_named_safetensors(folder: Path) -> Path:
    torch.save({"x": RunsOnLoading(folder / "ran")}, folder / "a.safetensors")
    return folder / "a.safetensors"


@bad(CheckpointError, "no torch archive")
def archive_cut_short(folder: Path) -> Path:
    torch.save(state_of(kl(32, 64)), folder / "a.pt")
    (folder / "a.pt").write_bytes((folder / "a.pt").read_bytes()[:-2000])
    return folder / "a.pt"


@bad(CheckpointError, "no torch archive")
def noise_named_ckpt(folder: Path) -> Path:
    (folder / "a.ckpt").write_bytes(bytes(range(256)) * 8)
    return folder / "a.ckpt"


@bad(CheckpointError, "holds a list")
def pickled_list(folder: Path) -> Path:
    torch.save([torch.zeros(1)], folder / "a.pt")
    return folder / "a.pt"


@bad(CheckpointError, "`encoder.conv_in.weight` is a list and no plain tensor")
def values_that_are_no_tensors(folder: Path) -> Path:
    torch.save(state_of(kl(32, 64)) | {"encoder.conv_in.weight": [1.0, 2.0]}, folder / "a.pt")
    return folder / "a.pt"
