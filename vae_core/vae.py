"""VAE: pixels to latents and back, in bounded memory. Plans, then runs.

Latents are raw, as the network emits them; `normalize` and `denormalize` go to the diffusion model's space and back. Pixels are
`b c h w` in [-1, 1]; those of the causal video networks, and their latents, have an axis of time: `b c t h w`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import latent_space
from .blend import Share
from .checkpoint import Checkpoint
from .clips import ClipCodec, FramesIn
from .errors import InputError
from .execution import Direction, Execution, Half, How, Mode, Planners, budget_of
from .models import ClipModel, Model
from .nets.passes import CausalCache
from .nets.posterior import DiagonalGaussianDistribution
from .plan import Plan, plan_blend
from .report import Report, joined
from .resume import FinishedChunks, GoOn, job_key, resumed
from .schedule import Home
from .spec import TINY, Spec, Variant, whose_latent
from .stream import OnProgress, Progress, share

BLEND_TILE_PX = 512
"""Edge of a tile in `mode="blend"` where none is given: diffusers' and ComfyUI's common default."""


class VAE:
    """A network with its weights, and what is known of it.

    `net` is the model (`vae_core.AutoencoderKL`, …), `spec` its sizes and latent convention, `checkpoint` where it came from.
    `device` is where it computes, by default where its weights are; weights that are kept elsewhere have to be brought there
    before a run, and may be taken away after it.
    """

    def __init__(
        self, net: Model, spec: Spec, checkpoint: Checkpoint | None = None, device: torch.device | None = None
    ):
        self.net, self.spec, self.checkpoint, self._device = net, spec, checkpoint, device
        self.last_report: Report | None = None
        """What the last decode or encode did; None before the first, and for overlap-and-blend."""
        self._planners = Planners()

    @classmethod
    def of(cls, net: Model, variant: Variant | None = None) -> VAE:
        """Around a model that is already there."""
        variant = variant or Variant("custom", "custom configuration", net.network)
        return cls(net, Spec.of(variant, net.config))

    def __repr__(self) -> str:
        return f"VAE({self.spec.title}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    @property
    def device(self) -> torch.device:
        return self._device or self.net.device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def dtype(self) -> torch.dtype:
        """In which decoding computes."""
        return self._half("decode").dtype

    @property
    def encode_dtype(self) -> torch.dtype:
        """In which encoding computes."""
        return self._half("encode").dtype

    # --- pixels and latents -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(
        self,
        latents: Tensor,
        *,
        mode: Mode = "exact",
        tile: int | None = None,
        overlap: int | None = None,
        memory_limit: int | str | None = None,
        progress: OnProgress | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
    ) -> Tensor:
        """Raw latents `b z h w` → pixels `b 3 h·f w·f` in [-1, 1], in the network's dtype; a clip's `b z t h w` → `b 3 t' h·f w·f`.

        mode          "exact": as much at once as fits, tiles inside the network else, the same result either way; "whole": all at
                      once; "blend": overlapping tiles, cross-faded, approximate.
        tile          edge of a tile, in cells of each pass's output ("exact") or in pixels ("blend"); default: what fits. On a CPU
                      a tile may be as wide as the picture, with as many cells.
        overlap       of neighbouring tiles in pixels, for mode="blend"; default: diffusers' share of a tile.
        memory_limit  bytes, "2GiB", or "50%" of the device's memory, weights included; default, and at most: what is free, less a
                      reserve.
        progress      called as (done, total, info) after each tile, in operations; may raise to cancel.
        size          crop the result to this (h, w), as a padded encode needs it.
        frames        of a clip, keep the first so many, as a padded encode needs it.

        The result is on the device, or where the plan had room for it: in host memory, or in a memory-mapped temporary file. A clip
        of several chunks is put together in host memory, or, where that is short of room, in such a file.
        `last_report` tells what was done. Raises InputError for latents that do not fit, BudgetError where no plan does or memory
        ran out for good, NonFiniteError for values that float32 cannot hold either.
        """
        self.check("decode", latents)
        pixels = self._run("decode", latents, How(mode, tile, memory_limit, overlap), progress).clamp_(-1, 1)
        if self.spec.clip:
            pixels = pixels[:, :, :frames]
        return pixels if size is None else pixels[..., : size[0], : size[1]]

    def decode_frames(
        self,
        latents: Tensor,
        *,
        mode: Mode = "exact",
        tile: int | None = None,
        memory_limit: int | str | None = None,
        progress: OnProgress | None = None,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        resume: str | Path | None = None,
    ) -> Iterator[Tensor]:
        """The same for a clip, chunk by chunk: raw latents `b z t h w` → an iterator of pixels `b 3 t' h·f w·f`, in memory that
        does not grow with the clip.

        resume   a folder in which finished chunks are kept: a run that was stopped goes on from there. It is made, and belongs to
                 this decode alone until `vae_core.resume.forget(folder)` deletes it, which is the caller's to do. Raises
                 InputError where it holds the work of another.

        Each chunk is the caller's to keep. `last_report` is complete when the iterator is exhausted. Of a VAE for
        pictures, latents `b z h w` are the frames of one clip: each gives `1 3 1 h·f w·f`.
        """
        self.check("decode", latents)
        how = How(mode, tile, memory_limit)
        if mode == "blend":
            raise InputError('mode="blend" sees a clip as a whole; use decode, or mode="exact"')
        self.last_report = None
        finished = None if resume is None else FinishedChunks(resume, self.resume_key(latents), self.net)
        go_on = partial(self._codec.decoded if self.spec.clip else self._pictures, latents, how, progress)
        return _given(self._chunks(go_on, finished), size, frames)

    def resume_key(self, latents: Tensor) -> str:
        """What names the decode of these latents by this VAE, for a folder of finished chunks: 64 hexadecimal digits."""
        return job_key(self.net, latents)

    @torch.inference_mode()
    def encode(
        self,
        pixels: Tensor,
        *,
        mode: Mode = "exact",
        tile: int | None = None,
        overlap: int | None = None,
        memory_limit: int | str | None = None,
        progress: OnProgress | None = None,
        sample: bool = False,
        generator: torch.Generator | None = None,
        fit: Literal["crop", "pad"] = "crop",
    ) -> Tensor:
        """Pixels `b 3 h w` in [-1, 1] → raw latents `b z h/f w/f`: the posterior's mean, or with `sample` a draw from it.

        Sizes that are no multiple of `spec.multiple` are cropped about the centre, or with fit="pad" continued below and to the
        right with the last row and column, so that no pixel is lost: `decode(…, size=(h, w))` crops them off again. The frames of a
        clip `b 3 t h w` are left out at the end, which the report says, or the last one is repeated (`decode(…, frames=t)`), until
        their number fits the model. The other parameters are those of `decode`.
        """
        self.check("encode", pixels)
        pixels = self._fitted(pixels, fit)
        came = pixels.shape[2]
        pixels = self._codec.fitted(pixels, pads=fit == "pad") if self.spec.clip else pixels
        made = self._run("encode", pixels, How(mode, tile, memory_limit, overlap), progress)
        if self.spec.clip:
            self.last_report = self._codec.noting(self.last_report, came - pixels.shape[2])
        if self.spec.network == TINY:
            return made
        posterior = DiagonalGaussianDistribution(made)
        return posterior.sample(generator) if sample else posterior.mode().clone()

    def encode_frames(
        self,
        frames: Iterable[Tensor],
        *,
        count: int | None = None,
        mode: Mode = "exact",
        tile: int | None = None,
        memory_limit: int | str | None = None,
        progress: OnProgress | None = None,
        fit: Literal["crop", "pad"] = "crop",
    ) -> Iterator[Tensor]:
        """A clip's frames as they come → an iterator of its raw latents `1 z t' h/f w/f`, the posterior's mean, chunk by chunk.

        frames   pieces `c t h w` of any length, in [-1, 1], all of one size.
        count    how many frames come, where that is known. Progress needs it, and CogVideoX, whose first chunk depends on it.

        The other parameters are those of `encode`. Raises InputError for frames that do not fit, or fewer than announced.
        """
        if not self.spec.clip:
            raise InputError(f"{self.spec.title} encodes pictures, not clips; give them to encode, as a batch")
        if mode == "blend":
            raise InputError('mode="blend" sees a clip as a whole; use encode, or mode="exact"')

        def prepared(piece: Tensor) -> Tensor:
            self.check("encode", piece)
            return self._fitted(piece, fit)

        self.last_report = None
        came = FramesIn(frames, count, fit == "pad", prepared)
        return self._codec.encoded(came, How(mode, tile, memory_limit), progress)

    def frames_of(self, latents: int) -> int:
        """How many frames that many latents of a clip decode to; of pictures as many."""
        return cast(ClipModel, self.net).frames_of(latents) if self.spec.clip else latents

    def latents_of(self, frames: int) -> int:
        """How many latents that many frames encode to, where they fit; of pictures as many."""
        return cast(ClipModel, self.net).latents_of(frames) if self.spec.clip else frames

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw latents → the diffusion model's space (`spec.convention`); for FLUX.2 `b 32 h w` → `b 128 h/2 w/2`."""
        return latent_space.normalized(latents, self.spec, self.net)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latent_space.denormalized(latents, self.spec, self.net)

    def check(self, direction: Direction, x: Tensor) -> None:
        """Raises InputError unless `x` is something to decode or encode. Looks at its shape and dtype only, not at the weights."""
        decodes = direction == "decode"
        name, axes = ("latents", "z") if decodes else ("pixels", "c")
        rank, axes = (5, f"b {axes} t h w") if self.spec.clip else (4, f"b {axes} h w")
        channels = self.spec.latent_channels if decodes else self.spec.pixel_channels
        others = whose_latent(x.shape[1]) if decodes and x.ndim in (4, 5) and x.shape[1] != channels else ()
        if others:
            whose = " or ".join(filter(None, (", ".join(others[:-1]), others[-1])))
            raise InputError(
                f"{self.spec.title} decodes latents `{axes}` of {channels} channels in floating point; {tuple(x.shape)} in "
                f"{str(x.dtype).removeprefix('torch.')} has {x.shape[1]}, as latents of {whose}: load the VAE of that model"
            )
        if x.ndim != rank or x.shape[1] != channels or not x.is_floating_point() or x.numel() == 0:
            raise InputError(
                f"{self.spec.title} {direction}s {name} `{axes}` of {channels} channels in floating point; "
                f"got {tuple(x.shape)} in {str(x.dtype).removeprefix('torch.')}"
            )

    def _fitted(self, pixels: Tensor, fit: str) -> Tensor:
        """`b c … h w` cropped about the centre, or continued below and to the right, to multiples of `spec.multiple`."""
        if fit not in ("crop", "pad"):
            raise InputError(f'fit {fit!r} is not known; expected "crop" or "pad"')
        (h, w), (mh, mw) = pixels.shape[-2:], self.spec.multiple
        if fit == "pad":
            below, right = -h % mh, -w % mw
            if not (below or right):
                return pixels
            padded = F.pad(pixels.flatten(0, -4), (0, right, 0, below), mode="replicate")
            return padded.unflatten(0, pixels.shape[:-3])
        self._require_size(h, w)
        top, left = h % mh // 2, w % mw // 2
        return pixels[..., top : top + h // mh * mh, left : left + w // mw * mw]

    def _require_size(self, h: int, w: int) -> None:
        mh, mw = self.spec.multiple
        if h < mh or w < mw:
            raise InputError(f'a picture must be at least {mw}×{mh} pixels, unless fit="pad"; got {w}×{h}')

    # --- plan and run -------------------------------------------------------------------------------------------------

    def plan(
        self,
        direction: Direction = "decode",
        *,
        width: int,
        height: int,
        frames: int = 1,
        batch: int = 1,
        mode: Mode = "exact",
        tile: int | None = None,
        overlap: int | None = None,
        memory_limit: int | str | None = None,
        free: int | None = None,
    ) -> Plan:
        """How a picture of this size in pixels, or a clip of so many frames, would be decoded or encoded, without doing it.

        Of a clip, tiles and peaks are those of the chunk that needs most, and operations those of all chunks. Raises BudgetError.
        `free` plans as if a run could use so many bytes of the device's memory, weights included; default: what it can use now.
        """
        if direction not in get_args(Direction):
            raise InputError(f'direction {direction!r} is not known; expected "decode" or "encode"')
        scale = self.spec.scale
        self._require_size(height, width)
        if direction == "decode":
            shape = (batch, self.spec.latent_channels, -(-height // scale.h), -(-width // scale.w))
        else:
            (mh, mw) = self.spec.multiple
            shape = (batch, self.spec.pixel_channels, height // mh * mh, width // mw * mw)
        half, how = self._half(direction), How(mode, tile, memory_limit, overlap)
        if self.spec.clip:
            net = cast(ClipModel, self.net)
            fitting = net.fitting(frames, more=True)
            shape = (*shape[:2], net.latents_of(fitting) if direction == "decode" else fitting, *shape[2:])
        if mode == "blend":
            return self._plan_blend(half, shape, how, free)
        if self.spec.clip:
            return self._codec.plan(direction, shape, how, free)
        home: Home = "device" if half.device.type == "cpu" else "host"
        return Execution(half, how, self._planners, shape, home, half.dtype, free).plan()

    def _plan_blend(self, half: Half, shape: tuple[int, ...], how: How, free: int | None = None) -> Plan:
        tile_px, tile_latent, share = self._blend_tile(how)
        edge = tile_latent if half.direction == "decode" else tile_px
        tile_shape = (*shape[:-2], *(min(edge, n) for n in shape[-2:]))
        stride = max(int(edge * (1 - share)), 1)
        made = self._result_shape(half.direction, shape)
        return plan_blend(
            self._codec.traces(half.direction, tile_shape) if self.spec.clip else [half.trace(tile_shape)],
            prod(-(-n // stride) for n in shape[-2:]),
            tile_px,
            budget_of(half, how.memory_limit, free),
            images=shape[0],
            held_bytes=(prod(shape) + prod(tile_shape) + 2 * prod(made)) * half.dtype.itemsize + half.weight_bytes,
            itemsize=half.dtype.itemsize,
        )

    def _result_shape(self, direction: Direction, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What an input of `shape` becomes: pixels, or what the encoder emits."""
        scale, spec, decodes = self.spec.scale, self.spec, direction == "decode"
        channels = spec.pixel_channels if decodes else spec.latent_channels * (1 if spec.network == TINY else 2)
        made = self.frames_of if decodes else self.latents_of
        times = (made(shape[2]),) if spec.clip else ()
        h, w = shape[-2:]
        sides = (h * scale.h, w * scale.w) if decodes else (h // scale.h, w // scale.w)
        return (shape[0], channels, *times, *sides)

    def _blend_tile(self, how: How) -> tuple[int, int, Share]:
        """Edges of a blended tile, in pixels and in latent cells, at most what is asked for; and the share that overlaps."""
        scale, tile_px = self.spec.scale.h, how.tile or BLEND_TILE_PX
        if how.overlap is None:
            share = self.net.tile_overlap_factor
            cells = round(1 / share)
            latent = max(tile_px // scale // cells, 1) * cells
            return latent * scale, latent, share
        latent, shared = max(tile_px // scale, 1), how.overlap // scale
        if shared >= latent:
            raise InputError(f"an overlap of {how.overlap} pixels needs larger tiles than {tile_px}; choose less of it")
        return latent * scale, latent, Fraction(shared, latent)

    def _half(self, direction: Direction) -> Half:
        """The half of the network that decodes or encodes; of a clip's, the chunks' code is put in later."""
        decodes = direction == "decode"
        dtype = next(cast(nn.Module, self.net.decoder if decodes else self.net.encoder).parameters()).dtype
        return Half(
            direction,
            self.net.decode_field if decodes else self.net.encode_field,
            self.net,
            self.device,
            dtype,
            may_overflow=dtype == torch.float16 and not self.spec.fp16_safe,
        )

    def _run(self, direction: Direction, x: Tensor, how: How, progress: OnProgress | None) -> Tensor:
        half, self.last_report = self._half(direction), None
        if how.mode == "blend":
            return self._run_blend(half, x, how, progress)
        if self.spec.clip:
            shape = self._result_shape(direction, tuple(x.shape))
            return self._codec.put_together(direction, x, shape, how, progress)
        made, self.last_report = Execution.of(half, how, self._planners, x).run(x, progress)
        return made

    # --- clips --------------------------------------------------------------------------------------------------------

    @property
    def _codec(self) -> ClipCodec:
        return ClipCodec(cast(ClipModel, self.net), self._half, self._planners, self._tell)

    def _tell(self, report: Report | None) -> None:
        self.last_report = report

    def _chunks(self, go_on: GoOn, finished: FinishedChunks | None) -> Iterator[Tensor]:
        """Chunks as they are decoded, those first that are finished already."""
        notes: list[str] = []
        for made, _ in go_on(0, None) if finished is None else resumed(finished, go_on, notes.append):
            yield made
            del made  # or it would be held while the next one is computed
        if (report := self.last_report) is not None:
            self.last_report = replace(report, events=(*notes, *report.events))

    def _pictures(
        self, latents: Tensor, how: How, progress: OnProgress | None, start: int, caches: object
    ) -> Iterator[tuple[Tensor, Sequence[CausalCache]]]:
        """Of a VAE for pictures, each of a batch is a frame."""
        reports = []
        for i, one in enumerate(latents.split(1)[start:], start):
            with torch.inference_mode():
                made = self._run("decode", one, how, share(progress, i, len(latents))).unsqueeze(2)
            reports += [] if self.last_report is None else [self.last_report]
            yield made, ()
            del made
        self.last_report = joined(reports, tuple(latents.shape)) if reports else None

    def _run_blend(self, half: Half, x: Tensor, how: How, progress: OnProgress | None) -> Tensor:
        self._plan_blend(half, tuple(x.shape), how)
        blend = self.net.blend_decode if half.direction == "decode" else self.net.blend_encode

        def after(done: int, tiles: int) -> None:
            if progress is not None:
                progress(done, tiles, Progress(0, 1, done, tiles, "blended tile"))

        tile_px, tile_latent, share = self._blend_tile(how)
        return blend(x.to(half.device, half.dtype), tile_px, tile_latent, after, share).to(half.dtype)


def _given(chunks: Iterator[Tensor], size: tuple[int, int] | None, frames: int | None) -> Iterator[Tensor]:
    """Pixels as they are given away: clamped, and without what a padded encode has added."""
    left = frames
    for pixels in chunks:
        pixels = _cleaned(pixels, size, left)
        if left is not None:
            left -= pixels.shape[2]
        if pixels.shape[2]:
            yield pixels
        del pixels  # or it would be held while the next one is computed


@torch.inference_mode()
def _cleaned(pixels: Tensor, size: tuple[int, int] | None, frames: int | None) -> Tensor:
    h, w = size or pixels.shape[-2:]
    return pixels.clamp_(-1, 1)[:, :, :frames, :h, :w]
