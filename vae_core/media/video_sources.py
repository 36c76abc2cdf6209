"""Frames in from a video file, an animation or a folder of pictures, some at a time.

with open_source("clip.mp4") as source:
    while (frames := source.read(8)) is not None:       # c t h w in [-1, 1], at most 8 frames
        ...

A GIF or WebM that was cut off may read as a shorter clip: nothing in it says how long it was.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .images import READABLE, read_image
from .video_decoder import open_video
from .video_frames import Facts, to_pixels

ANIMATED = (".webp", ".gif", ".png")
"""Endings of pictures that may hold several frames which follow each other; those of a .tif are pages."""


class Source:
    """The frames of one clip, in order and once; made by `open_source`."""

    def __init__(self, path: Path, facts: Facts, frames: Iterator[Tensor]) -> None:
        self.path = path
        self.fps, self.height, self.width, self.frames, self.has_audio, self.has_alpha = facts
        self._frames = frames

    def __iter__(self) -> Iterator[Tensor]:
        """The frames that have not been read yet, one at a time, as `c 1 h w`."""
        while (frame := self.read(1)) is not None:
            yield frame

    def read(self, count: int) -> Tensor | None:
        """The next frames `c t h w`, float32 in [-1, 1]: t is `count`, less at the end; None after it.

        Raises `InputError` where the file turns out to be broken, or its frames to differ in size.
        """
        if count < 1:
            raise InputError(f"{self.path}: at least one frame can be read at a time, not {count}")
        frames = list(islice(self._frames, count))
        return torch.stack(frames, dim=1) if frames else None


@contextmanager
def open_source(path: str | Path, *, alpha: bool = False) -> Iterator[Source]:
    """Yield a `Source` of the frames at `path`.

    Args:
        path: a file of any video format that FFmpeg reads; an animated WebP, GIF or PNG, or a single picture; or a
            folder of pictures of one size, in the order of their names, with numbers by value: 2 before 10.
        alpha: frames have four channels, the fourth -1 where transparent and 1 where opaque (everywhere, in a file
            without transparency). Otherwise three, and what is transparent has the colour that the file stores for it.

    Frames are read as they are asked for, and none is kept. `fps` is None for pictures, which say nothing of time.

    Raises:
        InputError: no such file, none that can be read, or pictures of different sizes.
        MissingPackageError: video files need PyAV.
    """
    path = Path(path)
    with _opened(path, alpha) as (facts, frames):
        yield Source(path, facts, frames)


def _opened(path: Path, alpha: bool) -> AbstractContextManager[tuple[Facts, Iterator[Tensor]]]:
    if path.is_dir():
        return _open_folder(path, alpha)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix.lower() not in READABLE:
        return open_video(path, alpha=alpha)
    return _open_animation(path, alpha) if _is_animated(path) else _open_pictures([path], alpha)


@contextmanager
def _sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow's readers raise whatever their parsing trips over
        raise InputError(f"{path}: not a picture that can be read ({error})") from error


def _is_animated(path: Path) -> bool:
    if path.suffix.lower() not in ANIMATED:
        return False
    with _sentence(path), Image.open(path) as image:
        image.load()  # only then does a WebP say how long its frame is shown
        return getattr(image, "n_frames", 1) > 1 or image.info.get("duration", 0) > 0


@contextmanager
def _open_animation(path: Path, alpha: bool) -> Iterator[tuple[Facts, Iterator[Tensor]]]:
    with _sentence(path):
        image: Any = Image.open(path)
    with image:
        with _sentence(path):
            # A pass of its own: the average rate is known only after the last frame.
            seen = [(frame.info.get("duration", 0), frame.has_transparency_data) for frame in _each(image)]
        fps = _average_rate(len(seen), round(sum(ms for ms, _ in seen)), 10 if image.format == "GIF" else 1)
        has_alpha = any(transparent for _, transparent in seen)
        facts = Facts(fps, image.height, image.width, len(seen), has_audio=False, has_alpha=has_alpha)
        yield facts, _animation_frames(path, image, alpha)


def _each(image: Any) -> Iterator[Any]:
    """The animation itself, at each of its frames, whole and decoded."""
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        image.load()
        yield image


def _average_rate(count: int, total_ms: int, unit_ms: int) -> Fraction | None:
    """Frames a second: a whole number, if one of that many frames lasts `total_ms` after rounding to the unit."""
    if total_ms <= 0:
        return None
    whole = max(round(1000 * count / total_ms), 1)
    fits = abs(1000 * count / whole - total_ms) <= unit_ms / 2
    return Fraction(whole) if fits else Fraction(1000 * count, total_ms)


def _animation_frames(path: Path, image: Any, alpha: bool) -> Iterator[Tensor]:
    with _sentence(path):
        for frame in _each(image):
            yield to_pixels(np.array(frame.convert("RGBA" if alpha else "RGB")))


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """A key that sorts names with numbers by value: `frame2.png` before `frame10.png`."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def _open_folder(folder: Path, alpha: bool) -> AbstractContextManager[tuple[Facts, Iterator[Tensor]]]:
    files = [path for path in folder.iterdir() if path.suffix.lower() in READABLE and not path.name.startswith(".")]
    if not files:
        raise InputError(f"{folder}: holds no pictures ({', '.join(READABLE)})")
    return _open_pictures(sorted(files, key=natural_order), alpha)


@contextmanager
def _open_pictures(files: list[Path], alpha: bool) -> Iterator[tuple[Facts, Iterator[Tensor]]]:
    has_alpha = _check_alike(files)
    height, width = read_image(files[0]).pixels.shape[2:]
    facts = Facts(None, height, width, len(files), has_audio=False, has_alpha=has_alpha)
    yield facts, (_picture(path, (height, width), alpha) for path in files)


def _check_alike(files: list[Path]) -> bool:
    """Raise `InputError` if one picture's size is not that of the most, before any is decoded; True if one has alpha.

    Only heads are read. Those of cameras may store a picture on its side, so that here its sides are in any order.
    """
    sides, has_alpha = {}, False
    for path in files:
        with _sentence(path), Image.open(path) as image:
            sides[path] = tuple(sorted(image.size))
            has_alpha = has_alpha or image.has_transparency_data
    usual = Counter(sides.values()).most_common(1)[0][0]
    for path, found in sides.items():
        if found != usual:
            raise InputError(_odd_one(path, found, usual))
    return has_alpha


def _odd_one(path: Path, found: tuple[int, ...], usual: tuple[int, ...]) -> str:
    sizes = f"has {found[0]} × {found[1]} pixels, the others {usual[0]} × {usual[1]}"
    return f"{path}: {sizes}; all pictures of a clip must have the same size"


def _picture(path: Path, size: tuple[int, int], alpha: bool) -> Tensor:
    """`c h w`, float32 in [-1, 1], c = 3, or 4 with alpha."""
    picture = read_image(path)
    height, width = picture.pixels.shape[2:]
    if (height, width) != size:
        raise InputError(_odd_one(path, (width, height), size[::-1]))
    if not alpha:
        return picture.pixels[0]
    opacity = torch.ones(1, 1, height, width) if picture.alpha is None else picture.alpha
    return torch.cat([picture.pixels, opacity * 2 - 1], dim=1)[0]
