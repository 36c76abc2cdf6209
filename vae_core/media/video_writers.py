"""Frame by frame into files that need no video codec: animated WebP and GIF, NumPy's .npy, a folder of PNGs.

Pillow writes an animation from all of its frames at once. So that memory does not grow with the clip, each frame is
compressed by Pillow on its own and appended to the file here; the containers around them are a few bytes each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import GifImagePlugin, Image
from torch import Tensor

from ..errors import InputError
from .video_frames import as_rgb, spread, to_levels


class Size(NamedTuple):
    """Of every frame of a clip."""

    channels: int
    height: int
    width: int


class Writer(Protocol):
    """Takes the frames of one clip, in order, and holds none of them longer than its format needs."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the file; complete after `finish`."""
        ...

    def add(self, frame: Tensor) -> None:
        """Append one frame `c h w`, float32 in [-1, 1], finite."""
        ...

    def finish(self) -> None:
        """Complete the file."""
        ...

    def close(self) -> None:
        """Let go of the file, complete or not; never raises."""
        ...


class FileWriter:
    """The part that the writers of one plain file share."""

    def __init__(self, path: Path) -> None:
        self.path, self.frames = path, 0
        self.notes: tuple[str, ...] = ()
        self.file = path.open("wb")

    def finish(self) -> None:
        self.file.close()

    def close(self) -> None:
        self.file.close()


class NpyWriter(FileWriter):
    """`t h w c`, float32, in [-1, 1] and not clipped: the numbers as decoded, so that nothing is lost by rounding.

    Time comes first since the file grows by frames; `numpy.load(…, mmap_mode="r")` reads any part of it.
    """

    def __init__(self, path: Path, size: Size) -> None:
        super().__init__(path)
        self.size = size
        self._header()

    def _header(self) -> None:
        # NumPy pads this header so that the first axis can grow without moving the data.
        shape = (self.frames, self.size.height, self.size.width, self.size.channels)
        np.lib.format.write_array_header_1_0(self.file, {"descr": "<f4", "fortran_order": False, "shape": shape})

    def add(self, frame: Tensor) -> None:
        self.file.write(frame.permute(1, 2, 0).contiguous().cpu().numpy().astype("<f4").data)
        self.frames += 1

    def finish(self) -> None:
        self.file.seek(0)
        self._header()
        super().finish()


class PngWriter:
    """`000001.png`, `000002.png`, … in a folder: 8 bits, grey, RGB or RGBA as the frames have 1, 3 or 4 channels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.frames = folder, 0
        self.notes: tuple[str, ...] = ()

    def add(self, frame: Tensor) -> None:
        levels = to_levels(frame)
        self.frames += 1
        image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
        image.save(self.folder / f"{self.frames:06}.png", "PNG")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


GIF_HEAD = b"GIF89a%b\x70\x00\x00"
"""GIF89a specification, section 18: the screen's size, 8 bits a colour and no common palette, background, aspect."""
GIF_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
"""The application extension that browsers read as: play again, without end."""
GIF_MIN_DELAY = 2
"""Hundredths of a second; browsers take anything shorter for a mistake, and show the frame for ten."""


class GifWriter(FileWriter):
    """Each frame with the 256 colours that suit it best, dithered; a frame of no more colours is exact."""

    def __init__(self, path: Path, size: Size, rate: Fraction) -> None:
        super().__init__(path)
        self.rate = rate
        self.file.write(GIF_HEAD % struct.pack("<HH", size.width, size.height) + GIF_FOREVER)

    def add(self, frame: Tensor) -> None:
        image = Image.fromarray(as_rgb(to_levels(frame)))
        image = image.quantize(palette=_palette(image))
        delay = max(spread(self.frames, self.rate, 100), GIF_MIN_DELAY)
        for block in GifImagePlugin.getdata(image, duration=10 * delay, include_color_table=True):
            self.file.write(block)
        self.frames += 1

    def finish(self) -> None:
        self.file.write(b";")
        super().finish()


def _palette(image: Image.Image) -> Image.Image:
    """An image with the 256 colours that suit this one; all of its own, if it has no more."""
    if image.getcolors(256):
        return image.quantize(256)
    # The better of Pillow's ways takes seconds a frame on every pixel, and a tenth of one on a sample, which does.
    sample = image.copy()
    sample.thumbnail((128, 128), Image.Resampling.NEAREST)
    return sample.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of each chunk of a WebP file's bytes."""
    at = 12  # "RIFF", size, "WEBP"
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def riff_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


class WebpWriter(FileWriter):
    """Each frame compressed on its own, lossless where quality is 100; for the container see Google's WebP Container
    Specification, "Extended file format" and "Animation"."""

    ANIMATED, ALPHA = 0x02, 0x10
    REPLACE = 0x02
    """The frame takes the place of what was there, instead of being blended over it."""
    IMAGE_CHUNKS = (b"ALPH", b"VP8 ", b"VP8L")
    MAX_BYTES = 2**32 - 10

    def __init__(self, path: Path, size: Size, rate: Fraction, quality: int) -> None:
        super().__init__(path)
        self.rate, self.quality = rate, quality
        self.canvas = self._three_bytes(size.width - 1) + self._three_bytes(size.height - 1)
        flags = self.ANIMATED | (self.ALPHA if size.channels == 4 else 0)
        self.file.write(b"RIFF\0\0\0\0WEBP")  # the size follows in `finish`
        self.file.write(riff_chunk(b"VP8X", struct.pack("<I", flags) + self.canvas))
        self.file.write(riff_chunk(b"ANIM", bytes(4) + struct.pack("<H", 0)))  # background; 0 plays without end

    @staticmethod
    def _three_bytes(number: int) -> bytes:
        return number.to_bytes(3, "little")

    def add(self, frame: Tensor) -> None:
        still = BytesIO()
        image = Image.fromarray(as_rgb(to_levels(frame)))
        lossless = self.quality == 100
        image.save(still, "WEBP", quality=self.quality, lossless=lossless, exact=lossless)
        compressed = b"".join(
            riff_chunk(name, content) for name, content in riff_chunks(still.getvalue()) if name in self.IMAGE_CHUNKS
        )
        duration = self._three_bytes(spread(self.frames, self.rate, 1000))
        head = bytes(6) + self.canvas + duration + bytes([self.REPLACE])  # at x = y = 0
        self.file.write(riff_chunk(b"ANMF", head + compressed))
        if self.file.tell() > self.MAX_BYTES:
            raise InputError("a WebP file holds at most 4 GiB; write a .webm or .mp4")
        self.frames += 1

    def finish(self) -> None:
        size = self.file.tell() - 8
        self.file.seek(4)
        self.file.write(struct.pack("<I", size))
        super().finish()
