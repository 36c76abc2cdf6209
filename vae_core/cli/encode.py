"""`encode PICTURE -o latents.safetensors`, or `encode CLIP`."""

from __future__ import annotations

import argparse
from typing import Any, Literal

import torch
from torch import Tensor

from .. import VAE, Plan
from ..errors import InputError
from ..media import Latents, Picture, read_image, write_latents
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
from .clip_sources import VIDEOS, ClipFacts, encode_clip, is_picture, is_picture_folder, refuse_video
from .console import Console, shape_text
from .jobs import Job, plan_jobs


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("encode", help="pictures or clips to latents")
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="PICTURE",
        help="picture files, or folders of them; for a VAE of clips videos, animations, and folders of which each is the "
        "pictures of one clip",
    )
    command.add_argument("-o", "--output", required=True, help="a .safetensors file, or a folder for several")
    command.add_argument(
        "--fit",
        choices=("crop", "pad"),
        default="crop",
        help="sides that are no multiple of the VAE's step, and frames that are too few for its last latent: crop "
        "(default), or pad, and record the size for decode",
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
    vae = load_vae(options)
    jobs = plan_jobs(
        options.inputs,
        options.output,
        reads=VIDEOS if vae.spec.clip else READABLE,
        writes=(".safetensors",),
        overwrite=options.force,
        as_one=is_picture_folder if vae.spec.clip else lambda folder: False,
    )
    return {"files": [_encode(job, vae, options, console) for job in jobs]}


def _encode(job: Job, vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if vae.spec.clip and not is_picture(job.source):
        return _encode_clip(job, vae, options, console)
    refuse_video(vae, job.source)
    picture = read_image(job.source)
    height, width = picture.pixels.shape[-2:]
    if picture.alpha is not None and vae.spec.pixel_channels == 3:
        console.note(f"{job.source}: its transparency is not encoded, only its colours")
    plan, raw = encode(vae, as_input(vae, picture), options, console, options.fit, _generator(options))
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


def _encode_clip(job: Job, vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    if options.sample:
        raise InputError(
            f"{job.source}: only pictures are drawn from the posterior, of clips its mean is taken; leave --sample out"
        )
    raw, facts = encode_clip(vae, job.source, options, console, options.fit)
    _note_crop(job, vae, (facts.height, facts.width), raw, console)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_latents(job.target, _clip_latents(vae, raw, facts, options), overwrite=options.force)
    shape, report = raw.shape, vae.last_report
    assert report is not None, "an encode that has ended has a report"
    size = f"{facts.frames} frames of {facts.width}×{facts.height} px"
    console.say(f"{job.source} → {job.target}: {size} to {shape_text(shape)} latents, {way(report.plan)}")
    return {
        "input": str(job.source),
        "output": str(job.target),
        "shape": list(shape),
        "width": facts.width,
        "height": facts.height,
        "frames": facts.frames,
        "fps": None if facts.fps is None else float(facts.fps),
        "way": way(report.plan),
        "report": report.to_dict(),
    }


def _clip_latents(vae: VAE, raw: Tensor, facts: ClipFacts, options: argparse.Namespace) -> Latents:
    pads = options.fit == "pad"
    return Latents(
        vae.normalize(raw) if options.normalized else raw,
        vae.spec.name,
        options.normalized,
        (facts.height, facts.width) if pads else None,
        facts.frames if pads and vae.frames_of(raw.shape[2]) != facts.frames else None,
        facts.fps,
    )


def as_input(vae: VAE, picture: Picture) -> Tensor:
    """What the VAE takes: pixels `1 3 h w` in [-1, 1], with alpha as a fourth channel if it has four, `1 c 1 h w` for clips."""
    pixels, alpha = picture
    if vae.spec.pixel_channels == 4:
        opacity = torch.ones_like(pixels[:, :1]) if alpha is None else alpha
        pixels = torch.cat([pixels, opacity * 2 - 1], dim=1)
    return pixels.unsqueeze(2) if vae.spec.clip else pixels


def encode(
    vae: VAE,
    pixels: Tensor,
    options: argparse.Namespace,
    console: Console,
    fit: Literal["crop", "pad"],
    generator: torch.Generator | None = None,
) -> tuple[Plan, Tensor]:
    """Pixels `b 3 h w` in [-1, 1] → raw latents `b c h w`, drawn with `generator` if given, and the plan followed.

    A clip of one frame: `b 3 1 h w` → `b c 1 h w`.
    """
    batch, height, width = pixels.shape[0], *pixels.shape[-2:]
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
