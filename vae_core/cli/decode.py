"""`decode LATENTS -o picture.png`, or `-o clip.mp4`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import VAE, Plan
from ..media import Latents, check_image, numbered, read_latents, write_image
from ..media.images import FORMATS
from ..media.latents import SUFFIXES
from ..whole_files import check_target
from .arguments import (
    add_clip_options,
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
from .clip_outputs import (
    DEFAULT_FPS,
    ENDINGS,
    TIMELESS,
    ClipOutput,
    clip_paths,
    how_written,
    refuse_blend,
    refuse_clip_options,
    write_clips,
)
from .console import Console
from .jobs import Job, plan_jobs
from .latent_inputs import raw_latents

WRITTEN = (".png", ".jpg", *ENDINGS)


def add(commands: Any) -> argparse.ArgumentParser:
    command = commands.add_parser("decode", help="latents to pictures or clips")
    command.add_argument(
        "inputs", nargs="+", metavar="LATENTS", help=".safetensors, ComfyUI's .latent, .npy, or folders of them"
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        help="a .png, .jpg or .webp file; for a clip a .mp4, .webm, .webp, .gif or .npy, or a folder of pictures, and of "
        "a VAE for pictures a batch is such a clip; a folder for several",
    )
    command.add_argument(
        "--format",
        choices=[ending.removeprefix(".") for ending in WRITTEN],
        default="png",
        help="of what goes into a folder (png)",
    )
    command.add_argument("--normalized", action="store_true", help="the latents are a diffusion model's, not raw")
    add_quality_option(command)
    clips = add_clip_options(command)
    clips.add_argument("--audio", metavar="FILE", help="take the sound of this file along, in .mp4 and .webm")
    clips.add_argument(
        "--resume",
        action="store_true",
        help="keep decoded frames in OUTPUT.resume until all are done, and go on from those that are there",
    )
    add_vae_options(command)
    add_run_options(command)
    add_force_option(command)
    return command


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    vae = load_vae(options)
    jobs = plan_jobs(
        options.inputs,
        options.output,
        reads=SUFFIXES,
        writes=(f".{options.format}", *FORMATS, *ENDINGS),
        overwrite=options.force,
        bare_is_folder=vae.spec.clip,
    )
    return {"files": [_decode(job, vae, options, console) for job in jobs]}


def _decode(job: Job, vae: VAE, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    file = read_latents(job.source)
    latents = raw_latents(job.source, vae, file, options.normalized)
    if file.variant not in (None, vae.spec.name):
        console.note(f"{job.source}: made by {file.variant!r}, decoded by {vae.spec.name!r}; --vae chooses another")
    frames = vae.frames_of(latents.shape[2]) if vae.spec.clip else 1
    as_clip = frames > 1 or job.target.suffix.lower() not in FORMATS
    return (_decode_clip if as_clip else _decode_picture)(job, vae, latents, file, options, console)


def _decode_picture(
    job: Job, vae: VAE, latents: Tensor, file: Latents, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    if job.folder is None:  # a folder may be for stills and clips
        refuse_clip_options(options, job.target)
    _check_output(job, vae, latents, options.force)
    plan, pixels = decode(vae, latents, options, console, file.size)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    colours, alpha = as_pictures(pixels)
    written = write_image(job.target, colours, alpha=alpha, quality=options.quality, overwrite=options.force)
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


def as_pictures(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Decoded pixels `b c h w` or `b c 1 h w` → colours `b 3 h w`, and alpha `b 1 h w` in [0, 1] if there are four channels."""
    pixels = pixels.flatten(2, 3) if pixels.ndim == 5 else pixels
    return pixels[:, :3], (pixels[:, 3:] + 1) / 2 if pixels.shape[1] == 4 else None


def _decode_clip(
    job: Job, vae: VAE, latents: Tensor, file: Latents, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    refuse_blend(options)
    clips, held = (len(latents), vae.frames_of(latents.shape[2])) if vae.spec.clip else (1, len(latents))
    frames = min(file.frames or held, held)
    paths = clip_paths(job, clips, frames)
    if job.folder is not None:
        Path(paths[0]).parent.mkdir(parents=True, exist_ok=True)
    outputs = _clip_outputs(vae, latents, file, options, paths)
    if options.fps is None and file.fps is None and outputs[0].kind not in TIMELESS:
        console.note(f"{job.source}: does not say how many frames a second; {DEFAULT_FPS} are taken, --fps sets others")
    resume = Path(f"{outputs[0].path.rstrip('/')}.resume") if options.resume else None
    write_clips(vae, latents, outputs, options, console, size=file.size, frames=frames, resume=resume)
    report = vae.last_report
    taken = "all of it decoded before" if report is None else way(report.plan)
    console.say(f"{job.source} → {', '.join(paths)}: {outputs[0].described(frames)}, {taken}")
    return {
        "input": str(job.source),
        "outputs": paths,
        **outputs[0].to_dict(frames),
        "way": taken,
        "report": None if report is None else report.to_dict(),
    }


def _clip_outputs(
    vae: VAE, latents: Tensor, file: Latents, options: argparse.Namespace, paths: list[str]
) -> list[ClipOutput]:
    scale = vae.spec.scale
    height, width = file.size or (latents.shape[-2] * scale.h, latents.shape[-1] * scale.w)
    fps, how = options.fps or file.fps or DEFAULT_FPS, how_written(options, options.audio)
    alpha = vae.spec.pixel_channels == 4
    return [ClipOutput(path, width, height, fps, how).checked(alpha=alpha) for path in paths]


def decode(
    vae: VAE,
    latents: Tensor,
    options: argparse.Namespace,
    console: Console,
    size: tuple[int, int] | None,
) -> tuple[Plan, Tensor]:
    """Raw latents `b c h w` → pixels `b 3 h w` in [-1, 1], cropped to `size` (h, w), and the plan that was followed.

    A clip's: `b c t h w` → `b 3 t' h w`.
    """
    batch, _, *times, latent_h, latent_w = latents.shape
    plan = vae.plan(
        "decode",
        width=latent_w * vae.spec.scale.w,
        height=latent_h * vae.spec.scale.h,
        frames=vae.frames_of(times[0]) if times else 1,
        batch=batch,
        **run_options(options),
    )
    with console.progress("decode") as progress:
        pixels = vae.decode(latents, **as_planned(options, plan), progress=progress, size=size)
    console.tell(vae.last_report)
    return followed(vae, plan), pixels


def _check_output(job: Job, vae: VAE, latents: Tensor, overwrite: bool) -> None:
    """Refuse now, not after the run, what could not be written; a batch is written to several files."""
    latent_h, latent_w = latents.shape[-2:]
    check_image(job.target, height=latent_h * vae.spec.scale.h, width=latent_w * vae.spec.scale.w)
    if job.target.parent.is_dir():
        for target in numbered(job.target, len(latents)):
            check_target(target, overwrite=overwrite)
