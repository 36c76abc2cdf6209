"""Sound beside a clip: copied or encoded anew, in time with the pictures, cut where they end."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from vae_core.errors import InputError
from vae_core.media import open_sink, open_source

av: Any = pytest.importorskip("av")

LOUD_AT = 1.0
"""When the tone becomes loud, in seconds."""


def with_tone(
    path: Path, codec: str, *, rate: int = 48_000, layout: str = "stereo", video: str | None = "libx264"
) -> Path:
    """A file of 2 s with a sine of 440 Hz that becomes loud after the first, and black frames at 10 a second."""
    with av.open(str(path), "w") as container:
        if video:
            stream = container.add_stream(video, rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream(codec, rate=rate)
        sound.layout = layout
        if video:
            for i in range(20):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        seconds = np.arange(2 * rate) / rate
        wave = np.where(seconds < LOUD_AT, 0.1, 0.5) * np.sin(2 * np.pi * 440 * seconds)
        for at in range(0, len(wave), 1024):
            samples = np.tile(wave[at : at + 1024].astype(np.float32), (1 if layout == "mono" else 2, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


class Heard(NamedTuple):
    codec: str
    seconds: float
    loud_at: float
    """Seconds from the first picture."""


def listen(path: Path) -> list[Heard]:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        begin = float(video.start_time * video.time_base)
        count = len(container.streams.audio)
    return [listen_to(path, index, begin) for index in range(count)]


def listen_to(path: Path, index: int, begin: float) -> Heard:
    with av.open(str(path)) as container:
        stream = container.streams.audio[index]
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
        first, samples = None, []
        for frame in container.decode(stream):
            first = float(frame.pts * frame.time_base) - begin if first is None else first
            samples += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        wave = np.concatenate(samples)
        assert first is not None
        loud = int(np.argmax(np.abs(wave) > 0.3))
        return Heard(stream.codec_context.name, len(wave) / stream.rate, first + loud / stream.rate)


def write(path: Path, source: Path, frames: int = 15) -> tuple[str, ...]:
    with open_sink(path, fps=10, audio_from=source) as sink:
        for _ in range(frames):
            sink.write(torch.zeros(3, 1, 32, 32))
    return sink.notes


@pytest.mark.parametrize(
    ("source", "codec", "options", "target", "expected"),
    [
        ("a.mp4", "aac", {}, "clip.mp4", "aac"),
        ("a.mkv", "libmp3lame", {}, "clip.mp4", "mp3float"),
        ("a.webm", "libopus", {"video": "libvpx-vp9"}, "clip.mp4", "opus"),
        ("a.webm", "libopus", {"video": "libvpx-vp9"}, "clip.webm", "opus"),
        ("a.m4a", "aac", {"video": None}, "clip.mp4", "aac"),
        ("a.ts", "aac", {}, "clip.mp4", "aac"),  # its clock does not begin at 0
        ("a.mp4", "aac", {}, "clip.webm", "opus"),
        ("a.ts", "aac", {}, "clip.webm", "opus"),
        ("a.wav", "pcm_s16le", {"video": None}, "clip.mp4", "aac"),
        ("a.mkv", "pcm_s16le", {"rate": 44_100, "layout": "mono"}, "clip.webm", "opus"),
        ("a.mkv", "pcm_s16le", {"rate": 11_025, "layout": "mono"}, "clip.mp4", "aac"),
    ],
)
def test_sound_is_in_time_and_cut(tmp_path, source, codec, options, target, expected):
    assert write(tmp_path / target, with_tone(tmp_path / source, codec, **options)) == ()
    (heard,) = listen(tmp_path / target)
    assert heard.codec == expected
    assert abs(heard.loud_at - LOUD_AT) < 0.03  # a packet is 20 to 26 ms
    assert 1.45 < heard.seconds < 1.56
    with open_source(tmp_path / target) as clip:
        assert clip.has_audio and clip.fps == 10
        frames = clip.read(100)
    assert frames is not None and frames.shape[1] == 15


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def test_what_is_copied_is_not_encoded_again(tmp_path):
    source = with_tone(tmp_path / "a.mp4", "aac")
    write(tmp_path / "clip.mp4", source)
    copied = packets(tmp_path / "clip.mp4")
    assert 70 <= len(copied) <= 73 and copied == packets(source)[: len(copied)]  # 1.5 s of 1024 samples, and one ahead


def test_sound_shorter_than_the_clip(tmp_path):
    write(tmp_path / "clip.mp4", with_tone(tmp_path / "a.mp4", "aac"), frames=30)
    (heard,) = listen(tmp_path / "clip.mp4")
    assert 1.95 < heard.seconds < 2.06


def test_two_tracks(tmp_path):
    with av.open(str(with_tone(tmp_path / "one.mp4", "aac"))) as one, av.open(str(tmp_path / "two.mkv"), "w") as two:
        source = one.streams.audio[0]
        targets = [two.add_stream_from_template(source) for _ in range(2)]
        for packet in list(one.demux(source)):
            for target in targets if packet.dts is not None else []:
                packet.stream = target
                two.mux(packet)
    write(tmp_path / "clip.mp4", tmp_path / "two.mkv")
    assert len(listen(tmp_path / "clip.mp4")) == 2


def test_a_source_without_sound(tmp_path):
    with open_sink(tmp_path / "silent.mp4", fps=10) as sink:
        sink.write(torch.zeros(3, 2, 32, 32))
    assert write(tmp_path / "clip.mp4", tmp_path / "silent.mp4") == ()
    with open_source(tmp_path / "clip.mp4") as clip:
        assert not clip.has_audio


def test_a_source_that_is_none(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to be heard")
    with pytest.raises(InputError, match=r"notes\.txt.*sound"):
        write(tmp_path / "clip.mp4", tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("target", ["clip.mp4", "clip.webm"])
def test_sound_that_breaks_off_does_not_cost_the_video(tmp_path, monkeypatch, target):
    from vae_core.media.video_audio import Track

    def broken(track: Track) -> Any:
        for number, packet in enumerate(track.input.demux(track.stream)):
            if number == 30:
                track.end(av.error.InvalidDataError(1, "broken"))
                return
            yield packet

    monkeypatch.setattr(Track, "_read", broken)
    (note,) = write(tmp_path / target, with_tone(tmp_path / "a.mp4", "aac"))
    assert "a.mp4" in note and "silent" in note
    with open_source(tmp_path / target) as clip:
        frames = clip.read(100)
    assert frames is not None and frames.shape[1] == 15


def test_a_packet_that_the_container_refuses_ends_the_sound(tmp_path, monkeypatch):
    from vae_core.media.video_audio import Track

    copied = Track._copied

    def backwards(track: Track) -> Any:
        for number, packet in enumerate(copied(track)):
            if number == 30:
                packet.pts = packet.dts = 0
            yield packet

    monkeypatch.setattr(Track, "_copied", backwards)
    (note,) = write(tmp_path / "clip.mp4", with_tone(tmp_path / "a.mp4", "aac"))
    assert "a.mp4" in note
    assert listen(tmp_path / "clip.mp4")[0].seconds < 0.7


def test_a_failure_lets_go_of_the_source(tmp_path):
    source = with_tone(tmp_path / "a.mp4", "aac")
    with pytest.raises(RuntimeError), open_sink(tmp_path / "clip.mp4", fps=10, audio_from=source) as sink:
        sink.write(torch.zeros(3, 3, 32, 32))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
