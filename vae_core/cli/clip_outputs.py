"""Latents to a clip's file or folder, chunk by chunk: no more of the clip is held than what was decoded last."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from glob import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import VAE, ExactVAEError
from ..errors import InputError
from ..media import Sink, check_sink, numbered, open_sink
from ..media.video_sinks import KINDS, sink_kind
from ..resume import forget, frames_kept
from .arguments import run_options
from .console import Console
from .jobs import Job

ENDINGS = tuple(f".{kind}" for kind in KINDS)
TIMELESS = ("npy", "png")
"""Kinds that hold no frames a second."""

DEFAULT_FPS = Fraction(16)
"""Of Wan 2.1, for latents that say nothing: README.md of Wan-Video/Wan2.1, sample_fps in wan/configs/shared_config.py."""

PART = ".????????.part"
"""What whole_files.py and video_sinks.py put behind the names of files that are not whole yet."""


@dataclass(frozen=True)
class ClipOutput:
    """One clip's file or folder, and how it is written."""

    path: str
    """With a slash at the end if it is a folder."""
    width: int
    height: int
    fps: Fraction
    how: dict[str, Any]
    """The other arguments of `check_sink` and `open_sink`."""

    @property
    def kind(self) -> str:
        return sink_kind(self.path)

    def checked(self, *, alpha: bool) -> ClipOutput:
        """With the size that the file will have; raises `InputError` where it cannot be written."""
        target = check_sink(self.path, width=self.width, height=self.height, alpha=alpha, fps=self.fps, **self.how)
        return replace(self, width=target.width, height=target.height)

    def opened(self) -> AbstractContextManager[Sink]:
        return open_sink(self.path, fps=self.fps, **self.how)

    def described(self, frames: int) -> str:
        rate = "" if self.kind in TIMELESS else f" at {float(self.fps):g} a second"
        return f"{frames} {'frame' if frames == 1 else 'frames'} of {self.width}×{self.height} px{rate}"

    def to_dict(self, frames: int) -> dict[str, Any]:
        """Plain values, for JSON."""
        fps = None if self.kind in TIMELESS else float(self.fps)
        return {"width": self.width, "height": self.height, "frames": frames, "fps": fps}


def clip_paths(job: Job, count: int, frames: int) -> list[str]:
    """Where `count` clips of so many frames go: files, or folders, with a slash at the end."""
    ending = job.target.suffix.lower()
    if ending in ENDINGS:
        return [str(path) for path in numbered(job.target, count)]
    if job.folder is None or ending != ".png":
        raise InputError(
            f"{job.target}: holds one picture, and {job.source} {frames} frames; name a {', '.join(ENDINGS)} or a folder"
        )
    return [f"{path}/" for path in numbered(job.folder, count)]


def how_written(options: argparse.Namespace, audio: str | Path | None) -> dict[str, Any]:
    """What `ClipOutput.how` is."""
    return {
        "codec": options.codec,
        "crf": options.crf,
        "quality": options.quality,
        "audio_from": audio,
        "overwrite": options.force,
    }


def refuse_clip_options(options: argparse.Namespace, target: Path) -> None:
    """Raise `InputError` for options that say how a clip is written, where a picture is."""
    names = ("fps", "codec", "crf", "audio", "resume")
    if given := [f"--{name}" for name in names if getattr(options, name, None) not in (None, False)]:
        raise InputError(
            f"{target}: is a picture, and {', '.join(given)} belong to clips; leave that out, or name a .mp4"
        )


def refuse_blend(options: argparse.Namespace) -> None:
    """Raise `InputError` where a clip was to be blended: that would take all of its frames at once."""
    if options.mode == "blend":
        raise InputError(
            "--mode blend is for pictures, clips go through in chunks; leave it out, all modes are exact then"
        )


class Watch:
    """How far the decode of a clip is."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.taken_over: int | None = None
        """Frames that were there before anything was computed."""

    def __str__(self) -> str:
        return f"frame {min(self.done + 1, self.total)} of {self.total}"

    def started(self) -> None:
        if self.taken_over is None:
            self.taken_over = self.done


Through = Callable[[Iterator[Tensor]], Iterator[Tensor]]


def write_clips(
    vae: VAE,
    latents: Tensor,
    outputs: Sequence[ClipOutput],
    options: argparse.Namespace,
    console: Console,
    *,
    size: tuple[int, int] | None,
    frames: int,
    resume: Path | None = None,
    through: Through = iter,
) -> None:
    """Decode raw latents, the first `frames` of each clip, cropped to `size` (h, w), into the outputs, one for each clip.

    `resume` is the folder that keeps finished chunks until the outputs are whole; `through` is given the chunks
    `b c t h w` on their way. The report is in `vae.last_report`.
    """
    watch = Watch(frames)
    if resume is not None and resume.is_dir():
        _sweep(outputs)
    with _going_on_later(resume, watch, console), ExitStack() as stack:
        sinks = [stack.enter_context(output.opened()) for output in outputs]
        with console.progress("decode", watch.__str__) as progress:

            def told(done: int, total: int, info: Any) -> None:
                watch.started()
                if progress is not None:
                    progress(done, total, info)

            made = vae.decode_frames(
                latents, **run_options(options), progress=told, size=size, frames=frames, resume=resume
            )
            for pixels in through(made):
                _write(sinks, pixels)
                watch.done += pixels.shape[2]
                del pixels  # or it would be held while the next chunk is decoded
    watch.started()
    if watch.taken_over:
        console.note(f"{watch.taken_over} of {watch.total} frames are those of the run that was stopped")
    console.tell(vae.last_report)
    for sink in sinks:
        for note in sink.notes:
            console.note(note)
    if resume is not None:
        forget(resume)


def _write(sinks: Sequence[Sink], pixels: Tensor) -> None:
    """Without an output, chunks are only looked at."""
    for sink, clip in zip(sinks, pixels, strict=False):
        sink.write(clip)


@contextmanager
def _going_on_later(resume: Path | None, watch: Watch, console: Console) -> Iterator[None]:
    """Where a run ends before it is done, say that its work is kept."""
    try:
        yield
    except KeyboardInterrupt:
        kept = _kept(resume, watch)
        raise KeyboardInterrupt(f"stopped; {kept}" if kept else "stopped") from None
    except (ExactVAEError, OSError):
        if kept := _kept(resume, watch):
            console.note(kept)
        raise


def _kept(resume: Path | None, watch: Watch) -> str:
    """Read from the folder: a chunk is there before it has reached the outputs."""
    frames = 0 if resume is None else min(frames_kept(resume), watch.total)
    if not frames:
        return ""
    return f"{frames} of {watch.total} frames are kept in {resume}, and the same command with --resume goes on"


def _sweep(outputs: Sequence[ClipOutput]) -> None:
    """Delete the unfinished files of a run that was killed, which are of no use: the folder of its chunks is."""
    for output in outputs:
        path = Path(output.path)
        stem, suffix = (path.name, "") if output.kind == "png" else (path.stem, path.suffix)
        name = f".{escape(stem)}{PART}{escape(suffix)}"
        for part in path.absolute().parent.glob(name):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
