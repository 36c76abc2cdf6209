"""`roundtrip PICTURE -o out.png`: encode, decode, and how near the result is."""

from __future__ import annotations

import argparse
import math
from typing import Any

from torch import Tensor

from ..media import check_image, read_image, write_image
from ..whole_files import check_target
from .arguments import (
    add_force_option,
    add_quality_option,
    add_run_options,
    add_vae_options,
    load_vae,
    way,
)
from .console import Console
from .decode import decode
from .encode import encode


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("roundtrip", help="encode, decode, and tell the PSNR")
    command.add_argument("input", metavar="PICTURE")
    command.add_argument("-o", "--output", help="where to write the decoded picture, transparency carried over")
    add_quality_option(command)
    add_vae_options(command)
    add_run_options(command)
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    picture = read_image(options.input)
    height, width = picture.pixels.shape[-2:]
    if options.output is not None:
        check_image(options.output, height=height, width=width, alpha=picture.alpha is not None)
        check_target(options.output, overwrite=options.force)
    vae = load_vae(options)
    _, latents = encode(vae, picture.pixels, options, console, "pad")
    plan, pixels = decode(vae, latents, options, console, (height, width))
    decoded = pixels.float().cpu()
    quality = psnr(decoded, picture.pixels)
    if options.output is not None:
        write_image(options.output, decoded, alpha=picture.alpha, quality=options.quality, overwrite=options.force)
    console.say(f"PSNR {quality:.2f} dB, {vae.spec.title}, {width}×{height} px, {way(plan)}")
    return {"input": options.input, "output": options.output, "psnr_db": quality, "width": width, "height": height}


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1]; infinite where they are equal."""
    mse = (a.double() - b.double()).square().mean().item()
    return math.inf if mse == 0 else 10 * math.log10(4 / mse)
