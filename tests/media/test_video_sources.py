"""Clips in: from video files, animations and folders, upright, in their own colours, and broken ones in a sentence."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vae_core.errors import InputError, MissingPackageError
from vae_core.media import open_sink, open_source

av: Any = pytest.importorskip("av")

RED, BLUE = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)


def flat(colour: tuple[float, ...], h: int = 32, w: int = 48, t: int = 1) -> torch.Tensor:
    return torch.tensor(colour)[:, None, None, None].expand(-1, t, h, w)


def quarters(h: int = 32, w: int = 48) -> torch.Tensor:
    """`3 1 h w`: black, but red in the upper left corner and blue in the upper right one."""
    frame = torch.full((3, 1, h, w), -1.0)
    frame[:, :, : h // 2, : w // 2] = flat(RED, h // 2, w // 2)
    frame[:, :, : h // 2, w // 2 :] = flat(BLUE, h // 2, w - w // 2)
    return frame


def write(path: Path, frames: torch.Tensor, **options: Any) -> Path:
    with open_sink(path, **{"fps": 10, **options}) as sink:
        sink.write(frames)
    return path


def read(path: Path, **options: Any) -> torch.Tensor:
    with open_source(path, **options) as source:
        frames = source.read(1000)
    assert frames is not None
    return frames


def numbers(t: int) -> torch.Tensor:
    """`3 t 32 32`: each frame of a grey of its own, 8 levels apart."""
    return (torch.arange(t) * 8 / 127.5 - 1)[None, :, None, None].expand(3, -1, 32, 32)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip.webp", "clip"])
def test_reading_in_any_portions(tmp_path, name):
    path = write(tmp_path / name, numbers(7))
    whole = read(path)
    assert whole.dtype == torch.float32 and (whole - numbers(7)).abs().max() * 127.5 < 3
    with open_source(path) as source:
        parts = [source.read(3), source.read(3), source.read(3)]
        assert source.read(3) is None
    assert [part.shape[1] for part in parts if part is not None] == [3, 3, 1]
    assert torch.equal(torch.cat([part for part in parts if part is not None], dim=1), whole)
    with open_source(path) as source:
        singles = list(source)
    assert all(frame.shape == (3, 1, 32, 32) for frame in singles)
    assert torch.equal(torch.cat(singles, dim=1), whole)


def test_a_portion_of_nothing_is_refused(tmp_path):
    with open_source(write(tmp_path / "clip", numbers(2))) as source, pytest.raises(InputError):
        source.read(0)


def test_what_a_video_says_of_itself(tmp_path):
    with open_source(write(tmp_path / "clip.mp4", numbers(7), fps=Fraction(30000, 1001))) as source:
        assert (source.fps, source.width, source.height, source.frames) == (Fraction(30000, 1001), 32, 32, 7)
        assert not source.has_audio and not source.has_alpha


# The display matrix (ISO/IEC 14496-12, 6.2.2) of a quarter turn and the like: a, b, c, d, and where the corners go.
TURNS = {
    "as it is": ((1, 0, 0, 1), lambda frame: frame),
    "clockwise": ((0, 1, -1, 0), lambda frame: frame.rot90(-1, (2, 3))),
    "upside down": ((-1, 0, 0, -1), lambda frame: frame.rot90(2, (2, 3))),
    "counter-clockwise": ((0, -1, 1, 0), lambda frame: frame.rot90(1, (2, 3))),
    "mirrored": ((-1, 0, 0, 1), lambda frame: frame.flip(3)),
    "clockwise and mirrored": ((0, 1, 1, 0), lambda frame: frame.rot90(-1, (2, 3)).flip(3)),
}


@pytest.mark.parametrize("name", TURNS)
def test_rotation_is_applied(tmp_path, name):
    (a, b, c, d), turned = TURNS[name]
    path = write(tmp_path / "clip.mp4", quarters(), crf=4)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0: its matrix comes after 40 bytes
    one = 1 << 16
    assert struct.unpack_from(">5i", content, at) == (one, 0, 0, 0, one)
    struct.pack_into(">5i", content, at, a * one, b * one, 0, c * one, d * one)
    path.write_bytes(content)
    expected = turned(quarters())
    with open_source(path) as source:
        assert (source.height, source.width) == expected.shape[2:]
        frames = source.read(1)
    assert frames is not None and (frames - expected).abs().mean() < 0.05


def test_a_variable_rate_gives_each_frame_once(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 30)
        for i, pts in enumerate([0, 1, 5, 6, 20]):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 50 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    greys = (read(tmp_path / "clip.mp4").mean((0, 2, 3)) + 1) * 127.5
    assert torch.allclose(greys, torch.arange(5) * 50.0, atol=2)


def ffv1(path: Path, pixel_format: str, planes: list[np.ndarray], **tags: int) -> Path:
    """A lossless file of one frame with these planes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.height, stream.width = planes[0].shape
        stream.pix_fmt = pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        frame = av.VideoFrame(stream.width, stream.height, pixel_format)
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
            packed = np.ascontiguousarray(values).view(np.uint8)
            rows[: packed.shape[0], : packed.shape[1]] = packed
            plane.update(rows)
        frame.pts = 0
        for name, value in tags.items():
            if hasattr(frame, name):
                setattr(frame, name, value)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def yuv(colour: tuple[float, ...], kr: float, kb: float, full: bool) -> list[float]:
    """R, G, B in [0, 1] → Y, Cb, Cr as coded (ITU-R BT.709-6, items 3.2 to 3.4)."""
    red, green, blue = colour
    y = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    if full:
        return [255 * y, 255 * cb + 128, 255 * cr + 128]
    return [16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]


@pytest.mark.parametrize(
    ("size", "weights", "full", "tags"),
    [
        (64, (0.2126, 0.0722), False, {"colorspace": 1, "color_range": 1}),
        (64, (0.2126, 0.0722), True, {"colorspace": 1, "color_range": 2}),
        (64, (0.299, 0.114), False, {"colorspace": 6, "color_range": 1}),
        (64, (0.299, 0.114), False, {}),  # unsaid: BT.601 below HD,
        (720, (0.2126, 0.0722), False, {}),  # BT.709 from it on
    ],
)
def test_matrix_and_range(tmp_path, size, weights, full, tags):
    for colour in [(1.0, 0.0, 0.0), (0.2, 0.9, 0.4), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]:
        levels = [round(value) for value in yuv(colour, *weights, full)]
        planes = [np.full((size >> (i > 0), 64 >> (i > 0)), min(v, 255), np.uint8) for i, v in enumerate(levels)]
        frame = read(ffv1(tmp_path / "clip.mkv", "yuv420p", planes, **tags))
        expected = torch.tensor(colour)[:, None, None, None] * 2 - 1
        assert (frame - expected).abs().max() * 127.5 <= 3  # what 8 bits of Y, Cb and Cr leave, and rounding to RGB


def test_more_than_eight_bits(tmp_path):
    ramp = np.tile(np.arange(64, 941, dtype=np.uint16), (4, 1))  # 10 bits, limited range: black to white
    neutral = np.full(ramp.shape, 512, np.uint16)
    frame = read(ffv1(tmp_path / "clip.mkv", "yuv444p10le", [ramp, neutral, neutral], colorspace=1, color_range=1))
    assert (frame[:, 0] - torch.linspace(-1, 1, 877)).abs().max() * 127.5 <= 1


def test_natural_order(tmp_path):
    names = ["Frame2.png", "frame10.png", "frame1.png", "frame1a.png", "frame001b.png"]
    for i, name in enumerate(["frame1.png", "frame1a.png", "frame001b.png", "Frame2.png", "frame10.png"]):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / name)
    assert sorted(names) != names
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("nor this")
    with open_source(tmp_path) as source:
        assert (source.fps, source.frames, source.has_audio) == (None, 5, False)
        frames = source.read(10)
    assert frames is not None
    assert ((frames[0, :, 0, 0] + 1) * 127.5).round().tolist() == [0, 1, 2, 3, 4]


def test_a_folder_of_many_kinds(tmp_path):
    Image.new("L", (4, 4), 255).save(tmp_path / "1.png")
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "2.webp", lossless=True)
    Image.new("RGBA", (4, 4), (0, 0, 255, 51)).save(tmp_path / "3.png")
    with open_source(tmp_path, alpha=True) as source:
        assert source.has_alpha
        frames = source.read(3)
    assert frames is not None
    expected = torch.tensor([[1, 1, 1, 1], [1, -1, -1, 1], [-1, -1, 1, 0.4 - 1]]).T
    assert torch.allclose(frames[:, :, 0, 0], expected)


def test_the_odd_picture_is_named_before_any_is_read(tmp_path):
    for i in range(4):
        Image.new("RGB", (4, 6 if i == 0 else 4)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=r"0\.png: has 4 × 6 pixels, the others 4 × 4"), open_source(tmp_path):
        pass


def test_a_picture_on_its_side_is_named_too(tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "1.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"2\.png"):
        read(tmp_path)


def test_a_single_picture_is_a_clip_of_one_frame(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    Image.new("RGB", (8, 4), (255, 0, 0)).save(tmp_path / "a.webp", lossless=True, exif=exif)
    with open_source(tmp_path / "a.webp") as source:
        assert (source.fps, source.frames, source.width, source.height) == (None, 1, 4, 8)
        assert torch.equal(source.read(2), flat(RED, 8, 4))


def test_animations_of_others(tmp_path):
    """GIFs store what changed, and Pillow's WebPs too: each frame must come whole."""
    images = [Image.new("RGB", (8, 8), "white") for _ in range(3)]
    for i, image in enumerate(images):
        image.putpixel((i, i), (255, 0, 0))
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100, **options)
        with open_source(tmp_path / name) as source:
            assert (source.fps, source.frames) == (10, 3)
            frames = source.read(3)
        expected = np.stack([np.array(image) for image in images]).transpose(3, 0, 1, 2) / 127.5 - 1
        assert torch.equal(frames, torch.from_numpy(expected).float())


# What goes wrong


def broken(folder: Path) -> dict[str, Path]:
    clip = torch.rand(3, 20, 64, 64) * 2 - 1
    contents = {"empty.mp4": b"", "page.mp4": b"<!DOCTYPE html><title>404</title>", "text.webm": b"words " * 500}
    for name in ("clip.mp4", "clip.gif", "clip.webp"):
        write(folder / name, clip)
        content = (folder / name).read_bytes()
        contents[f"head.{name}"] = content[:60]
        if name != "clip.gif":  # cut between two frames, it is a whole GIF of fewer frames to most readers
            contents[f"half.{name}"] = content[: len(content) // 2]
    content = (folder / "clip.mp4").read_bytes()
    contents["zeros.mp4"] = content[:100] + bytes(len(content) - 100)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.of.nothing").mkdir()
    (folder / "folder.of.broken").mkdir()
    (folder / "folder.of.broken" / "1.png").write_bytes(b"nothing")
    return {name: folder / name for name in [*contents, "missing.mp4", "folder.of.nothing"]}


def test_broken_files_are_named_in_one_sentence(tmp_path):
    files = broken(tmp_path)
    assert len(files) == 11
    for path in files.values():
        with pytest.raises(InputError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message, message
    with pytest.raises(InputError, match=r"1\.png"):
        read(tmp_path / "folder.of.broken")


def song(path: Path, cover: bool) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=48_000)
        stream.layout = "mono"
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 16, 16, "rgb24"
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            frame.pts = 0
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 48_000, 0
        if cover:
            container.mux(picture.encode(frame) + picture.encode(None))
        container.mux(stream.encode(sound) + stream.encode(None))
    return path


@pytest.mark.parametrize("cover", [False, True])
def test_a_song_is_no_video(tmp_path, cover):
    path = song(tmp_path / "song.mp3", cover)
    with pytest.raises(InputError, match="no video"), open_source(path):
        pass


def test_an_error_of_the_caller_is_left_as_it_is(tmp_path):
    path = write(tmp_path / "clip.mp4", numbers(3))
    with pytest.raises(OSError, match="disk full"), open_source(path):
        raise OSError("disk full")


def test_pyav_missing(tmp_path, monkeypatch):
    clip = write(tmp_path / "clip.mp4", numbers(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"exact-vae\[video\]"):
        read(clip)
    for name in ("clip.gif", "clip.webp", "clip"):
        assert read(write(tmp_path / name, numbers(2))).shape[1] == 2
