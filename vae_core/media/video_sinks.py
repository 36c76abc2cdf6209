"""Frames out to files as they are decoded, with memory that does not grow with the clip.

    with open_sink("clip.mp4", fps=16) as sink:
        for frames in chunks:       # c t h w in [-1, 1]
            sink.write(frames)

| path | what it becomes |
|---|---|
| `.mp4` | h264, or h265 or av1 (`codec=`); 8-bit yuv420p, BT.709 |
| `.webm` | vp9, or av1; vp9 with alpha where the frames have four channels |
| `.webp` | animated WebP, with or without alpha; `quality=100` is lossless |
| `.gif` | 256 colours a frame |
| `.npy` | `t h w c`, float32 in [-1, 1], not clipped: the numbers as decoded |
| a folder | `000001.png`, `000002.png`, … in 8 bits; a path that ends in a slash, has no ending, or is a folder |
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..whole_files import check_target, whole
from .video_audio import check_audio_source
from .video_encoder import ALPHA_CODECS, CONTAINERS, Encoder, VideoWriter, find_encoder, padded, try_encoder
from .video_frames import frame_rate
from .video_writers import GIF_MIN_DELAY, GifWriter, NpyWriter, PngWriter, Size, WebpWriter, Writer

KINDS = ("mp4", "webm", "webp", "gif", "npy")
"""Endings of the files that are written; a folder of pictures is of the kind `png`."""

MAX_SIDE_PX = {"webp": 16_383, "gif": 65_535}
"""The formats store the sides in 14 and 16 bits; what a video encoder takes, it says itself."""

FRAME_NAME = re.compile(r"\d{6,}\.png")
"""Of the pictures in a folder; what has such a name is replaced when a folder is overwritten."""


class Target(NamedTuple):
    """What a clip becomes."""

    kind: str
    """`mp4`, `webm`, `webp`, `gif`, `npy`, or `png` for a folder."""
    width: int
    """As written, in pixels: one more than that of an odd frame where the codec takes only even ones."""
    height: int
    notes: tuple[str, ...]
    """Sentences that the user should see."""


@dataclass(frozen=True)
class Settings:
    """What was asked for, found to go together."""

    path: Path
    kind: str
    rate: Fraction
    encoder: Encoder | None
    crf: int | None
    quality: int
    audio_from: Path | None

    def target(self, size: Size) -> Target:
        """What frames of this size become; raises `InputError` where they cannot be written."""
        if size.channels not in (1, 3, 4) or min(size) < 1:
            raise InputError(
                f"{self.path}: frames have 1, 3 or 4 channels and a size, these are {tuple(size)} (c, h, w)"
            )
        if max(size.height, size.width) > MAX_SIDE_PX.get(self.kind, max(size)):
            raise InputError(f"{self.path}: a .{self.kind} holds at most {MAX_SIDE_PX[self.kind]} pixels a side")
        if size.channels == 4 and not self._holds_alpha():
            raise InputError(f"{self.path}: {self._name()} holds no transparency; write a .webm (vp9), .webp or PNGs")
        if self.encoder is None:
            return Target(self.kind, size.width, size.height, self._speed_note())
        try_encoder(self.path, self.encoder, size, self.rate, self.crf)
        height, width = padded(self.encoder, size.height, size.width)
        return Target(self.kind, width, height, _padding_note(self.path, self.encoder, size, height, width))

    def _holds_alpha(self) -> bool:
        return self.encoder.codec in ALPHA_CODECS if self.encoder else self.kind != "gif"

    def _name(self) -> str:
        return f"{self.encoder.codec} in .{self.kind}" if self.encoder else f"a .{self.kind}"

    def _speed_note(self) -> tuple[str, ...]:
        fastest = 100 // GIF_MIN_DELAY
        if self.kind != "gif" or self.rate <= fastest:
            return ()
        return (f"{self.path}: a GIF plays at most {fastest} frames a second, so this one is slower than asked for",)

    def writer(self, part: Path, size: Size) -> Writer:
        if self.encoder is not None:
            return VideoWriter(part, self.kind, self.encoder, size, self.rate, crf=self.crf, audio_from=self.audio_from)
        if self.kind == "webp":
            return WebpWriter(part, size, self.rate, self.quality)
        if self.kind == "gif":
            return GifWriter(part, size, self.rate)
        return NpyWriter(part, size) if self.kind == "npy" else PngWriter(part)


def _padding_note(path: Path, encoder: Encoder, size: Size, height: int, width: int) -> tuple[str, ...]:
    if (height, width) == (size.height, size.width):
        return ()
    return (
        f"{path}: {encoder.codec} takes even sides only, so the {size.width} × {size.height} frames "
        f"are written as {width} × {height}, their last column or row repeated; a .webm (vp9) keeps the size",
    )


def _settings(
    path: str | Path,
    fps: float | Fraction,
    codec: str | None,
    crf: int | None,
    quality: int,
    audio_from: str | Path | None,
) -> Settings:
    kind, rate = sink_kind(path), frame_rate(fps)
    path = Path(path)
    if not 1 <= quality <= 100:
        raise InputError(f"{path}: quality is from 1 to 100, not {quality}")
    if kind not in CONTAINERS:
        _refuse_video_options(path, codec, crf, audio_from)
        return Settings(path, kind, rate, None, None, quality, None)
    encoder = find_encoder(path, kind, codec)
    if crf is not None and not 0 <= crf <= encoder.max_crf:
        raise InputError(f"{path}: the crf of {encoder.codec} is from 0, the best, to {encoder.max_crf}, not {crf}")
    if audio_from is not None:
        audio_from = Path(audio_from)
        check_audio_source(audio_from)
    return Settings(path, kind, rate, encoder, crf, quality, audio_from)


def _refuse_video_options(path: Path, codec: str | None, crf: int | None, audio_from: str | Path | None) -> None:
    if audio_from is not None:
        raise InputError(f"{path}: holds no sound; write a .mp4 or .webm, or leave the sound out")
    if codec is not None or crf is not None:
        raise InputError(f"{path}: codec and crf belong to .mp4 and .webm; leave them out")


def sink_kind(path: str | Path) -> str:
    """The kind of file that `path` asks for, one of `KINDS`, or `png` for a folder; raises `InputError` for any other.

    A `Path` does not keep a slash at its end: for a new folder with a dot in its name, give the path as text.
    """
    text, path = os.fspath(path), Path(path)
    as_folder = text.endswith(("/", os.sep))
    kind = path.suffix.lower().removeprefix(".")
    if kind in KINDS and not as_folder:
        return kind
    if as_folder or not kind or path.is_dir():
        return "png"
    endings = ", ".join(f".{known}" for known in KINDS)
    raise InputError(f"{text}: clips are written as {endings} or into a folder, not as {path.suffix!r}")


def check_sink(
    path: str | Path,
    *,
    width: int,
    height: int,
    alpha: bool = False,
    fps: float | Fraction = 24,
    codec: str | None = None,
    crf: int | None = None,
    quality: int = 95,
    audio_from: str | Path | None = None,
    overwrite: bool = False,
) -> Target:
    """What `open_sink` with these arguments makes of frames of this size in pixels, with or without alpha.

    Raises as `open_sink` and its sink's first `write` do, so that a run of hours is not lost over a typing error.
    """
    settings = _settings(path, fps, codec, crf, quality, audio_from)
    if settings.kind == "png":
        check_folder(settings.path, overwrite=overwrite)
    else:
        check_target(settings.path, overwrite=overwrite)
    return settings.target(Size(4 if alpha else 3, height, width))


class Sink:
    """Takes the frames of one clip; made by `open_sink`."""

    def __init__(self, settings: Settings, part: Path) -> None:
        self.path, self.frames = settings.path, 0
        self._settings, self._part = settings, part
        self._writer: Writer | None = None
        self._size: Size | None = None
        self._notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that the user should see: padding, a rate that the format cannot hold, sound that ended early.

        Complete when the `with` block has ended.
        """
        return self._notes + (self._writer.notes if self._writer else ())

    def write(self, frames: Tensor) -> None:
        """Append frames `c t h w` in [-1, 1]; values beyond are clipped, except in .npy.

        Any float type, on any device. c is 1, 3, or 4 with alpha, whose -1 is transparent and 1 opaque. The first call
        fixes c, h and w. No frame is kept: memory is that of one frame, and what an encoder looks ahead.

        Raises `InputError` for other shapes, NaN, and frames that the format cannot hold.
        """
        if frames.ndim != 4 or not frames.is_floating_point():
            raise InputError(
                f"{self.path}: frames are c t h w of real numbers, not {tuple(frames.shape)} {frames.dtype}"
            )
        writer = self._writer_for(Size(frames.shape[0], *frames.shape[2:]))
        for frame in frames.detach().unbind(1):
            writer.add(self._finite(frame))
            self.frames += 1

    def _writer_for(self, size: Size) -> Writer:
        if self._writer is None:
            self._notes = self._settings.target(size).notes
            self._writer, self._size = self._settings.writer(self._part, size), size
        if size != self._size:
            raise InputError(f"{self.path}: frames of {size} after others of {self._size}")
        return self._writer

    def _finite(self, frame: Tensor) -> Tensor:
        frame = frame.float()
        if not torch.isfinite(frame).all():
            raise InputError(f"{self.path}: frame {self.frames + 1} holds NaN or infinity; decode in fp32")
        return frame

    def finish(self) -> None:
        """Complete the file; `open_sink` calls it."""
        if self._writer is None or not self.frames:
            raise InputError(f"{self.path}: no frame was written, and a clip has at least one")
        self._writer.finish()

    def close(self) -> None:
        """Let go of the file, complete or not; `open_sink` calls it."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def open_sink(
    path: str | Path,
    *,
    fps: float | Fraction,
    codec: str | None = None,
    crf: int | None = None,
    quality: int = 95,
    audio_from: str | Path | None = None,
    overwrite: bool = False,
) -> Iterator[Sink]:
    """Yield a `Sink` for the clip at `path`, which appears there, whole, when the block ends without an exception.

    Whatever interrupts the block, also Ctrl-C, leaves nothing behind; what was there before stays.

    Args:
        path: its ending gives the format; see the head of this module.
        fps: frames a second. Formats that count in steps (GIF hundredths of a second, WebP thousandths) vary the
            frames' lengths so that the clip keeps its own. Of no effect on .npy and PNGs.
        codec: of .mp4 (h264, h265, av1) and .webm (vp9, av1).
        crf: of those, constant rate factor: lower is better and larger; 18 for h264 unless given, others alike.
        quality: of .webp, 1 to 100; 100 is lossless.
        audio_from: a file whose sound goes beside the video, for .mp4 and .webm: copied where the container takes its
            codec, else encoded as AAC or Opus in mono or stereo; cut where the video ends. Without sound, nothing.
        overwrite: replace a file that exists. In a folder that holds files, the numbered PNGs are replaced, all of
            them, and anything else is left alone.

    Odd sides are padded to even ones for .mp4 and av1, by repeating the last row or column, and the sink's `notes`
    say so: nothing of the picture is lost, and h264 in yuv444p, the other way out, does not play in most browsers.

    Raises:
        InputError: a path, an option or frames that do not fit.
        MissingPackageError: .mp4 and .webm need PyAV.
    """
    settings = _settings(path, fps, codec, crf, quality, audio_from)
    with _place(settings, overwrite) as part:
        sink = Sink(settings, part)
        try:
            yield sink
            sink.finish()
        finally:
            sink.close()


def _place(settings: Settings, overwrite: bool) -> AbstractContextManager[Path]:
    return (whole_folder if settings.kind == "png" else whole)(settings.path, overwrite=overwrite)


def check_folder(path: Path, *, overwrite: bool = False) -> None:
    """Raise `InputError` if no clip can be written into the folder `path`: no such parent, a file, or files inside."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it, or name another")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise InputError(
            f"{path}: holds files already; name another, or let its numbered PNGs be overwritten (--force, overwrite=True)"
        )


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty hidden folder beside `path`; if the block succeeds, the pictures in it become those of `path`.

    Raises `InputError` as `check_folder` does, before the block and after it.
    """
    check_folder(path, overwrite=overwrite)
    part = path.absolute().parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir()
        yield part
        check_folder(path, overwrite=overwrite)
        if path.is_dir():
            _replace_frames(part, path)
        else:
            os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace_frames(part: Path, folder: Path) -> None:
    """Move the pictures over; those of an earlier, longer clip go, or they would be taken for the end of this one."""
    for old in folder.iterdir():
        if FRAME_NAME.fullmatch(old.name) and not (part / old.name).exists():
            old.unlink()
    for new in sorted(part.iterdir()):
        os.replace(new, folder / new.name)
