"""`demo`: decode a photograph in less memory than the whole run needs, and check the result against that run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import load_embedded
from ..media import check_image, read_latents, write_image
from ..whole_files import check_target
from .arguments import add_force_option
from .console import Console, Failed

PHOTOGRAPH = Path(__file__).parent.parent / "embedded" / "photograph.safetensors"
MEMORY_SHARE = 0.7
LARGEST_DIFFERENCE = 1e-4
"""Of pixels with a range of 2; one level of an 8-bit picture is 8e-3."""


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("demo", help="decode a photograph's latents in little memory, and check the result")
    command.add_argument("-o", "--output", default="exact_vae_demo.png", help="the picture (default %(default)s)")
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    check_target(options.output, overwrite=options.force)
    vae = load_embedded(dtype=torch.float32)  # so that the comparison is of arithmetic, not of rounding
    latents = read_latents(PHOTOGRAPH).tensor
    width, height = latents.shape[-1] * vae.spec.scale.w, latents.shape[-2] * vae.spec.scale.h
    check_image(options.output, height=height, width=width)
    limit = int(MEMORY_SHARE * vae.plan("decode", width=width, height=height, mode="whole").device_bytes)
    plan = vae.plan("decode", width=width, height=height, memory_limit=limit)
    console.say(f"{width}×{height} px, in {MEMORY_SHARE:.0%} of the memory that the whole run needs:")
    console.say(plan.table())
    with console.progress("streamed") as progress:
        streamed = vae.decode(latents, memory_limit=limit, progress=progress)
    write_image(options.output, streamed, overwrite=options.force)
    with console.progress("whole") as progress:
        whole = vae.decode(latents, mode="whole", progress=progress)
    difference = (streamed - whole).abs().max().item()
    console.say(f"{options.output}: largest difference from the whole run {difference:.1e}, of a range of 2")
    if not difference <= LARGEST_DIFFERENCE:  # NaN fails too
        raise Failed(f"the streamed picture differs from the whole run's by {difference:.1e}; please report this")
    return {"output": options.output, "largest_difference": difference, "plan": plan.to_dict()}
