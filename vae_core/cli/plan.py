"""`plan --width --height`: the table of rungs, that is what fits, its peak and its cost."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import BudgetError
from .arguments import add_run_options, add_vae_options, load_vae, positive, run_options
from .console import Console


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("plan", help="what would fit, and what it would cost")
    command.add_argument("--width", type=positive, required=True, help="of the picture, in pixels")
    command.add_argument("--height", type=positive, required=True, help="of the picture, in pixels")
    command.add_argument("--batch", type=positive, default=1, help="number of pictures (default 1)")
    command.add_argument("--direction", choices=("decode", "encode"), default="decode")
    add_vae_options(command)
    add_run_options(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    vae = load_vae(options)
    console.say(f"{options.direction} of {options.width}×{options.height} px with {vae.spec.title}")
    try:
        made = vae.plan(
            options.direction, width=options.width, height=options.height, batch=options.batch, **run_options(options)
        )
    except BudgetError as error:
        console.say(error.table)
        raise
    console.say(made.table())
    return made.to_dict()
