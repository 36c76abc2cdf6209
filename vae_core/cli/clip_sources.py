"""Videos, animations and folders of pictures to latents; frames are read as they are needed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from .. import VAE
from ..errors import InputError
from ..media import Source, open_source
from ..media.images import READABLE
from ..models import ClipModel
from .arguments import run_options
from .clip_outputs import refuse_blend
from .console import Console, Progress

VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".y4m")
"""Endings that mean a video in a folder; a file named outright may be of any format that FFmpeg knows."""

FRAMES_AT_ONCE = 4
"""A latent of most models; more would only be held."""


class ClipFacts(NamedTuple):
    """What there was to encode."""

    frames: int
    height: int
    width: int
    fps: Fraction | None


def is_picture(path: Path) -> bool:
    """True for a file of one picture; of an animation, only the head is looked at."""
    if path.is_dir() or path.suffix.lower() not in READABLE:
        return False
    with open_source(path) as source:
        return source.frames == 1 and source.fps is None


def refuse_video(vae: VAE, path: Path) -> None:
    """Raise `InputError` for a video where the VAE is for pictures."""
    if not vae.spec.clip and path.suffix.lower() in VIDEOS:
        raise InputError(
            f"{path}: is a video, and {vae.spec.title} encodes pictures; name a VAE of clips with --vae, or pictures"
        )


def is_picture_folder(folder: Path) -> bool:
    """True for a folder of pictures; raises `InputError` where it holds videos as well."""
    endings = {path.suffix.lower() for path in folder.iterdir() if not path.name.startswith(".")}
    if endings & {*READABLE} and endings & {*VIDEOS}:
        raise InputError(
            f"{folder}: holds pictures, which would be one clip, and videos; name the files, or give them apart"
        )
    return bool(endings & {*READABLE})


def encode_clip(
    vae: VAE, path: str | Path, options: argparse.Namespace, console: Console, fit: Literal["crop", "pad"]
) -> tuple[Tensor, ClipFacts]:
    """The raw latents `1 z t h w` of the clip at `path`, and what it is."""
    refuse_blend(options)
    alpha = vae.spec.pixel_channels == 4
    count = None
    if cast(ClipModel, vae.net).endless_chunks() is None:
        count = _counted(path)  # how the clip is cut depends on it, and what a video's file says of it may be wrong
    with open_source(path, alpha=alpha) as source:
        if source.has_alpha and not alpha:
            console.note(f"{path}: its transparency is not encoded, only its colours")
        frames = _Frames(source, count)
        with console.progress("encode", frames.__str__) as progress:
            told = _towards(progress, _operations(vae, source, count, options))
            made = vae.encode_frames(frames, count=count, **run_options(options), progress=told, fit=fit)
            raw = torch.cat([latents.cpu() for latents in made], dim=2)
        console.tell(vae.last_report)
        return raw, ClipFacts(count or frames.read, source.height, source.width, source.fps)


def _counted(path: str | Path) -> int:
    with open_source(path) as source:
        return sum(1 for _ in source)


def _operations(vae: VAE, source: Source, count: int | None, options: argparse.Namespace) -> int:
    """What encoding will take by all that is known beforehand; 0 where the length is not."""
    if not (frames := count or source.frames):
        return 0
    (step_h, step_w), (h, w) = vae.spec.multiple, (source.height, source.width)
    plan = vae.plan("encode", width=w + -w % step_w, height=h + -h % step_h, frames=frames, **run_options(options))
    return plan.operations


def _towards(progress: Progress | None, operations: int) -> Progress | None:
    """`progress` with at least so much to do in all: an encode that was told no length knows what has come so far."""
    if progress is None:
        return None
    return lambda done, total, info: progress(done, max(total, operations), info)


class _Frames:
    """The frames of a source, `c t h w`, as they are asked for; `count` is how many were there when they were counted."""

    def __init__(self, source: Source, count: int | None) -> None:
        self.source, self.count, self.read = source, count, 0

    def __str__(self) -> str:
        total = self.count or self.source.frames
        return f"frame {self.read}" + (f" of {total}" if total and total >= self.read else "")

    def __iter__(self) -> Iterator[Tensor]:
        while (frames := self.source.read(FRAMES_AT_ONCE)) is not None:
            self.read += frames.shape[1]
            yield frames
            del frames
        if self.count is not None and self.read < self.count:
            raise InputError(
                f"{self.source.path}: {self.count} frames were counted, and {self.read} came when they were read again; "
                "wait until the file is complete, and encode it anew"
            )
