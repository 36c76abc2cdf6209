"""Paths where no weights are: web pages, pointers, replies, files of other kinds, nothing at all."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoint_files import save, text_file

from vae_core.errors import CheckpointError, UnknownModelError

from .registry import bad


@bad(CheckpointError, "is a web page")
def html_page(folder: Path) -> Path:
    return text_file(folder, "vae.safetensors", "\n<!DOCTYPE html><html><body>Sign in</body></html>")


@bad(CheckpointError, "is a Git LFS pointer")
def lfs_pointer(folder: Path) -> Path:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 334643268\n"
    return text_file(folder, "vae.safetensors", text)


@bad(CheckpointError, "is a JSON text")
def error_reply(folder: Path) -> Path:
    return text_file(folder, "vae.ckpt", '{"error": "Repository not found"}')


@bad(CheckpointError, "no kind of file that holds a VAE")
def unknown_extension(folder: Path) -> Path:
    return text_file(folder, "vae.onnx", "something else")


@bad(UnknownModelError, "looks like a GGUF file")
def gguf(folder: Path) -> Path:
    (folder / "vae.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    return folder / "vae.gguf"


@bad(CheckpointError, "does not exist")
def missing_path(folder: Path) -> Path:
    return folder / "nowhere.safetensors"


@bad(CheckpointError, "holds no weights")
def folder_without_weights(folder: Path) -> Path:
    text_file(folder, "readme.txt", "hello")
    return folder


@bad(CheckpointError, "holds several weight files (a.safetensors, b.safetensors)")
def folder_with_several_files(folder: Path) -> Path:
    for name in "ab":
        save(folder / f"{name}.safetensors", {"x": torch.zeros(1)})
    return folder
