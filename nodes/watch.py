"""What a run tells while it goes on: progress with the time left, cancelling, and a preview that fills in tile by tile."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..vae_core import VAE, Progress
from ..vae_core.stream import Finished
from . import host
from .conventions import model_space

EVENT = "exact_vae.progress"
PREVIEW_SETTING = "ExactVAE.Preview"
PREVIEW_PX = 512
"""Longest edge of a preview."""
SECONDS_BETWEEN = 0.25
"""Between two messages to the browser."""


class Watch:
    """The `progress` of one run. Called after every tile, it raises where the user has cancelled.

    Of a clip it also tells which of its `frames` is worked on.
    """

    def __init__(self, node_id: str | None = None, preview: Preview | None = None, frames: int = 1):
        self.node_id, self.preview = node_id, preview
        self.frames, self.frames_done = frames, 0
        self.bar = host.progress_bar()
        self.started = self.told = time.monotonic()
        self._tell(0, Progress(0, 0, 0, 0, ""), 0)

    def __call__(self, done: int, total: int, info: Progress) -> None:
        host.raise_if_interrupted()
        if self.preview is not None and info.finished is not None:
            self.preview.paste(info.finished)
        now = time.monotonic()
        if now - self.told < SECONDS_BETWEEN and done < total:
            return
        self.told = now
        self._tell(done / max(total, 1), info, now - self.started)

    def came(self, frames: Tensor) -> None:
        """Takes note of finished frames `c t h w`; the newest is shown at the next occasion."""
        self.frames_done += frames.shape[1]
        self._show(frames[None])

    def finish(self, pixels: Tensor | None = None) -> None:
        """Shows the result `b c h w`, which a whole run gives only now; the browser goes on showing the last preview."""
        if pixels is not None:
            self._show(pixels[:1])
        if self.preview is not None:
            self._tell(1, Progress(0, 0, 0, 0, ""), time.monotonic() - self.started)

    def _show(self, pixels: Tensor) -> None:
        if self.preview is not None:
            self.preview.show(pixels)

    def _tell(self, done: float, info: Progress, seconds: float) -> None:
        if self.bar is not None:
            picture = None if self.preview is None else self.preview.message()
            self.bar.update_absolute(round(done * host.PROGRESS_STEPS), host.PROGRESS_STEPS, picture)
        if self.node_id is not None:
            left = seconds * (1 - done) / done if done > 0 else None
            said = {"node": self.node_id, "done": done, "seconds_left": left, "what": info.rung, "pass": info.name}
            if self.frames > 1:
                said |= {"frame": min(self.frames_done + 1, self.frames), "frames": self.frames}
            host.send(EVENT, said)


class Preview:
    """A small picture of the first image of a batch: at first roughly, from its latents; then from the tiles that are done.

    Of a clip it shows the newest frame, and so it does of images that are the frames of one (`newest`).
    """

    def __init__(self, vae: VAE, raw: Tensor, newest: bool = False):
        """`raw` are the latents `b z h w`, or `b z t h w`, that are decoded."""
        self.newest = newest or vae.spec.clip
        raw = raw[:1, :, 0] if raw.ndim == 5 else raw[:1]
        scale = vae.spec.scale
        self.step = max(-(-max(raw.shape[-2] * scale.h, raw.shape[-1] * scale.w) // PREVIEW_PX), 1)
        size = (-(-raw.shape[-2] * scale.h // self.step), -(-raw.shape[-1] * scale.w // self.step))
        self.canvas, self.changed = _rough(vae, raw, size), True

    def paste(self, tile: Finished) -> None:
        """A finished tile, thinned out to the preview's size."""
        if tile.image != 0 and not self.newest:
            return
        # The first row and column of the tile that fall on the preview's grid.
        (top, left), step = (span.start for span in tile.region[-2:]), self.step
        thin = _newest_frame(tile.data)[..., -top % step :: step, -left % step :: step].float().cpu()
        y, x = -(-top // step), -(-left // step)
        room = self.canvas[:, y : y + thin.shape[1], x : x + thin.shape[2]]
        if room.numel() == 0:
            return
        room.copy_(thin[:, : room.shape[1], : room.shape[2]])
        self.changed = True

    def show(self, pixels: Tensor) -> None:
        """Finished pixels `b c h w`, or `b c t h w`, at once: fewer than the latents' where an encode had padded them."""
        thin = _newest_frame(pixels)[..., :: self.step, :: self.step]
        self.canvas, self.changed = torch.empty(thin.shape).copy_(thin), True

    def message(self) -> tuple[str, Image.Image, int] | None:
        """What ComfyUI's progress bar takes as a preview; None where nothing is new."""
        if not self.changed:
            return None
        self.changed = False
        levels = self.canvas.clamp(-1, 1).add(1).mul(127.5).byte().movedim(0, -1)
        return "JPEG", Image.fromarray(levels.contiguous().numpy()), PREVIEW_PX


def _newest_frame(pixels: Tensor) -> Tensor:
    """`3 h w`: of the first of a batch, without alpha."""
    first = pixels[0, :3]
    return first[:, -1] if first.ndim == 4 else first


def _rough(vae: VAE, raw: Tensor, size: tuple[int, int]) -> Tensor:
    """`3 h w`: the colours of latents `1 z h w` where ComfyUI knows them, else grey."""
    z = model_space(vae, raw.float().cpu())[0]
    rough = host.rough_picture(z, vae.spec.latent_of or vae.spec.name)
    if rough is None:
        return torch.zeros(3, *size)
    return F.interpolate(rough[None], size=size, mode="bilinear")[0]


Watched = Callable[[VAE, Tensor, int], Watch]
"""(the VAE, its raw latents, of a clip the number of frames) → the watch of their decode."""


def decoding(node_id: str | None = None, newest: bool = False) -> Watched:
    """With a preview, unless the user has switched it off; `newest` where the images of a batch are the frames of a clip."""
    wanted = host.PRESENT and host.setting(PREVIEW_SETTING, True)
    return lambda vae, raw, frames: Watch(node_id, Preview(vae, raw, newest) if wanted else None, frames)
