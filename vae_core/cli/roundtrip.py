"""`roundtrip PICTURE -o out.png`, or `roundtrip clip.mp4 -o again.mp4`: encode, decode, and how near the result is."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import VAE
from ..media import Source, check_image, open_source, read_image, write_image
from ..media.video_encoder import CONTAINERS
from ..media.video_sinks import sink_kind
from ..whole_files import check_target
from .arguments import (
    add_clip_options,
    add_force_option,
    add_quality_option,
    add_run_options,
    add_vae_options,
    load_vae,
    way,
)
from .clip_outputs import DEFAULT_FPS, ClipOutput, how_written, refuse_blend, refuse_clip_options, write_clips
from .clip_sources import encode_clip, is_picture, refuse_video
from .console import Console
from .decode import as_pictures, decode
from .encode import as_input, encode


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("roundtrip", help="encode, decode, and tell the PSNR")
    command.add_argument("input", metavar="PICTURE", help="or, for a VAE of clips, a video or a folder of pictures")
    command.add_argument(
        "-o", "--output", help="where to write the decoded picture, with its transparency, or the clip, with its sound"
    )
    add_quality_option(command)
    add_clip_options(command)
    add_vae_options(command)
    add_run_options(command)
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    vae = load_vae(options)
    refuse_video(vae, Path(options.input))
    as_clip = vae.spec.clip and not is_picture(Path(options.input))
    return (_clip if as_clip else _picture)(vae, options, console)


def _picture(vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    picture = read_image(options.input)
    height, width = picture.pixels.shape[-2:]
    if options.output is not None:
        refuse_clip_options(options, Path(options.output))
        check_image(options.output, height=height, width=width, alpha=picture.alpha is not None)
        check_target(options.output, overwrite=options.force)
    original = as_input(vae, picture)
    _, latents = encode(vae, original, options, console, "pad")
    plan, pixels = decode(vae, latents, options, console, (height, width))
    decoded = pixels.float().cpu()
    quality = psnr(decoded, original)
    if options.output is not None:
        colours, alpha = as_pictures(decoded)
        alpha = picture.alpha if alpha is None else alpha
        write_image(options.output, colours, alpha=alpha, quality=options.quality, overwrite=options.force)
    console.say(f"PSNR {quality:.2f} dB, {vae.spec.title}, {width}×{height} px, {way(plan)}")
    return {"input": options.input, "output": options.output, "psnr_db": quality, "width": width, "height": height}


def _clip(vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    refuse_blend(options)
    outputs = [] if options.output is None else [_output(vae, options)]
    latents, facts = encode_clip(vae, options.input, options, console, "pad")
    error, size = Error(), (facts.height, facts.width)
    with open_source(options.input, alpha=vae.spec.pixel_channels == 4) as source:

        def compared(chunks: Iterator[Tensor]) -> Iterator[Tensor]:
            return _compared(chunks, source, error)

        write_clips(vae, latents, outputs, options, console, size=size, frames=facts.frames, through=compared)
    quality, report = error.psnr(), vae.last_report
    assert report is not None, "a decode that has ended has a report"
    clip = f"{facts.frames} frames of {facts.width}×{facts.height} px"
    console.say(f"PSNR {quality:.2f} dB, {vae.spec.title}, {clip}, {way(report.plan)}")
    return {
        "input": options.input,
        "output": options.output,
        "psnr_db": quality,
        "width": facts.width,
        "height": facts.height,
        "frames": facts.frames,
        "fps": None if facts.fps is None else float(facts.fps),
        "report": report.to_dict(),
    }


def _output(vae: VAE, options: argparse.Namespace) -> ClipOutput:
    """Checked, before anything is computed."""
    kind = sink_kind(options.output)
    path = f"{options.output.rstrip('/')}/" if kind == "png" else options.output
    alpha = vae.spec.pixel_channels == 4
    with open_source(options.input) as source:
        audio = options.input if source.has_audio and kind in CONTAINERS else None
        fps = options.fps or source.fps or DEFAULT_FPS
        return ClipOutput(path, source.width, source.height, fps, how_written(options, audio)).checked(alpha=alpha)


def _compared(chunks: Iterator[Tensor], source: Source, error: Error) -> Iterator[Tensor]:
    """The chunks `1 c t h w` as they come, each held against the frames that it was made from."""
    for pixels in chunks:
        frames = source.read(pixels.shape[2])
        assert frames is not None, "as many are decoded as were encoded"
        error.add(pixels[0].float().cpu(), frames)
        del frames
        yield pixels
        del pixels


class Error:
    """The squared error of pixels in [-1, 1], piece by piece."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, a: Tensor, b: Tensor) -> None:
        self.sum += (a.double() - b.double()).square().sum().item()
        self.count += a.numel()

    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB; infinite where all were equal."""
        return math.inf if self.sum == 0 else 10 * math.log10(4 * self.count / self.sum)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]; infinite where they are equal."""
    error = Error()
    error.add(a, b)
    return error.psnr()
