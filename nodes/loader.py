"""Exact VAE Loader: any file or folder of ComfyUI's model folders that holds a VAE."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from ..vae_core import VARIANTS, CheckpointError
from ..vae_core.checkpoint import open_checkpoint
from . import host, summary
from .images import CATEGORY
from .inputs import DTYPES
from .vae_object import ExactVAE

FOLDER_MARKS = ("config.json", "model_index.json")
"""Files that only a diffusers folder has: of a VAE, or of a whole pipeline."""

VARIANT: tuple[Any, ...] = (
    ["auto", *VARIANTS],
    {
        "default": "auto",
        "tooltip": "Which model the VAE belongs to, where its file does not tell (SD1 and SDXL look alike). It decides which "
        "number formats are safe, and the scale of tiny VAEs.",
    },
)
DTYPE: tuple[Any, ...] = (
    list(DTYPES),
    {
        "default": "auto",
        "tooltip": "Number format of the weights. auto: what --fp16-vae and its kin ask for, else what is fast on the device and "
        "safe for the VAE: bf16 or fp16 to decode, fp32 to encode.",
    },
)


def names() -> list[str]:
    """What the loader offers: "<kind>/<file or folder>"."""
    found = [f"{kind}/{name}" for kind in host.KINDS for name in _files(kind)]
    return found + [f"{kind}/{name}" for kind in host.KINDS if kind != "checkpoints" for name in _folders(kind)]


def path_of(name: str) -> Path:
    """The file or folder that a name means. Raises CheckpointError if it is not there."""
    kind, _, inside = name.partition("/")
    if name in names():
        for root in host.roots(kind):
            path = root / inside
            if path.exists():
                return path
    raise CheckpointError(
        f"{name} is not in ComfyUI's model folders; choose one of: {', '.join(names()) or 'none is there'}"
    )


def _files(kind: str) -> list[str]:
    """Model files, but for those inside a diffusers folder and the encoder halves of pairs, which their decoders stand for."""
    listed = host.files(kind)
    folders = set(_folders(kind)) if kind != "checkpoints" else set()
    names = [name for name in listed if not any(str(parent) in folders for parent in PurePosixPath(name).parents)]
    present = {PurePosixPath(name).with_suffix("").as_posix() for name in names}
    return [name for name in names if not _is_second_half(PurePosixPath(name).with_suffix("").as_posix(), present)]


def _is_second_half(stem: str, present: set[str]) -> bool:
    head, mark, tail = stem.rpartition("encoder")
    return bool(mark) and f"{head}decoder{tail}" in present


def _folders(kind: str) -> list[str]:
    """Diffusers folders below the folders of a kind."""
    found: dict[str, None] = {}
    for root in host.roots(kind):
        for folder, inside, files in os.walk(root, followlinks=True):
            relative = Path(folder).relative_to(root).as_posix()
            if relative != "." and any(mark in files for mark in FOLDER_MARKS):
                found[relative] = None
                inside.clear()  # a pipeline's own parts are not offered beside it
    return list(found)


class ExactVAELoader:
    """A VAE from a file or folder, recognised by its tensors."""

    DESCRIPTION = (
        "Loads a VAE from any file of models/vae, models/vae_approx or a full checkpoint, or from a diffusers folder, and says "
        "what it recognised. The VAE works in every node that takes one, and decodes exactly there too."
    )
    SEARCH_ALIASES = ["load vae", "vae loader", "diffusers vae", "taesd"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("VAE", "STRING")
    RETURN_NAMES = ("vae", "description")
    OUTPUT_TOOLTIPS = ("The VAE.", "What was recognised, and why.")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae_name": (
                    names(),
                    {"tooltip": "A file, or a diffusers folder. Of a TAESD's two files, the decoder stands for both."},
                )
            },
            "optional": {"variant": VARIANT, "dtype": DTYPE},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, vae_name: str | None) -> bool | str:
        if vae_name is None or vae_name in names():
            return True
        return f"{vae_name!r} is not in ComfyUI's model folders; choose one of: {', '.join(names()) or 'none is there'}"

    @classmethod
    def IS_CHANGED(cls, vae_name: str, **inputs: Any) -> str:
        path = path_of(vae_name)
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        return ";".join(f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}" for file in files)

    def load(self, vae_name: str, variant: str = "auto", dtype: str = "auto") -> dict[str, Any]:
        opened = open_checkpoint(path_of(vae_name), variant=None if variant == "auto" else variant)
        vae = ExactVAE(opened, DTYPES[dtype])
        told = summary.of_loaded(opened, vae.hosted.vae)
        description = "\n".join([f"{told['title']}, {opened.layout}", *opened.why])
        return {"ui": {summary.KEY: [told]}, "result": (vae, description)}
