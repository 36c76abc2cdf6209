"""`encode PICTURE -o latents.safetensors`."""

from __future__ import annotations

import argparse
from typing import Any, Literal

import torch
from torch import Tensor

from .. import VAE, Plan
from ..errors import InputError
from ..media import Latents, read_image, write_latents
from ..media.images import READABLE
from .arguments import (
    add_force_option,
    add_run_options,
    add_vae_options,
    as_planned,
    followed,
    load_vae,
    run_options,
    way,
)
from .console import Console, shape_text
from .jobs import Job, plan_jobs


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("encode", help="pictures to latents")
    command.add_argument("inputs", nargs="+", metavar="PICTURE", help="picture files, or folders of them")
    command.add_argument("-o", "--output", required=True, help="a .safetensors file, or a folder for several")
    command.add_argument(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="sides that are no multiple of the VAE's step: crop (default), or pad, and record the size for decode",
    )
    command.add_argument("--sample", action="store_true", help="draw from the posterior instead of taking its mean")
    command.add_argument("--seed", type=int, help="of --sample (default 0)")
    command.add_argument("--normalized", action="store_true", help="write what a diffusion model takes instead of raw")
    add_vae_options(command)
    add_run_options(command)
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if options.seed is not None and not options.sample:
        raise InputError("--seed has a meaning only with --sample; add that, or leave --seed out")
    jobs = plan_jobs(options.inputs, options.output, reads=READABLE, writes=(".safetensors",), overwrite=options.force)
    vae = load_vae(options)
    return {"files": [_encode(job, vae, options, console) for job in jobs]}


def _encode(job: Job, vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    picture = read_image(job.source)
    height, width = picture.pixels.shape[-2:]
    if picture.alpha is not None:
        console.note(f"{job.source}: its transparency is not encoded, only its colours")
    plan, raw = encode(vae, picture.pixels, options, console, options.fit, _generator(options))
    _note_crop(job, vae, (height, width), raw, console)
    latents = Latents(
        vae.normalize(raw) if options.normalized else raw,
        vae.spec.name,
        options.normalized,
        (height, width) if options.fit == "pad" else None,
    )
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_latents(job.target, latents, overwrite=options.force)
    shape = latents.tensor.shape
    console.say(f"{job.source} → {job.target}: {width}×{height} px to {shape_text(shape)} latents, {way(plan)}")
    report = None if vae.last_report is None else vae.last_report.to_dict()
    return {
        "input": str(job.source),
        "output": str(job.target),
        "shape": list(shape),
        "way": way(plan),
        "report": report,
    }


def encode(
    vae: VAE,
    pixels: Tensor,
    options: argparse.Namespace,
    console: Console,
    fit: Literal["crop", "pad"],
    generator: torch.Generator | None = None,
) -> tuple[Plan, Tensor]:
    """Pixels `b 3 h w` in [-1, 1] → raw latents `b c h w`, drawn with `generator` if given, and the plan followed."""
    batch, _, height, width = pixels.shape
    (step_h, step_w), up = vae.spec.multiple, fit == "pad"
    plan = vae.plan(
        "encode",
        width=width + (-width % step_w if up else 0),
        height=height + (-height % step_h if up else 0),
        batch=batch,
        **run_options(options),
    )
    sample = generator is not None
    with console.progress("encode") as progress:
        how = as_planned(options, plan)
        raw = vae.encode(pixels, **how, progress=progress, sample=sample, generator=generator, fit=fit)
    console.tell(vae.last_report)
    return followed(vae, plan), raw


def _generator(options: argparse.Namespace) -> torch.Generator | None:
    return torch.Generator().manual_seed(options.seed or 0) if options.sample else None


def _note_crop(job: Job, vae: VAE, size: tuple[int, int], latents: Tensor, console: Console) -> None:
    """Cropped pixels are lost, so it is said."""
    kept = (latents.shape[-2] * vae.spec.scale.h, latents.shape[-1] * vae.spec.scale.w)
    if kept[0] < size[0] or kept[1] < size[1]:
        console.note(f"{job.source}: cropped from {size[1]}×{size[0]} to {kept[1]}×{kept[0]} px; --fit pad keeps all")
