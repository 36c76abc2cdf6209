"""What the commands' grammars share: the parser class, groups of options, and the VAE that the options name."""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import Any, NoReturn

import torch

from .. import VAE, Plan, load, load_embedded
from ..errors import InputError
from ..media import frame_rate
from ..plan import tiles_text

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other wrong input is reported."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; see --help")


def add_console_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="say nothing but errors, show no progress")
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def add_force_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--force", action="store_true", help="overwrite files that exist")


def add_vae_options(command: argparse.ArgumentParser) -> None:
    """What `load_vae` reads."""
    command.add_argument("--vae", metavar="PATH", help="VAE file or diffusers folder (default: the small embedded one)")
    command.add_argument("--variant", help="which model the VAE belongs to, where its file leaves that open")
    command.add_argument("--dtype", choices=tuple(DTYPES), help="number format to compute in (default: what is safe)")
    command.add_argument("--device", type=_device, help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def load_vae(options: argparse.Namespace) -> VAE:
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    if options.vae is not None:
        return load(options.vae, variant=options.variant, device=options.device, dtype=dtype)
    if options.variant is not None:
        raise InputError("--variant says what the file of --vae is; name that file, or leave --variant out")
    return load_embedded(device=options.device, dtype=dtype)


def add_run_options(command: argparse.ArgumentParser) -> None:
    """What `run_options` reads."""
    command.add_argument(
        "--memory", metavar="LIMIT", help="bytes, 2GiB, or 50%%; weights included (default: what is free)"
    )
    command.add_argument("--tile", type=positive, metavar="PX", help="edge of a tile, see --mode (default: what fits)")
    command.add_argument(
        "--mode",
        choices=("exact", "whole", "blend"),
        default="exact",
        help="exact: as if untiled, within the memory (default); whole: untiled; blend: approximate, as others do it",
    )


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `VAE.plan`, `VAE.encode` and `VAE.decode`."""
    return {"mode": options.mode, "tile": options.tile, "memory_limit": options.memory}


def as_planned(options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The same, so that a run follows `plan` even if the free memory has changed since."""
    return run_options(options) | {"memory_limit": plan.limit_bytes}


def followed(vae: VAE, plan: Plan) -> Plan:
    """What the last run did in the end: `plan`, unless something came in between."""
    return plan if vae.last_report is None else vae.last_report.plan


def way(plan: Plan) -> str:
    """How a plan runs, in a few words, for the line that reports the result."""
    return plan.rung if plan.tile is None else f"{plan.rung}, tiles of {tiles_text(plan.tile)}"


def add_quality_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--quality", type=_percent, default=95, metavar="1-100", help="of jpg and webp; a webp of 100 is lossless (95)"
    )


def add_clip_options(command: argparse.ArgumentParser) -> Any:
    """How a clip is written; `clip_outputs` reads them. Returns their group, for more of the kind."""
    clips = command.add_argument_group("clips")
    clips.add_argument(
        "--fps", type=_rate, help="frames a second: 24, 23.976, 30000/1001 (default: what the input says, else 16)"
    )
    clips.add_argument("--codec", help="h264 (default), h265 or av1 in .mp4; vp9 (default) or av1 in .webm")
    clips.add_argument("--crf", type=int, help="quality of .mp4 and .webm, 0 is the best (default: the codec's usual)")
    return clips


def positive(text: str) -> int:
    """A whole number from 1 up, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _percent(text: str) -> int:
    if positive(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100")
    return int(text)


def _rate(text: str) -> Fraction:
    try:
        return frame_rate(Fraction(text) if "/" in text else float(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of frames a second; try 24 or 30000/1001") from None


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(1, device=device).cpu()  # torch refuses a device that is not there only when it is used
        return device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise argparse.ArgumentTypeError(f"{text!r} is no device of this machine; try cpu or cuda") from None
