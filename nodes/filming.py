"""A clip decoded straight into a video file, or encoded straight from one, for a node: frames pass through, and none is kept."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..vae_core import VAE
from ..vae_core.media import Sink, Source, check_sink, open_sink, open_source
from . import host, summary
from .conventions import (
    FRAMES_AT_ONCE,
    Original,
    latent_channels,
    noted,
    original_of,
    pieces_of,
    samples_of,
    to_image,
    with_the_axes_of,
)
from .hosted import WHOLE, Adopted, Hosted, Shape
from .mishaps import latent_kept
from .resuming import Resumable
from .running import (
    Asked,
    connected,
    encoded,
    in_precision,
    notes_on,
    notes_on_pixels,
    one_batch,
    told_of_core,
)
from .sound import audio_of, write_wav
from .summary import Job
from .watch import Watch, decoding

Outputs = Literal["video", "images", "both"]

NOT_ASKED_FOR = "the clip is not asked for as {}; set `outputs` to {} or to both"
FINISHED_BEFORE = {"rung": "finished before", "exact": True}
"""What the panel shows of a decode that was interrupted when only its file was not whole."""
NO_RATE = "images have no frame rate; connect a video, or write the number yourself"


class Codec(NamedTuple):
    container: str
    codec: str


FORMATS = {
    "mp4 (h264)": Codec("mp4", "h264"),
    "mp4 (h265)": Codec("mp4", "h265"),
    "mp4 (av1)": Codec("mp4", "av1"),
    "webm (vp9)": Codec("webm", "vp9"),
    "webm (av1)": Codec("webm", "av1"),
}


@dataclass(frozen=True)
class Film:
    """What a clip is to become."""

    outputs: Outputs = "video"
    fps: float = 16.0
    format: str = "mp4 (h264)"
    crf: int | None = None
    audio: Mapping[str, Any] | None = None
    resume: bool = True

    @property
    def as_video(self) -> bool:
        return self.outputs != "images"

    @property
    def as_images(self) -> bool:
        return self.outputs != "video"

    def options(self) -> dict[str, Any]:
        """Of `open_sink`."""
        return {"fps": self.fps, "codec": FORMATS[self.format].codec, "crf": self.crf}


class Made(NamedTuple):
    file: Path | None
    image: Tensor | None
    frames: int
    size: tuple[int, int]
    """(h, w) in pixels."""
    notes: tuple[str, ...]

    @property
    def job(self) -> Job:
        return Job("decode", self.size[1], self.size[0], 1, self.frames)


# --- latents → a video file ---------------------------------------------------------------------------------------------


def filmed(adopted: Adopted, core: Any, latent: Mapping[str, Any], asked: Asked, film: Film) -> dict[str, Any]:
    """A LATENT → VIDEO and IMAGE, as a node returns them."""
    samples = samples_of(latent)
    with latent_kept(samples, asked.prompt, asked.workflow):
        found = connected(adopted, core)
        if isinstance(found, str):
            return _filmed_by_core(core, samples, asked, film, found)
        vae, original = found[0].vae, original_of(found[0].vae, latent)
        notes, clip = notes_on(vae, samples) if vae.spec.clip else [], as_frames(vae, samples)
        _check(found[0], clip, original, film)
        hosted, patcher = in_precision(*found, "decode", asked.precision)
        started, resumable = time.perf_counter(), Resumable() if film.resume else None
        watched = decoding(asked.node_id, newest=True)
        with closing(hosted.frames(clip, patcher, asked.how, watched, original, resumable)) as pieces:
            made = _made(pieces, hosted.frames_in_all(clip, original), film)
        seconds, report = time.perf_counter() - started, hosted.vae.last_report
        told = summary.of_run(hosted.vae, made.job, report, seconds, [*notes, *made.notes])
        if resumable is not None:
            told |= {"events": resumable.shortened(told["events"])}
            resumable.forget()
        return _result(made, film, told if report is not None else told | FINISHED_BEFORE)


def as_frames(vae: VAE, samples: Tensor) -> Tensor:
    """A LATENT's samples as the VAE takes them, where their channels fit; to one for pictures each latent of a video is a frame."""
    if samples.ndim == 5 and not vae.spec.clip and samples.shape[1] == latent_channels(vae):
        return samples.movedim(2, 1).flatten(0, 1)
    return with_the_axes_of(vae, samples)


def _check(hosted: Hosted, clip: Tensor, original: Original, film: Film) -> None:
    """Raises InputError for what will not work, before weights are converted or moved and hours have gone by."""
    outline, spec = hosted.outline(clip), hosted.vae.spec
    if film.as_video:
        height, width = original.size or (outline.shape[-2] * spec.scale.h, outline.shape[-1] * spec.scale.w)
        check_sink(_new_file(film), height=height, width=width, alpha=spec.pixel_channels == 4, **film.options())


def _made(pieces: Iterator[Tensor], count: int, film: Film) -> Made:
    """Frames, pieces `c t h w`, as the file, the IMAGE, or both."""
    with ExitStack() as opened:
        sink = opened.enter_context(_sink(film)) if film.as_video else None
        passing = _Passing(pieces, sink)
        image = to_image(passing, count, host.result_device()) if film.as_images else passing.exhausted()
    notes = () if sink is None else tuple(note.removeprefix(f"{sink.path}: ") for note in sink.notes)
    return Made(sink and sink.path, image, passing.frames, passing.size, notes)


class _Passing:
    """Frames on their way, into a file as well."""

    def __init__(self, pieces: Iterator[Tensor], sink: Sink | None):
        self.pieces, self.sink = pieces, sink
        self.frames, self.size = 0, (0, 0)

    def __iter__(self) -> Iterator[Tensor]:
        for piece in self.pieces:
            host.raise_if_interrupted()
            if self.sink is not None:
                self.sink.write(piece)
            self.frames, self.size = self.frames + piece.shape[1], (piece.shape[2], piece.shape[3])
            yield piece

    def exhausted(self) -> None:
        for _ in self:
            pass


def _new_file(film: Film) -> Path:
    return host.temporary_folder() / f"exact_vae_{secrets.token_hex(8)}.{FORMATS[film.format].container}"


@contextmanager
def _sink(film: Film) -> Iterator[Sink]:
    """A new file in ComfyUI's temporary folder, which has its name only when it is whole."""
    file = _new_file(film)
    sound = None if film.audio is None else file.with_suffix(".wav")
    try:
        if sound is not None and film.audio is not None:
            write_wav(sound, film.audio)
        with open_sink(file, **film.options(), audio_from=sound) as sink:
            yield sink
    finally:
        if sound is not None:
            sound.unlink(missing_ok=True)


def _result(made: Made, film: Film, told: Mapping[str, Any]) -> dict[str, Any]:
    video = host.blocked(NOT_ASKED_FOR.format("a video", "video")) if made.file is None else host.video(made.file)
    image = host.blocked(NOT_ASKED_FOR.format("images", "images")) if made.image is None else made.image
    return {"ui": {summary.KEY: [told]}, "result": (video, image)}


def _filmed_by_core(core: Any, samples: Tensor, asked: Asked, film: Film, why: str) -> dict[str, Any]:
    """By a VAE that ComfyUI runs itself: it has the whole clip in memory."""
    started = time.perf_counter()
    image = one_batch(core.decode(samples))
    made = _made(pieces_of(image, image.shape[-1]), len(image), film)
    told = told_of_core(core, made.job, started, False, why, asked)
    return _result(made._replace(image=image if film.as_images else None), film, told)


# --- a video → latents --------------------------------------------------------------------------------------------------


def unfilmed(adopted: Adopted, core: Any, images: Tensor | None, video: Any, asked: Asked) -> dict[str, Any]:
    """IMAGE or VIDEO → LATENT, frames a second and AUDIO, as a node returns them."""
    if (images is None) == (video is None):
        raise ValueError("connect either images or a video: one of them is what is encoded")
    if images is not None:
        return _with_sound(encoded(adopted, core, images, None, asked), host.blocked(NO_RATE), None)
    found = connected(adopted, core)
    with _file_of(video) as file:
        if file is None or isinstance(found, str):
            image, audio, fps = host.components_of(video)
            return _with_sound(encoded(adopted, core, image, None, asked), fps, audio)
        hosted, patcher = in_precision(*found, "encode", asked.precision)
        return _encoded_file(hosted, patcher, file, asked)


def _with_sound(result: dict[str, Any], fps: Any, audio: Any) -> dict[str, Any]:
    return result | {"result": (*result["result"], fps, audio)}


@contextmanager
def _file_of(video: Any) -> Iterator[Path | None]:
    """The file that a VIDEO is; None where it is not one, or not all of one."""
    source = host.source_of(video)
    if source is None or isinstance(source, str):
        yield None if source is None else Path(source)
        return
    file = host.temporary_folder() / f"exact_vae_{secrets.token_hex(8)}.video"
    try:
        with file.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        yield file
    finally:
        file.unlink(missing_ok=True)


def _encoded_file(hosted: Hosted, patcher: Any, file: Path, asked: Asked) -> dict[str, Any]:
    started, alpha = time.perf_counter(), hosted.vae.spec.pixel_channels == 4
    count = _counted(file)
    with open_source(file, alpha=alpha) as source:
        shape = Shape(count, source.height, source.width)
        watch = Watch(asked.node_id, frames=count)
        samples = hosted.encode_clip(_read(source), patcher, asked.how, watch, asked.fit, shape)
        fps = 0.0 if source.fps is None else float(source.fps)
        audio = audio_of(file) if source.has_audio else None
    original = Original((shape.height, shape.width), count) if asked.fit == "pad" else WHOLE
    job = Job("encode", shape.width, shape.height, 1, count)
    notes = notes_on_pixels(hosted.vae, job, samples, asked.fit)
    told = summary.of_run(hosted.vae, job, hosted.vae.last_report, time.perf_counter() - started, notes)
    return {"ui": {summary.KEY: [told]}, "result": (noted(hosted.vae, samples, original), fps, audio)}


def _read(source: Source) -> Iterator[Tensor]:
    while (piece := source.read(FRAMES_AT_ONCE)) is not None:
        yield piece


def _counted(file: Path) -> int:
    """How many frames a video has. What files say of it themselves is wrong where they were cut without being encoded anew."""
    count = 0
    with open_source(file) as source:
        for piece in _read(source):
            host.raise_if_interrupted()
            count += piece.shape[1]
    return count
