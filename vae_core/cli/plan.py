"""`plan --width --height`: the table of rungs, that is what fits, its peak and its cost."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import BudgetError, InputError
from .arguments import add_run_options, add_vae_options, load_vae, positive, run_options
from .console import Console


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("plan", help="what would fit, and what it would cost")
    command.add_argument("--width", type=positive, required=True, help="of the picture, in pixels")
    command.add_argument("--height", type=positive, required=True, help="of the picture, in pixels")
    command.add_argument("--frames", type=positive, help="of a clip, for a VAE that takes them (default 1)")
    command.add_argument("--batch", type=positive, default=1, help="number of pictures (default 1)")
    command.add_argument("--direction", choices=("decode", "encode"), default="decode")
    add_vae_options(command)
    add_run_options(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    vae = load_vae(options)
    if options.frames is not None and not vae.spec.clip:
        raise InputError(f"--frames is for clips, and {vae.spec.title} is for pictures; give --batch instead")
    frames = "" if options.frames is None else f", {options.frames} frames,"
    console.say(f"{options.direction} of {options.width}×{options.height} px{frames} with {vae.spec.title}")
    try:
        made = vae.plan(
            options.direction,
            width=options.width,
            height=options.height,
            frames=options.frames or 1,
            batch=options.batch,
            **run_options(options),
        )
    except BudgetError as error:
        console.say(error.table)
        raise
    console.say(made.table())
    return made.to_dict()
