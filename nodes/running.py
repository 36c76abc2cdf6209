"""One decode or encode for a node: whichever VAE is connected, with progress, and with what the panel shows afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..vae_core import VAE
from ..vae_core.execution import Direction, How
from . import host, summary
from .conventions import original_of, samples_of, with_the_axes_of
from .hosted import Adopted, Fit, Hosted
from .inputs import DTYPES
from .mishaps import latent_kept
from .summary import Job
from .vae_object import ExactVAE
from .watch import Watch, decoding

FRAMES_PER_TILE, FRAMES_OVERLAP = 64, 8
"""Of ComfyUI's own tiled decode of videos: the defaults of its node."""


@dataclass
class Asked:
    """What a node was asked besides its subject."""

    how: How = field(default_factory=How)
    precision: str = "auto"
    fit: Fit = "crop"
    node_id: str | None = None
    prompt: Any = None
    workflow: Mapping[str, Any] | None = None


def connected(adopted: Adopted, core: Any) -> tuple[Hosted, Any] | str:
    """What runs a connected VAE: ours and the patcher of its weights; or why it is left to ComfyUI, in a sentence."""
    if isinstance(core, ExactVAE):
        return core.hosted, core.patcher
    hosted = adopted.of(core)
    return hosted if isinstance(hosted, str) else (hosted, core.patcher)


def in_precision(hosted: Hosted, patcher: Any, direction: Direction, precision: str) -> tuple[Hosted, Any]:
    """The same VAE with its weights in the format asked for."""
    wanted, vae = DTYPES[precision], hosted.vae
    if wanted is None or wanted == (vae.dtype if direction == "decode" else vae.encode_dtype):
        return hosted, patcher
    own = hosted.converted(wanted)
    return own.hosted, own.patcher


def decoded(adopted: Adopted, core: Any, latent: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """A LATENT → IMAGE, as a node returns it."""
    samples = samples_of(latent)
    with latent_kept(samples, asked.prompt, asked.workflow):
        found = connected(adopted, core)
        if isinstance(found, str):
            return _decoded_by_core(core, samples, asked, found)
        notes, samples = notes_on(found[0].vae, samples), with_the_axes_of(found[0].vae, samples)
        found[0].outline(samples)  # refused here, before weights are converted or moved
        hosted, patcher = in_precision(*found, "decode", asked.precision)
        started = time.perf_counter()
        original = original_of(hosted.vae, latent)
        image = hosted.decode(samples, patcher, asked.how, decoding(asked.node_id), original)
        told = summary.of_run(
            hosted.vae, Job.of("decode", image), hosted.vae.last_report, time.perf_counter() - started, notes
        )
        return {"ui": {summary.KEY: [told]}, "result": (one_batch(image),)}


def encoded(adopted: Adopted, core: Any, image: Tensor, mask: Tensor | None, asked: Asked) -> dict[str, Any]:
    """IMAGE → a LATENT, as a node returns it."""
    found = connected(adopted, core)
    if isinstance(found, str):
        return _encoded_by_core(core, image, mask, asked, found)
    hosted, patcher = in_precision(*found, "encode", asked.precision)
    started = time.perf_counter()
    job = Job.of("encode", image.unsqueeze(0) if hosted.vae.spec.clip else image)
    latent = hosted.encode_latent(image, patcher, asked.how, Watch(asked.node_id, frames=job.frames), asked.fit, mask)
    seconds = time.perf_counter() - started
    notes = notes_on_pixels(hosted.vae, job, latent["samples"], asked.fit)
    notes += ["the alpha channel is left out"] if image.shape[-1] > hosted.vae.spec.pixel_channels else []
    told = summary.of_run(hosted.vae, job, hosted.vae.last_report, seconds, notes)
    return {"ui": {summary.KEY: [told]}, "result": (latent,)}


def one_batch(image: Tensor) -> Tensor:
    """`b t h w c` → IMAGE, as ComfyUI's own node makes it; a batch of pictures unchanged."""
    return image.reshape(-1, *image.shape[-3:])


def notes_on(vae: VAE, samples: Tensor) -> list[str]:
    """On a LATENT's samples as they came."""
    if vae.spec.clip:
        pictures = samples.ndim == 4 and len(samples) > 1
        return [f"{len(samples)} pictures, each decoded as a clip of one frame"] if pictures else []
    if samples.ndim == 5 and samples.shape[2] > 1:
        return [
            f"a video of {samples.shape[2]} latent frames: the first is decoded, since {vae.spec.title} is for pictures"
        ]
    return []


def notes_on_pixels(vae: VAE, job: Job, samples: Tensor, fit: str) -> list[str]:
    """On what was encoded: how it was made to fit. Frames that are left out are among the run's own events."""
    (h, w), (mh, mw) = (job.height, job.width), vae.spec.multiple
    notes = []
    if h % mh or w % mw:
        to = (h + -h % mh, w + -w % mw) if fit == "pad" else (h // mh * mh, w // mw * mw)
        notes.append(f"{'padded' if fit == 'pad' else 'cropped'} from {w}×{h} to {to[1]}×{to[0]}")
    if vae.spec.clip and vae.frames_of(samples.shape[2]) > job.frames:
        notes.append(f"padded from {job.frames} to {vae.frames_of(samples.shape[2])} frames")
    return notes


# --- VAEs that ComfyUI runs itself --------------------------------------------------------------------------------------


def _decoded_by_core(core: Any, samples: Tensor, asked: Asked, why: str) -> dict[str, Any]:
    started, tiled = time.perf_counter(), asked.how.tile is not None
    image = _tiled_by_core(core, samples, asked.how) if tiled else core.decode(samples)
    told = told_of_core(core, Job.of("decode", image), started, tiled, why, asked)
    return {"ui": {summary.KEY: [told]}, "result": (one_batch(image),)}


def _tiled_by_core(core: Any, samples: Tensor, how: How) -> Tensor:
    """As ComfyUI's own node asks for it: in latent cells, and in latent frames."""
    cells, frames = core.spacial_compression_decode(), core.temporal_compression_decode()
    tile = max(how.tile or 0, 1) // cells
    overlap = min(how.overlap or 0, max(how.tile or 0, 1) // 4) // cells
    if frames is None:
        return core.decode_tiled(samples, tile_x=tile, tile_y=tile, overlap=overlap)
    times = {"tile_t": max(2, FRAMES_PER_TILE // frames), "overlap_t": max(1, FRAMES_OVERLAP // frames)}
    return core.decode_tiled(samples, tile_x=tile, tile_y=tile, overlap=overlap, **times)


def _encoded_by_core(core: Any, image: Tensor, mask: Tensor | None, asked: Asked, why: str) -> dict[str, Any]:
    started, how = time.perf_counter(), asked.how
    tiled = how.tile is not None
    if tiled:
        times = {"tile_t": FRAMES_PER_TILE, "overlap_t": FRAMES_OVERLAP}
        samples = core.encode_tiled(image, tile_x=how.tile, tile_y=how.tile, overlap=how.overlap or 0, **times)
    else:
        samples = core.encode(image)
    latent = {"samples": samples}
    if mask is not None:
        latent["noise_mask"] = mask.reshape(-1, 1, *mask.shape[-2:])
    job = Job.of("encode", image.unsqueeze(0) if samples.ndim == 5 and len(samples) == 1 else image)
    told = told_of_core(core, job, started, tiled, why, asked)
    return {"ui": {summary.KEY: [told]}, "result": (latent,)}


def told_of_core(core: Any, job: Job, started: float, tiled: bool, why: str, asked: Asked) -> dict[str, Any]:
    """What the panel shows of such a run."""
    title = type(core.first_stage_model).__name__
    notes = [f"run by ComfyUI's own code, memory limit and precision not applied: {why}"]
    if asked.fit == "pad":
        notes.append("cropped, not padded: ComfyUI's own code crops")
    host.log.info("Exact VAE leaves %s to ComfyUI: %s", title, why)
    return summary.of_core_run(title, job, time.perf_counter() - started, tiled, notes)
