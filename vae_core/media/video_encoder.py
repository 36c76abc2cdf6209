"""Frames into .mp4 and .webm, through PyAV."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .video_audio import Soundtrack
from .video_frames import BT709, LIMITED, av_package
from .video_writers import Size


class Encoder(NamedTuple):
    """One of FFmpeg's encoders."""

    codec: str
    name: str
    crf: int
    """Constant rate factor unless one is asked for: each about as close to the original as 18 in x264."""
    max_crf: int
    options: dict[str, str]
    odd: bool = False
    """Takes odd sides in yuv420p."""


ENCODERS = (
    Encoder("h264", "libx264", 18, 51, {}),
    Encoder("h265", "libx265", 20, 51, {"x265-params": "log-level=error"}),
    Encoder("vp9", "libvpx-vp9", 24, 63, {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}, odd=True),
    Encoder("av1", "libsvtav1", 24, 63, {"preset": "8"}),
    Encoder("av1", "libaom-av1", 24, 63, {"b": "0", "cpu-used": "6", "row-mt": "1"}),
)
"""In order of preference within a codec."""


class Container(NamedTuple):
    """What a kind of file takes."""

    codecs: tuple[str, ...]
    """The first one is the usual one."""
    copied_audio: tuple[str, ...]
    """Audio codecs, by the names of FFmpeg's decoders, that go in as they are; any other is encoded anew."""
    audio_encoder: str
    options: dict[str, str]


CONTAINERS = {
    # faststart puts the index first, so that a browser plays the file while it loads.
    "mp4": Container(
        ("h264", "h265", "av1"),
        ("aac", "mp3", "mp3float", "opus", "ac3", "eac3", "alac", "flac"),
        "aac",
        {"movflags": "+faststart"},
    ),
    "webm": Container(("vp9", "av1"), ("opus", "vorbis"), "libopus", {}),
}

KR, KB = 0.2126, 0.0722
"""Weights of red and blue in the luma of BT.709."""

ALPHA_CODECS = ("vp9",)


def find_encoder(path: Path, kind: str, codec: str | None) -> Encoder:
    """The encoder for `codec`, or for the usual one, in a container of this kind.

    Raises:
        InputError: a codec that the container does not take, or for which this build of PyAV has no encoder.
        MissingPackageError: PyAV is not installed.
    """
    av = av_package(path)
    taken = CONTAINERS[kind].codecs
    codec = codec or taken[0]
    if codec not in taken:
        raise InputError(f"{path}: a .{kind} is written as {', '.join(taken)}, not as {codec!r}")
    there = [encoder for encoder in ENCODERS if encoder.codec in taken and _exists(av, encoder.name)]
    for encoder in there:
        if encoder.codec == codec:
            return encoder
    names = ", ".join(encoder.codec for encoder in there) or "none that fits"
    raise InputError(f"{path}: this build of PyAV has no encoder for {codec}; for .{kind} it has {names}")


def _exists(av: Any, name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


def padded(encoder: Encoder, height: int, width: int) -> tuple[int, int]:
    """(h, w) as written: yuv420p stores colour for blocks of 2 × 2 pixels, and most codecs want them whole."""
    return (height, width) if encoder.odd else (height + height % 2, width + width % 2)


def _set_up(context: Any, encoder: Encoder, size: Size, rate: Fraction, crf: int | None) -> None:
    """Fill in a codec context, or a stream's, before it is opened. Colours are tagged as what they are, BT.709."""
    context.height, context.width = padded(encoder, size.height, size.width)
    context.pix_fmt = "yuva420p" if size.channels == 4 else "yuv420p"
    context.time_base, context.framerate = 1 / rate, rate
    context.bit_rate = 0  # PyAV's own default would be taken for a target beside the crf
    context.color_range, context.colorspace = LIMITED, BT709
    context.color_primaries = context.color_trc = BT709
    context.options = {
        **encoder.options,
        **({"auto-alt-ref": "0"} if size.channels == 4 else {}),  # libvpx takes no alpha with it
        "crf": str(encoder.crf if crf is None else crf),
        "chroma_sample_location": "left",
    }
    if encoder.codec == "h265":
        context.codec_tag = "hvc1"  # the tag that Apple's players ask for


def try_encoder(path: Path, encoder: Encoder, size: Size, rate: Fraction, crf: int | None) -> None:
    """Raise `InputError` if the encoder refuses frames of this size."""
    av = av_package(path)
    context = av.CodecContext.create(encoder.name, "w")
    _set_up(context, encoder, size, rate, crf)
    try:
        context.open()
    except (av.FFmpegError, ValueError, OSError) as error:
        message = f"{path}: {encoder.codec} cannot be written at {size.width} × {size.height} pixels ({error})"
        raise InputError(message) from error


def to_yuv(frame: Tensor, height: int, width: int) -> list[np.ndarray]:
    """A frame `c h w` in [-1, 1], repeated at its right and lower edge to the given size → planes of yuv420p, uint8.

    BT.709 in limited range (ITU-R BT.709-6, items 3.2 to 3.4): Y, Cb and Cr, and alpha, in full range, where c is 4.
    The planes of colour have half the size, rounded up, their samples above each other's left column, where H.264
    expects them (chroma_sample_loc_type 0). Not left to swscale: where it puts them depends on its release.
    """
    frame = F.pad(frame, (0, width - frame.shape[2], 0, height - frame.shape[1]), mode="replicate").clamp(-1, 1)
    red, green, blue = frame[:3].expand(3, -1, -1) / 2 + 0.5
    luma = KR * red + (1 - KR - KB) * green + KB * blue
    colour = torch.stack([(blue - luma) / (2 - 2 * KB), (red - luma) / (2 - 2 * KR)])
    planes = [16 + 219 * luma, *(128 + 224 * _halved(colour))]
    if frame.shape[0] == 4:
        planes.append((frame[3] + 1) * 127.5)
    return [plane.round().to(torch.uint8).cpu().numpy() for plane in planes]


def _halved(colour: Tensor) -> Tensor:
    """Planes `c h w` at half the size: rows averaged in pairs, columns centred on the even ones."""
    _, height, width = colour.shape
    kernel = torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 1.0]], device=colour.device) / 8
    padded = F.pad(colour, (1, width % 2, 0, height % 2), mode="replicate")
    return F.conv2d(padded[:, None], kernel[None, None], stride=2)[:, 0]


def _fill(plane: Any, levels: np.ndarray) -> None:
    """Copy `h w` into a plane of FFmpeg's, whose rows are longer."""
    rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
    rows[: levels.shape[0], : levels.shape[1]] = levels
    plane.update(rows)


class VideoWriter:
    """Frames encoded as they come. An encoder looks ahead by some dozen of them, which it holds in 8 bits."""

    def __init__(
        self,
        path: Path,
        kind: str,
        encoder: Encoder,
        size: Size,
        rate: Fraction,
        *,
        crf: int | None = None,
        audio_from: Path | None = None,
    ) -> None:
        self.av = av_package(path)
        self.rate, self.frames, self.sound = rate, 0, None
        container = CONTAINERS[kind]
        self.output = self.av.open(str(path), "w", format=kind, options=container.options)
        try:
            self.stream = self.output.add_stream(encoder.name, rate=rate)
            _set_up(self.stream.codec_context, encoder, size, rate, crf)
            if size.channels == 4:
                self.stream.metadata["alpha_mode"] = "1"  # players look for alpha only where this says so
            if audio_from is not None:
                self.sound = Soundtrack(
                    audio_from, self.output, copied=container.copied_audio, encoder=container.audio_encoder
                )
        except BaseException:
            self.close()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        return self.sound.notes if self.sound else ()

    def add(self, frame: Tensor) -> None:
        for packet in self.stream.encode(self._converted(frame)):
            self.output.mux(packet)
        self.frames += 1
        if self.sound:
            self.sound.advance(self.frames / self.rate)

    def _converted(self, frame: Tensor) -> Any:
        context = self.stream.codec_context
        picture = self.av.VideoFrame(context.width, context.height, context.pix_fmt)
        for plane, levels in zip(picture.planes, to_yuv(frame, context.height, context.width), strict=True):
            _fill(plane, levels)
        picture.pts, picture.time_base = self.frames, 1 / self.rate
        picture.color_range, picture.colorspace = LIMITED, BT709
        return picture

    def finish(self) -> None:
        for packet in self.stream.encode(None):
            if self.frames == 1:
                packet.dts = packet.pts  # of a single frame, libx265 sometimes gives a random one
            self.output.mux(packet)
        self.output.close()  # writes the index
        self.close()

    def close(self) -> None:
        # After a failure the file is thrown away: what its closing trips over would only hide the failure.
        with suppress(self.av.FFmpegError, OSError, ValueError):
            self.output.close()
        if self.sound:
            self.sound.close()
