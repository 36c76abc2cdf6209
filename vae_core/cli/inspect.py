"""`inspect FILE`: what a VAE file is and why, read from its header alone."""

from __future__ import annotations

import argparse
from math import prod
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..spec import Spec
from .console import Console, shape_text


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("inspect", help="what a VAE file is, and why")
    command.add_argument("input", metavar="FILE", help="a file or a diffusers folder")
    command.add_argument("--variant", help="take it for this variant")
    command.add_argument("--tensors", action="store_true", help="list every tensor with its shape (--json always does)")
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    opened = open_checkpoint(options.input, variant=options.variant)
    result = describe(opened, Spec.of(opened.variant, opened.config))
    console.say("\n".join(_lines(result)))
    if options.tensors:
        console.say("\n".join(f"{name}  {shape_text(shape) or 'scalar'}" for name, shape in opened.shapes.items()))
    return result


def describe(opened: Checkpoint, spec: Spec) -> dict[str, Any]:
    return {
        "files": [str(file) for file in opened.files],
        "variant": opened.variant.name,
        "title": opened.variant.title,
        "candidates": list(opened.candidates),
        "layout": opened.layout,
        "why": list(opened.why),
        "network": opened.variant.network,
        "dtype": str(opened.dtype).removeprefix("torch."),
        "parameters": sum(prod(shape) for shape in opened.shapes.values()),
        "latent": {
            "channels": spec.latent_channels,
            "scale": spec.scale.h,
            "frames": spec.scale.t if spec.clip else None,
            "convention": spec.convention,
        },
        "config": dict(opened.config),
        "ignored": dict(opened.ignored),
        "tensors": {name: list(shape) for name, shape in opened.shapes.items()},
    }


def _clips(frames: int | None) -> str:
    """How many frames a latent stands for, in words; "" for a VAE of pictures."""
    if frames is None:
        return ""
    return f"1 latent per {frames} frames after the first" if frames > 1 else "1 latent per frame"


def _lines(result: dict[str, Any]) -> list[str]:
    latent = result["latent"]
    rows = {
        "file": ", ".join(result["files"]),
        "variant": f"{result['variant']}: {result['title']}",
        "may also be": ", ".join(name for name in result["candidates"] if name != result["variant"]),
        "layout": result["layout"],
        "network": f"{result['network']}, {result['parameters']:,} parameters in {result['dtype']}",
        "latents": f"{latent['channels']} channels, a cell per {latent['scale']}×{latent['scale']} px",
        "clips": _clips(latent["frames"]),
        "convention": latent["convention"],
    }
    lines = [f"{name:<12} {value}" for name, value in rows.items() if value]
    lines += [f"{'why' if i == 0 else '':<12} {reason}" for i, reason in enumerate(result["why"])]
    ignored = result["ignored"].items()
    return lines + [f"{'ignored' if i == 0 else '':<12} {key}: {reason}" for i, (key, reason) in enumerate(ignored)]
