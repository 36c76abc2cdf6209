"""`convert IN OUT --to diffusers|ldm|flax`: the same weights, in their stored number format, in another layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint, save_diffusers, save_flax, save_ldm
from ..models import build
from .arguments import add_force_option
from .console import Console

LAYOUTS = ("diffusers", "ldm", "flax")


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("convert", help="write a VAE in another layout")
    command.add_argument("input", metavar="IN", help="a file or a diffusers folder")
    command.add_argument("output", metavar="OUT", help="a .safetensors file for ldm, a folder for diffusers and flax")
    command.add_argument("--to", choices=LAYOUTS, required=True)
    command.add_argument("--variant", help="take the input for this variant")
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    opened = open_checkpoint(options.input, variant=options.variant)
    if opened.candidates:
        console.note(f"{options.input}: {opened.why[-1]}")
    written = _save(opened, options.output, options.to, options.force)
    console.say(f"{options.input} ({opened.variant.title}, {opened.layout}) → {', '.join(map(str, written))}")
    return {"input": options.input, "outputs": [str(path) for path in written], "variant": opened.variant.name}


def _save(opened: Checkpoint, output: str, layout: str, overwrite: bool) -> tuple[Path, ...]:
    weights = build(opened).state_dict()  # through the network, so that what is written is known to be complete
    if layout == "diffusers":
        return save_diffusers(output, opened.variant.network, opened.config, weights, overwrite=overwrite)
    if layout == "flax":
        return save_flax(output, opened.config, weights, overwrite=overwrite)
    config = opened.config if opened.config_is_known else None
    variant = None if opened.candidates else opened.variant.name
    return save_ldm(output, config, weights, variant=variant, overwrite=overwrite)
