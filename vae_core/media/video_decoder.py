"""Frames out of video files, through PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import InputError
from .video_frames import ACCURATE, BT709, FULL, LIMITED, Facts, av_package, to_pixels

# From AVColorSpace (libavutil/pixfmt.h) to swscale's SWS_CS_ITU709, FCC, ITU601, SMPTE240M and BT2020.
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
BT601 = 5
HD_LINES = 720
"""Files that name no matrix mean BT.601 below this height and BT.709 from it on, as players take it."""

ATTACHED_PICTURE = 0x400
"""AV_DISPOSITION_ATTACHED_PIC in libavformat/avformat.h: the cover of a song, which is no video."""


@contextmanager
def open_video(path: Path, *, alpha: bool) -> Iterator[tuple[Facts, Iterator[Tensor]]]:
    """Yield what the file says of its first video stream, and its frames, each `c h w`, float32 in [-1, 1].

    Turned and mirrored as the display matrix asks. Each frame comes once, however long it is shown, in 8 bits a
    channel. HDR is not mapped to the ordinary range, and pixels that are not square stay as they are.

    Raises:
        InputError: not a video, or a broken one; while reading, one that breaks off or changes its size.
        MissingPackageError: PyAV is not installed.
    """
    av = av_package(path)
    _check_whole(path)
    with _sentence(av, f"{path}: not a video that can be read"):
        container = av.open(str(path))
    with container:
        stream = _video_stream(container, path)
        frames = _upright_frames(av, path, container, stream, alpha)
        first = next(frames, None)
        if first is None:
            raise InputError(f"{path}: holds no frame that can be read")
        facts = Facts(
            fps=stream.average_rate or stream.guessed_rate or None,
            height=first.shape[0],
            width=first.shape[1],
            frames=stream.frames or None,
            has_audio=bool(container.streams.audio),
            has_alpha=_has_alpha(stream),
        )
        yield facts, _pixels(path, first, frames)


def _check_whole(path: Path) -> None:
    """Raise `InputError` for an MP4 or MOV that ends too soon: FFmpeg gives what frames there are, and says nothing.

    Such a file is a row of boxes, each with its size before it (ISO/IEC 14496-12, section 4.2).
    """
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            length, name = struct.unpack(">I4s", file.read(8))
            if (at == 0 and name != b"ftyp") or length == 0:  # another format; or a box that takes the rest
                return
            at += struct.unpack(">Q", file.read(8).rjust(8, b"\0"))[0] if length == 1 else max(length, 8)
    if at > size:
        raise InputError(f"{path}: cut off, {size} bytes of at least {at} are there; copy or download it again")


@contextmanager
def _sentence(av: Any, beginning: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{beginning} ({error})") from error


def _video_stream(container: Any, path: Path) -> Any:
    for stream in container.streams.video:
        if not stream.disposition.value & ATTACHED_PICTURE and stream.codec_context is not None:
            stream.thread_type = "AUTO"
            return stream
    raise InputError(f"{path}: holds no video")


def _has_alpha(stream: Any) -> bool:
    said = {key.lower(): value for key, value in stream.metadata.items()}  # the case depends on FFmpeg's release
    return said.get("alpha_mode") == "1" or _format_has_alpha(stream.codec_context.format)


def _format_has_alpha(pixel_format: Any) -> bool:
    return pixel_format is not None and any(component.is_alpha for component in pixel_format.components)


def _pixels(path: Path, first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[Tensor]:
    yield to_pixels(first)
    for number, levels in enumerate(rest, 2):
        if levels.shape != first.shape:
            sizes = f"{levels.shape[1]} × {levels.shape[0]} pixels, not {first.shape[1]} × {first.shape[0]}"
            raise InputError(f"{path}: frame {number} has {sizes} as before; split the clip there")
        yield to_pixels(levels)


def _upright_frames(av: Any, path: Path, container: Any, stream: Any, alpha: bool) -> Iterator[np.ndarray]:
    """Each frame as levels `h w c`, uint8."""
    count = 0
    try:
        for frame in _decoded(av, container, stream, alpha):
            yield _upright(_levels(frame, alpha), _display_matrix(frame))
            count += 1
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path}: broken after frame {count}, and cannot be read further ({error})") from error


def _decoded(av: Any, container: Any, stream: Any, alpha: bool) -> Iterator[Any]:
    if not (alpha and stream.codec_context.name == "vp9" and _has_alpha(stream)):
        yield from container.decode(stream)
        return
    # FFmpeg's own VP9 decoder leaves the alpha out; that of libvpx has it.
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def _levels(frame: Any, alpha: bool) -> np.ndarray:
    matrix = _matrix(frame)
    # 8 bits, from deeper files too: the white that swscale gives in 16 bits is a level too dark.
    return frame.reformat(
        format="rgba" if alpha else "rgb24",
        src_colorspace=matrix,
        dst_colorspace=BT601 if matrix == BT709 else BT709,  # RGB has none; PyAV 14 converts only where the two differ
        src_color_range=FULL if _is_full_range(frame) else LIMITED,
        dst_color_range=FULL,
        interpolation=ACCURATE,
    ).to_ndarray()


def _matrix(frame: Any) -> int:
    return MATRICES.get(int(frame.colorspace), BT709 if frame.height >= HD_LINES else BT601)


def _is_full_range(frame: Any) -> bool:
    return int(frame.color_range) == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """a, b, c, d of the frame's display matrix: x' = a x + c y, y' = b x + d y, with y downwards, in no fixed unit."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))  # libavutil/display.h: rows of 3, in 16.16 fixed point
    return a, b, c, d


def _upright(levels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Levels `h w c` turned by quarters and mirrored, whichever comes nearest to the matrix."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        levels, a, d = levels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(levels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
