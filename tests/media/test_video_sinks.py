"""Clips out: every format read back, colours, odd sizes, sound, and nothing half-written."""

from __future__ import annotations

import gc
import itertools
import sys
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vae_core.errors import InputError, MissingPackageError
from vae_core.media import check_sink, frame_rate, open_sink, open_source

av: Any = pytest.importorskip("av")

FILES = ["clip.mp4", "clip.webm", "clip.webp", "clip.gif", "clip.npy", "clip"]
VIDEO = [("clip.mp4", "h264"), ("clip.mp4", "h265"), ("clip.webm", "vp9")]


def moving(t: int = 9, c: int = 3, h: int = 64, w: int = 96) -> torch.Tensor:
    """`c t h w` in [-1, 1]: smooth waves that move, as natural pictures are smooth; every frame differs."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    waves = [lambda k: (3 * x + k / 5).sin(), lambda k: (2 * y - k / 9).cos(), lambda k: x * y, lambda k: (x + y) / 2]
    return torch.stack([torch.stack([wave(k) for k in range(t)]) for wave in waves[:c]])


def rounded(frames: torch.Tensor) -> torch.Tensor:
    """As 8 bits store them."""
    return ((frames + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * ((a - b) / 2).square().mean().log10())


def write(path: str | Path, frames: torch.Tensor, *, chunk: int = 4, **options: Any) -> tuple[str, ...]:
    with open_sink(path, **{"fps": 16, **options}) as sink:
        for part in frames.split(chunk, dim=1):
            sink.write(part)
    assert sink.frames == frames.shape[1]
    return sink.notes


def read(path: Path, *, alpha: bool = False) -> torch.Tensor:
    with open_source(path, alpha=alpha) as source:
        frames = source.read(1000)
    assert frames is not None
    return frames


def probe(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        tags = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
        packets = sum(packet.size > 0 for packet in container.demux(stream))
    return {"format": context.pix_fmt, "tags": tags, "rate": stream.average_rate, "packets": packets}


def test_png_folder_is_exact(tmp_path):
    for channels in (1, 3, 4):
        frames = moving(11, channels, 7, 5)
        write(tmp_path / f"clip{channels}", frames)
        names = sorted(path.name for path in (tmp_path / f"clip{channels}").iterdir())
        assert names == [f"{i:06}.png" for i in range(1, 12)]
        expected = rounded(frames).expand(max(channels, 3), -1, -1, -1)
        assert torch.equal(read(tmp_path / f"clip{channels}", alpha=channels == 4), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npy_holds_the_numbers_as_they_are(tmp_path, channels):
    frames = 1.5 * moving(11, channels, 5, 7)
    write(tmp_path / "clip.npy", frames)
    array = np.load(tmp_path / "clip.npy", mmap_mode="r")
    assert array.dtype == np.float32 and array.shape == (11, 5, 7, channels)
    assert torch.equal(torch.from_numpy(np.array(array)).permute(3, 0, 1, 2), frames)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lossless_webp_is_exact(tmp_path, channels):
    frames = moving(5, channels, 7, 5)
    write(tmp_path / "clip.webp", frames, quality=100)
    expected = rounded(frames).expand(max(channels, 3), -1, -1, -1)
    assert torch.equal(read(tmp_path / "clip.webp", alpha=channels == 4), expected)


def test_gif_of_few_colours_is_exact(tmp_path):
    frames = (moving(5, 3, 12, 20) > 0).float() * 2 - 1
    write(tmp_path / "clip.gif", frames)
    assert torch.equal(read(tmp_path / "clip.gif"), frames)


# Colour at half the resolution and 8 limited bits alone cost these waves about 45 dB, and the usual quality a few more;
# a wrong matrix, range, order or shift of the frames leaves less than 30. GIF has 256 colours, dithered.
@pytest.mark.parametrize(
    ("name", "options", "floor"),
    [
        ("clip.mp4", {}, 36),
        ("clip.mp4", {"codec": "h265"}, 36),
        ("clip.mp4", {"codec": "av1"}, 36),
        ("clip.webm", {}, 36),
        ("clip.webp", {}, 38),
        ("clip.gif", {}, 26),
    ],
)
def test_lossy_formats_are_close(tmp_path, name, options, floor):
    frames = moving()
    write(tmp_path / name, frames, **options)
    with open_source(tmp_path / name) as source:
        assert (source.fps, source.width, source.height) == (16, 96, 64)
        assert not source.has_audio and not source.has_alpha
        assert psnr(source.read(100), frames) > floor


def test_crf_is_heard(tmp_path):
    for crf in (1, 40):
        write(tmp_path / f"{crf}.mp4", moving(), crf=crf)
    assert psnr(read(tmp_path / "1.mp4"), moving()) > psnr(read(tmp_path / "40.mp4"), moving()) + 3


def test_webm_carries_alpha(tmp_path):
    write(tmp_path / "clip.webm", moving(c=4))
    with open_source(tmp_path / "clip.webm", alpha=True) as source:
        assert source.has_alpha
        frames = source.read(100)
    assert frames is not None and psnr(frames[3], moving(c=4)[3]) > 36 and psnr(frames[:3], moving()) > 33


@pytest.mark.parametrize(("name", "codec"), VIDEO)
def test_flat_colours_are_right_and_tagged(tmp_path, name, codec):
    colours = torch.tensor(list(itertools.product([-1, -0.3, 0.5, 1], repeat=3))).T[:, :, None, None]
    write(tmp_path / name, colours.expand(-1, -1, 32, 32), codec=codec)
    # Two levels are what limited range and 8 bits leave: half a step of Cb is 1.1 levels of blue, of Y 0.6.
    assert (read(tmp_path / name) - colours).abs().max() * 127.5 <= 2
    found = probe(tmp_path / name)
    assert found["format"] == "yuv420p" and found["tags"] == (1, 1, 1, 1)  # BT.709, limited range


def test_grey_becomes_grey_video(tmp_path):
    write(tmp_path / "clip.mp4", moving(c=1))
    frames = read(tmp_path / "clip.mp4")
    assert frames.shape[0] == 3 and (frames - moving(c=1)).abs().max() * 127.5 < 12


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_odd_sides_are_padded_with_a_note(tmp_path, codec):
    frames = moving(5, 3, 63, 95)
    (note,) = write(tmp_path / "clip.mp4", frames, codec=codec)
    assert "95 × 63" in note and "96 × 64" in note
    found = read(tmp_path / "clip.mp4")
    assert found.shape == (3, 5, 64, 96)
    assert psnr(found[..., :63, :95], frames) > 34
    assert psnr(found[..., 63:, :95], frames[..., 62:, :]) > 32  # the last row again


@pytest.mark.parametrize("name", ["clip.webm", "clip.webp", "clip.gif", "clip"])
def test_odd_sides_are_kept(tmp_path, name):
    assert write(tmp_path / name, moving(3, 3, 63, 95)) == ()
    assert read(tmp_path / name).shape == (3, 3, 63, 95)


@pytest.mark.parametrize("name", FILES)
def test_a_single_frame(tmp_path, name):
    frames = moving(1)
    write(tmp_path / name, frames)
    if name == "clip.npy":
        assert np.load(tmp_path / name).shape == (1, 64, 96, 3)
    else:
        found = read(tmp_path / name)
        assert found.shape == frames.shape and psnr(found, frames) > 26


@pytest.mark.parametrize("name", FILES)
def test_chunks_do_not_matter(tmp_path, name):
    frames, files = moving(9, 3, 32, 48), []
    for chunk in (1, 4, 9):
        folder = tmp_path / str(chunk)
        folder.mkdir()
        # x264's AVX-512 code is not the same twice with losses: asked for none, what is read back is.
        write(folder / name, frames, chunk=chunk, **({"crf": 0} if name.endswith(".mp4") else {}))
        files.append(np.load(folder / name) if name.endswith(".npy") else read(folder / name).numpy())
    assert np.array_equal(files[0], files[1]) and np.array_equal(files[0], files[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(tmp_path, dtype):
    frames = moving(3, 3, 8, 8).to(dtype)
    write(tmp_path / "clip", frames)
    assert torch.equal(read(tmp_path / "clip"), rounded(frames.float()))


def test_values_beyond_the_range_are_clipped(tmp_path):
    for name in ("clip", "clip.mp4"):
        write(tmp_path / name, torch.full((3, 2, 16, 16), 7.0))
        assert (read(tmp_path / name) - 1).abs().max() * 127.5 <= 2


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (16, Fraction(16)),
        (23.976, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
        (24.0, Fraction(24)),
    ],
)
def test_rates(tmp_path, fps, exact):
    assert frame_rate(fps) == exact
    write(tmp_path / "clip.mp4", moving(4, 3, 16, 16), fps=fps)
    assert probe(tmp_path / "clip.mp4")["rate"] == exact


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp"])
@pytest.mark.parametrize("fps", [7, 16, 24, 30])
def test_animations_keep_their_length(tmp_path, name, fps):
    write(tmp_path / name, moving(24, 3, 4, 4), fps=fps)
    with Image.open(tmp_path / name) as image:
        total = 0
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            total += image.info["duration"]
    assert abs(total - 24_000 / fps) <= 5
    with open_source(tmp_path / name) as source:
        assert source.fps == fps and source.frames == 24


def test_a_gif_too_fast_for_browsers_is_noted(tmp_path):
    (note,) = write(tmp_path / "clip.gif", moving(3, 3, 4, 4), fps=60)
    assert "50 frames a second" in note


def test_mp4_begins_with_its_index(tmp_path):
    write(tmp_path / "clip.mp4", moving())
    content = (tmp_path / "clip.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


# What goes wrong


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", FILES)
def test_a_failure_leaves_nothing(tmp_path, name, failure):
    with pytest.raises(type(failure)), open_sink(tmp_path / name, fps=8) as sink:
        sink.write(moving(3, 3, 16, 16))
        assert not (tmp_path / name).exists()
        raise failure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_a_clip_without_frames_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no frame"), open_sink(tmp_path / name, fps=8):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten_unasked(tmp_path, name):
    write(tmp_path / name, moving(4, 3, 16, 16))
    with pytest.raises(InputError, match="already"):
        write(tmp_path / name, moving(2, 3, 16, 16))
    with pytest.raises(InputError, match="already"):
        check_sink(tmp_path / name, width=16, height=16)
    write(tmp_path / name, moving(2, 3, 16, 16), overwrite=True)
    frames = np.load(tmp_path / name) if name.endswith("npy") else read(tmp_path / name).transpose(0, 1)
    assert len(frames) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_failed_overwriting_keeps_what_was_there(tmp_path, name):
    write(tmp_path / name, moving(4, 3, 16, 16))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RuntimeError), open_sink(tmp_path / name, fps=8, overwrite=True) as sink:
        sink.write(moving(2, 3, 16, 16))
        raise RuntimeError
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_files_in_a_folder_are_left_alone(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    write(folder, moving(4, 3, 8, 8))  # an empty one needs no leave
    (folder / "notes.txt").write_text("mine")
    write(folder, moving(2, 3, 8, 8), overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["000001.png", "000002.png", "notes.txt"]


def test_what_makes_a_folder(tmp_path):
    (tmp_path / "old.frames").mkdir()
    for name in ("plain", "with.dot/", "clip.mp4/", "old.frames"):
        write(f"{tmp_path}/{name}", moving(1, 3, 8, 8))
        assert (tmp_path / name / "000001.png").is_file()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip.avi", {}, "not as '.avi'"),
        ("clip.mp4", {"codec": "vp9"}, "h264, h265, av1"),
        ("clip.webm", {"codec": "h264"}, "vp9, av1"),
        ("clip.mp4", {"crf": 52}, "from 0"),
        ("clip.gif", {"crf": 20}, "belong to"),
        ("clip.webp", {"codec": "vp9"}, "belong to"),
        ("clip.webp", {"quality": 0}, "quality"),
        ("clip.mp4", {"fps": 0}, "frames a second"),
        ("clip.mp4", {"fps": float("nan")}, "frames a second"),
        ("clip.gif", {"audio_from": "song.mp3"}, "no sound"),
        ("clip.mp4", {"audio_from": "song.mp3"}, "no such file"),
        ("nowhere/clip.mp4", {}, "does not exist"),
        ("nowhere/clip", {}, "does not exist"),
        ("clip.mp4", {"alpha": True}, "no transparency"),
        ("clip.gif", {"alpha": True}, "no transparency"),
        ("clip.webp", {"width": 16_384}, "16383"),
        ("clip.gif", {"height": 65_536}, "65535"),
        ("clip.mp4", {"width": 200_000, "height": 200_000}, "h264 cannot"),
    ],
)
def test_what_cannot_be_written_is_refused_early(tmp_path, name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        check_sink(tmp_path / name, **{"width": 64, "height": 64, **options})
    assert "\n" not in str(caught.value)
    sink_options = {key: value for key, value in options.items() if key not in ("width", "height", "alpha")}
    if sink_options or "nowhere" in name:
        with pytest.raises(InputError, match=message), open_sink(tmp_path / name, **{"fps": 8, **sink_options}):
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_written_is_told(tmp_path):
    target = check_sink(tmp_path / "clip.mp4", width=63, height=64)
    assert (target.kind, target.width, target.height, len(target.notes)) == ("mp4", 64, 64, 1)
    target = check_sink(tmp_path / "clip.webm", width=63, height=63, alpha=True)
    assert (target.kind, target.width, target.height, target.notes) == ("webm", 63, 63, ())
    assert check_sink(f"{tmp_path}/clip/", width=63, height=63).kind == "png"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((3, 1, 8, 8), (3, 1, 8, 10)),
        ((3, 1, 8, 8), (1, 1, 8, 8)),
        ((3, 8, 8), None),
        ((2, 1, 8, 8), None),
        ((3, 1, 0, 8), None),
    ],
)
def test_frames_that_do_not_fit(tmp_path, first, second):
    with pytest.raises(InputError) as caught, open_sink(tmp_path / "clip.mp4", fps=8) as sink:
        sink.write(torch.zeros(first))
        sink.write(torch.zeros(second or first))
    assert str(caught.value).startswith(str(tmp_path / "clip.mp4")) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_nan_is_refused(tmp_path, name):
    frames = moving(5, 3, 16, 16)
    frames[1, 3, 2, 2] = float("nan")
    with pytest.raises(InputError, match="frame 4 holds NaN"):
        write(tmp_path / name, frames)
    assert list(tmp_path.iterdir()) == []


def test_pyav_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"exact-vae\[video\]"):
        check_sink(tmp_path / "clip.mp4", width=8, height=8)
    with pytest.raises(MissingPackageError), open_sink(tmp_path / "clip.webm", fps=8):
        pass
    for name in ("clip.gif", "clip.webp", "clip.npy", "clip"):
        write(tmp_path / name, moving(2, 3, 8, 8))


def test_an_encoder_missing(tmp_path, monkeypatch):
    real = av.codec.Codec

    def without_x265(name: str, mode: str) -> Any:
        return real("no such codec" if name == "libx265" else name, mode)

    monkeypatch.setattr(av.codec, "Codec", without_x265)
    with pytest.raises(InputError, match=r"no encoder for h265; for \.mp4 it has h264"):
        check_sink(tmp_path / "clip.mp4", width=64, height=64, codec="h265")


@pytest.mark.parametrize("name", FILES)
def test_no_frame_is_held(tmp_path, name):
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    with open_sink(tmp_path / name, fps=16) as sink:
        for k in range(100):
            chunk = torch.full((3, 2, 16, 16), k / 100)
            alive.append(weakref.ref(chunk))
            sink.write(chunk)
            del chunk
            gc.collect(0)
            most = max(most, sum(ref() is not None for ref in alive))
    assert most == 0


@pytest.mark.parametrize("name", ["clip.webp", "clip.gif", "clip.npy"])
def test_files_grow_as_frames_come(tmp_path, name):
    """So that what is compressed is not held either."""
    with open_sink(tmp_path / name, fps=16) as sink:
        for _ in range(50):
            sink.write(torch.rand(3, 1, 32, 32) * 2 - 1)
        (part,) = tmp_path.iterdir()
        early = part.stat().st_size
    assert early > 0.5 * (tmp_path / name).stat().st_size
