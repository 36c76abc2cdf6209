"""Sound beside a video that is being written: the audio streams of another file, copied where the container takes them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError
from .video_frames import av_package

PREROLL_SECONDS = Fraction(1, 10)
"""Packets so far before the first frame are kept: decoders need them to start cleanly (RFC 7845, section 4.6: 80 ms for
Opus; one frame, 21 to 48 ms, for AAC), and containers mark them as not to be heard."""

GAP_SECONDS = Fraction(1, 10)
"""A longer silence is kept as one; anything shorter is taken for inexact times."""

RATE_HZ = {"aac": (44_100, 48_000, 32_000, 24_000, 22_050, 16_000), "libopus": (48_000, 24_000, 16_000)}
"""Sample rates that the encoder keeps; any other becomes 48 kHz."""


def check_audio_source(path: Path) -> None:
    """Raise `InputError` if the file at `path` cannot be one that holds sound; one without sound is fine."""
    _opened(path).close()


def _opened(path: Path) -> Any:
    av = av_package(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file to take the sound from")
    try:
        return av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path}: the sound cannot be taken from it, it is no audio or video file ({error})"
        ) from error


class Track:
    """One audio stream of the source, read as the video advances and written beside it."""

    def __init__(self, source: Path, index: int, output: Any, *, copied: tuple[str, ...], encoder: str) -> None:
        self.source, self.output, self.av = source, output, av_package(source)
        self.input = _opened(source)
        self.stream = self.input.streams.audio[index]
        self.start = _start_seconds(self.input)
        self.note: str | None = None
        if self.stream.codec_context.name in copied:
            self.target = output.add_stream_from_template(self.stream)
            self.packets = self._copied()
        else:
            self.target = self._encoding(encoder)
            self.packets = self._encoded()
        self.waiting: Any = None

    def _encoding(self, encoder: str) -> Any:
        rate = self.stream.rate if self.stream.rate in RATE_HZ[encoder] else 48_000
        target = self.output.add_stream(encoder, rate=rate)
        target.layout = "mono" if self.stream.channels == 1 else "stereo"
        return target

    def _read(self) -> Iterator[Any]:
        """The packets of the source; where it is broken, they end."""
        try:
            yield from self.input.demux(self.stream)
        except self.av.FFmpegError as error:
            self.end(error)

    def _copied(self) -> Iterator[Any]:
        latest = None
        for packet in self._read():
            # The last one is empty; and no container takes times that do not rise.
            if packet.dts is not None and packet.pts is not None and (latest is None or packet.dts > latest):
                latest = packet.dts
                shift = round(self.start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = self.target
                yield packet

    def _encoded(self) -> Iterator[Any]:
        for frame in self._continuous(self._decoded()):
            yield from self.target.encode(frame)
        yield from self.target.encode(None)

    def _continuous(self, frames: Iterator[Any]) -> Iterator[Any]:
        """The frames from the first picture on, one right after the other unless there is a gap that can be heard.

        Times in files are often off by a few samples, and no encoder takes frames that overlap.
        """
        end = Fraction(0)
        for frame in frames:
            begin = end if frame.pts is None else frame.pts * frame.time_base - self.start
            if abs(begin - end) < GAP_SECONDS or begin < end:
                begin = end if end else begin
            end = begin + Fraction(frame.samples, frame.sample_rate)
            frame.time_base = Fraction(1, frame.sample_rate)
            frame.pts = round(begin / frame.time_base)
            if end > 0:
                yield frame

    def _decoded(self) -> Iterator[Any]:
        try:
            for packet in self._read():
                yield from packet.decode()
        except self.av.FFmpegError as error:
            self.end(error)

    def advance(self, until: Fraction) -> None:
        """Write what begins before `until`, in seconds from the first frame."""
        while (packet := self.waiting or next(self.packets, None)) is not None:
            begins = packet.pts * packet.time_base
            if begins >= until:
                self.waiting = packet
                return
            self.waiting = None
            if begins >= -PREROLL_SECONDS:
                self._write(packet)

    def _write(self, packet: Any) -> None:
        try:
            self.output.mux(packet)
        except self.av.FFmpegError as error:
            if error.errno != errno.EINVAL:  # a full disk, and the like, is no fault of the sound
                raise
            self.end(error)
            self.packets = iter(())

    def end(self, error: Exception) -> None:
        """The sound is over, and the video goes on: it is worth more."""
        self.note = f"{self.source}: its sound cannot be used to the end, and the rest is silent ({error})"

    def close(self) -> None:
        self.input.close()


def _start_seconds(container: Any) -> Fraction:
    """When the source's first frame is shown, on the clock of its packets; 0 in most files, 1.4 s in many streams."""
    for stream in container.streams.video:
        if stream.start_time is not None:
            return stream.start_time * stream.time_base
    return Fraction(0)


class Soundtrack:
    """Every audio stream of `source`, or nothing where it has none; add it before the first frame is written.

    Cut where the video ends, to one packet: 20 to 30 ms.
    """

    def __init__(self, source: Path, output: Any, *, copied: tuple[str, ...], encoder: str) -> None:
        with _opened(source) as container:
            count = len(container.streams.audio)
        self.tracks: list[Track] = []
        with ExitStack() as opened:
            opened.callback(self.close)
            for index in range(count):
                self.tracks.append(Track(source, index, output, copied=copied, encoder=encoder))
            opened.pop_all()

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(track.note for track in self.tracks if track.note)

    def advance(self, until: Fraction) -> None:
        for track in self.tracks:
            track.advance(until)

    def close(self) -> None:
        for track in self.tracks:
            track.close()
