"""`decode LATENTS -o picture.png`."""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor

from .. import VAE, Plan
from ..errors import InputError
from ..media import Latents, check_image, numbered, read_latents, write_image
from ..media.images import FORMATS
from ..media.latents import SUFFIXES
from ..whole_files import check_target
from .arguments import (
    add_force_option,
    add_quality_option,
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
    command = commands.add_parser("decode", help="latents to pictures")
    command.add_argument(
        "inputs", nargs="+", metavar="LATENTS", help=".safetensors, ComfyUI's .latent, .npy, or folders of them"
    )
    command.add_argument("-o", "--output", required=True, help="a .png, .jpg or .webp file, or a folder for several")
    command.add_argument(
        "--format", choices=("png", "jpg", "webp"), default="png", help="of pictures in a folder (png)"
    )
    command.add_argument("--normalized", action="store_true", help="the latents are a diffusion model's, not raw")
    add_quality_option(command)
    add_vae_options(command)
    add_run_options(command)
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    endings = (f".{options.format}", *FORMATS)
    jobs = plan_jobs(options.inputs, options.output, reads=SUFFIXES, writes=endings, overwrite=options.force)
    vae = load_vae(options)
    return {"files": [_decode(job, vae, options, console) for job in jobs]}


def _decode(job: Job, vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    file = read_latents(job.source)
    latents = _raw(job, vae, file, options.normalized)
    _check_output(job, vae, latents, options.force)
    _note_mismatch(job, vae, file, console)
    plan, pixels = decode(vae, latents, options, console, file.size)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    written = write_image(job.target, pixels, quality=options.quality, overwrite=options.force)
    report = vae.last_report
    height, width = pixels.shape[-2:]
    console.say(f"{job.source} → {', '.join(map(str, written))}: {width}×{height} px, {way(plan)}")
    return {
        "input": str(job.source),
        "outputs": [str(path) for path in written],
        "width": width,
        "height": height,
        "way": way(plan),
        "report": None if report is None else report.to_dict(),
    }


def decode(
    vae: VAE,
    latents: Tensor,
    options: argparse.Namespace,
    console: Console,
    size: tuple[int, int] | None,
) -> tuple[Plan, Tensor]:
    """Raw latents `b c h w` → pixels `b 3 h w` in [-1, 1], cropped to `size` (h, w), and the plan that was followed."""
    batch, _, latent_h, latent_w = latents.shape
    plan = vae.plan(
        "decode",
        width=latent_w * vae.spec.scale.w,
        height=latent_h * vae.spec.scale.h,
        batch=batch,
        **run_options(options),
    )
    with console.progress("decode") as progress:
        pixels = vae.decode(latents, **as_planned(options, plan), progress=progress, size=size)
    console.tell(vae.last_report)
    return followed(vae, plan), pixels


def _raw(job: Job, vae: VAE, file: Latents, normalized: bool) -> Tensor:
    """The file's latents as the VAE emits them; `normalized` tells what a .latent or .npy cannot."""
    spec, channels = vae.spec, file.tensor.shape[1]
    # ComfyUI keeps FLUX.2's latents packed and normalized, and the number of channels gives that away.
    packed = channels == spec.packed_channels != spec.latent_channels
    normalized = normalized or file.normalized or packed
    expected = spec.packed_channels if normalized else spec.latent_channels
    if file.tensor.ndim != 4 or channels != expected:
        raise InputError(
            f"{job.source}: holds {shape_text(file.tensor.shape)} values, {spec.title} decodes b×{expected}×h×w"
        )
    return vae.denormalize(file.tensor) if normalized else file.tensor


def _check_output(job: Job, vae: VAE, latents: Tensor, overwrite: bool) -> None:
    """Refuse now, not after the run, what could not be written; a batch is written to several files."""
    latent_h, latent_w = latents.shape[-2:]
    check_image(job.target, height=latent_h * vae.spec.scale.h, width=latent_w * vae.spec.scale.w)
    if job.target.parent.is_dir():
        for target in numbered(job.target, len(latents)):
            check_target(target, overwrite=overwrite)


def _note_mismatch(job: Job, vae: VAE, latents: Latents, console: Console) -> None:
    if latents.variant not in (None, vae.spec.name):
        console.note(f"{job.source}: made by {latents.variant!r}, decoded by {vae.spec.name!r}; --vae chooses another")
