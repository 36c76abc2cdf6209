"""A VAE whose weights ComfyUI keeps: bound to our network for the time of a run, and let go after it.

ComfyUI moves weights between devices as it needs room, and may leave a part of them behind. So no network here owns weights: before
a run they are taken as they are then, shared where they already lie on the device, and after it the network is empty again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..vae_core import VAE, CheckpointError, Plan
from ..vae_core.checkpoint import Checkpoint, assign, open_state_dict
from ..vae_core.errors import BudgetError
from ..vae_core.execution import Direction, How
from ..vae_core.models import build
from ..vae_core.nets.weights import weight_bytes
from ..vae_core.plan import COSTS
from ..vae_core.report import joined
from ..vae_core.spec import Spec
from ..vae_core.stream import share
from . import host
from .conventions import Original, fitted_mask, from_raw, noted, pieces_of, to_image, to_pixels, to_raw
from .resuming import Resumable
from .watch import Watch, Watched

Fit = Literal["crop", "pad"]

WHOLE = Original()
"""All of what latents become."""

SHARES = 4
"""In how many parts it is weighed how much of the other models should leave."""

META = torch.device("meta")


class Shape(NamedTuple):
    """Of a clip, in frames and pixels; of a picture, which is one frame."""

    frames: int
    height: int
    width: int


class Hosted:
    """A VAE over weights that are kept elsewhere. `vae.net` is empty between runs."""

    def __init__(self, opened: Checkpoint):
        self.opened = opened
        net = build(opened, device=META).requires_grad_(False)
        self.vae = VAE(net, Spec.of(opened.variant, opened.config), opened, host.device())
        self._converted: dict[torch.dtype, Own] = {}

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(self.vae.net)

    @contextmanager
    def bound(self) -> Iterator[VAE]:
        """The VAE with its weights, on its device."""
        assign(self.vae.net, self.opened, device=self.vae.device)
        try:
            yield self.vae
        finally:
            assign(self.vae.net, self.opened, device=META)

    def converted(self, dtype: torch.dtype) -> Own:
        """The same with the weights in another number format, which is made once."""
        if dtype not in self._converted:
            # Normal tensors, also where ComfyUI runs this in inference mode: the module may outlive the run.
            with torch.inference_mode(False), torch.no_grad():
                net = build(self.opened, dtype=dtype, device=host.offload_device())
            self._converted[dtype] = Own(FirstStage(net), self.opened)
        return self._converted[dtype]

    # --- plan and run -------------------------------------------------------------------------------------------------

    def plan(
        self, direction: Direction, width: int, height: int, images: int, how: How, patcher: Any, frames: int = 1
    ) -> Plan:
        """How a run would go, with as much of other models gone as pays. Raises BudgetError where not even all of it would do.

        What leaves has to come back: each byte costs what moving it to the device costs.
        """

        def planned(free: int | None) -> Plan:
            sizes = {"width": width, "height": height, "frames": frames, "batch": images}
            return self.vae.plan(direction, **sizes, free=free, **asdict(how))

        if patcher is None or self.vae.device.type == "cpu":
            return planned(None)
        now = host.free_bytes(self.vae.device) + patcher.loaded_size()
        others = host.reclaimable_bytes(self.vae.device, patcher)
        plans = [planned(now + others)]
        for part in range(SHARES if others else 0):
            with suppress(BudgetError):
                plans.append(planned(now + others * part // SHARES))
        return min(plans, key=lambda plan: plan.chosen.cost + max(plan.device_bytes - now, 0) * COSTS["cuda"].host_byte)

    def outline(self, samples: Tensor) -> Tensor:
        """A LATENT's samples as raw latents, without data. Raises InputError, saying whose they look like, if they do not fit."""
        raw = to_raw(self.vae, samples.to(META))
        self.vae.check("decode", raw)
        return raw

    def decode(self, samples: Tensor, patcher: Any, how: How, watched: Watched, original: Original = WHOLE) -> Tensor:
        """A LATENT's samples → IMAGE, of a video VAE `b t h w c`, without what a padded encode has added."""
        clip, count = self.vae.spec.clip, self.frames_in_all(samples, original)
        if clip and how.mode != "blend":
            with closing(self.frames(samples, patcher, how, watched, original)) as pieces:
                image = to_image(pieces, count, host.result_device())
        else:
            with self._decoding(samples, patcher, how, watched, len(samples), 1) as (vae, raw, watch):
                frames = {"frames": original.frames} if clip else {}
                pixels = vae.decode(raw, progress=watch, size=original.size, **frames, **asdict(how))
                watch.finish(pixels)
                pieces = iter(pixels if clip else pixels.unsqueeze(2))
                image = to_image(pieces, count, host.result_device())
        return image.unflatten(0, (len(samples), -1)) if clip else image

    def frames(
        self,
        samples: Tensor,
        patcher: Any,
        how: How,
        watched: Watched,
        original: Original = WHOLE,
        resumable: Resumable | None = None,
    ) -> Generator[Tensor]:
        """A LATENT's samples → their frames, pieces `c t h w` in [-1, 1], in memory that does not grow with the clip.

        Clips of a batch come one after the other; of a VAE for pictures, each of a batch is a frame. `resumable` keeps what is done
        of a clip, and has what was done of it before.
        """
        reports, count = [], self.frames_in_all(samples, original)
        with self._decoding(samples, patcher, how, watched, 1, count) as (vae, raw, watch):
            clips = raw.split(1) if vae.spec.clip else (raw,)
            for i, one in enumerate(clips):
                vae.last_report = None  # of a clip that was finished before, there is none
                chunks = vae.decode_frames(
                    one,
                    mode=how.mode,
                    tile=how.tile,
                    memory_limit=how.memory_limit,
                    progress=share(watch, i, len(clips)),
                    size=original.size,
                    frames=original.frames,
                    resume=None if resumable is None else resumable.folder(vae, one),
                )
                for chunk in chunks:
                    watch.came(chunk[0])
                    yield chunk[0]
                reports += [] if vae.last_report is None else [vae.last_report]
            watch.finish()
            vae.last_report = joined(reports, tuple(raw.shape)) if reports else None

    @contextmanager
    def _decoding(
        self, samples: Tensor, patcher: Any, how: How, watched: Watched, images: int, frames: int
    ) -> Iterator[tuple[VAE, Tensor, Watch]]:
        """The VAE with its weights on the device, raw latents, and the watch, for runs of so many images at a time."""
        outline, scale = self.outline(samples), self.vae.spec.scale
        height, width = outline.shape[-2] * scale.h, outline.shape[-1] * scale.w
        self._make_room("decode", width, height, images, self._frames(outline), how, patcher)
        with self.bound() as vae:
            raw = to_raw(vae, samples)
            yield vae, raw, watched(vae, raw, frames)

    def frames_in_all(self, samples: Tensor, original: Original = WHOLE) -> int:
        """How many frames a LATENT's samples become; pictures, where the VAE is for those."""
        return len(samples) * self._frames(self.outline(samples), original)

    def _frames(self, outline: Tensor, original: Original = WHOLE) -> int:
        """How many frames one of the batch becomes."""
        if not self.vae.spec.clip:
            return 1
        frames = self.vae.frames_of(outline.shape[2])
        return frames if original.frames is None else min(frames, original.frames)

    def encode(
        self,
        image: Tensor,
        patcher: Any,
        how: How,
        watch: Watch,
        fit: Fit = "crop",
    ) -> Tensor:
        """IMAGE → a LATENT's samples. A video VAE takes `t h w c` for one clip, and `b t h w c`."""
        image = image.unsqueeze(0) if self.vae.spec.clip and image.ndim == 4 else image
        channels = self.vae.spec.pixel_channels
        self.vae.check("encode", to_pixels(image.to(META), channels))
        if self.vae.spec.clip and how.mode != "blend" and len(image) == 1:
            return self.encode_clip(pieces_of(image[0], channels), patcher, how, watch, fit, Shape(*image.shape[1:4]))
        frames = image.shape[1] if image.ndim == 5 else 1
        with self._encoding(Shape(frames, *image.shape[-3:-1]), patcher, how, fit, len(image)) as vae:
            raw = vae.encode(to_pixels(image, channels), progress=watch, fit=fit, **asdict(how))
            return from_raw(vae, raw).to(host.result_device(), torch.float32)

    def encode_clip(
        self, frames: Iterable[Tensor], patcher: Any, how: How, watch: Watch, fit: Fit, shape: Shape
    ) -> Tensor:
        """Frames as they come, pieces `c t h w` in [-1, 1], of which `shape` says how many and how large → a LATENT's samples.

        To a VAE for pictures, each frame is one.
        """
        raw: list[Tensor] = []
        encoded, time = (_clip_encoded, 2) if self.vae.spec.clip else (_pictures_encoded, 0)
        with self._encoding(shape, patcher, how, fit) as vae:
            for part in encoded(vae, frames, shape.frames, how, watch, fit):
                raw.append(part)
                watch.frames_done = vae.frames_of(sum(part.shape[time] for part in raw))
            return from_raw(vae, torch.cat(raw, dim=time)).to(host.result_device(), torch.float32)

    @contextmanager
    def _encoding(self, shape: Shape, patcher: Any, how: How, fit: Fit, images: int = 1) -> Iterator[VAE]:
        """The VAE with its weights on the device."""
        height, width = shape.height, shape.width
        if fit == "pad":
            height, width = (-(-n // m) * m for n, m in zip((height, width), self.vae.spec.multiple, strict=True))
        self._make_room("encode", width, height, images, shape.frames, how, patcher)
        with self.bound() as vae:
            yield vae

    def encode_latent(
        self,
        image: Tensor,
        patcher: Any,
        how: How,
        watch: Watch,
        fit: Fit = "crop",
        mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """IMAGE → LATENT, with the mask and, where it was padded, the size of the picture and the number of frames."""
        size = (image.shape[-3], image.shape[-2])
        samples = self.encode(image, patcher, how, watch, fit)
        latent = noted(self.vae, samples, Original(size, image.shape[-4]) if fit == "pad" else WHOLE)
        if mask is not None:
            latent["noise_mask"] = fitted_mask(mask, size, self.vae.spec.multiple, fit)
        return latent

    def _make_room(
        self, direction: Direction, width: int, height: int, images: int, frames: int, how: How, patcher: Any
    ) -> None:
        if patcher is not None:
            self.vae.device = patcher.load_device
        if patcher is None or self.vae.device.type == "cpu":
            host.load(patcher, 0)
            return
        plan = self.plan(direction, width, height, images, how, patcher, frames)
        host.load(patcher, max(plan.device_bytes - self.weight_bytes, 0))


def _clip_encoded(vae: VAE, frames: Iterable[Tensor], count: int, how: How, watch: Watch, fit: Fit) -> Iterator[Tensor]:
    """Raw latents `1 z t h w`, chunk by chunk."""
    several = {"mode": how.mode, "tile": how.tile, "memory_limit": how.memory_limit}
    yield from vae.encode_frames(frames, count=count, progress=watch, fit=fit, **several)


def _pictures_encoded(
    vae: VAE, frames: Iterable[Tensor], count: int, how: How, watch: Watch, fit: Fit
) -> Iterator[Tensor]:
    """Raw latents `1 z h w`, frame by frame."""
    reports = []
    for i, frame in enumerate(frame for piece in frames for frame in piece.unbind(1)):
        yield vae.encode(frame[None], progress=share(watch, i, count), fit=fit, **asdict(how))
        reports += [] if vae.last_report is None else [vae.last_report]
    vae.last_report = joined(reports, (count, *reports[0].shape[1:])) if reports else None


def weights_of(module: nn.Module) -> Callable[[], Mapping[str, Tensor]]:
    """A function that gives a module's state dict of the moment. It does not keep the module alive."""
    kept = ref(module)

    def state_dict() -> Mapping[str, Tensor]:
        module = kept()
        assert module is not None, "the module whose weights these are is gone"
        return module.state_dict()

    return state_dict


class FirstStage(nn.Module):
    """The module that ComfyUI moves about and other packs look into: our network's parts under their own names.

    A module of its own, since ComfyUI writes attributes to it that the network has as properties (`device`).
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        for name, child in net.named_children():
            self.add_module(name, child)
        self._net = (net,)  # in a tuple, so that its weights are not listed twice

    def decode(self, z: Tensor, **options: Any) -> Tensor:
        """Raw latents → pixels, all at once: for code that reaches past the VAE object."""
        return self._net[0].decode(z).sample  # type: ignore[operator]

    def encode(self, x: Tensor, **options: Any) -> Tensor:
        """Pixels in [-1, 1] → raw latents, the posterior's mean."""
        made = self._net[0].encode(x)  # type: ignore[operator]
        return made.latents if hasattr(made, "latents") else made.latent_dist.mode()


class Own:
    """A VAE with weights of our own, under ComfyUI's memory management."""

    def __init__(self, module: FirstStage, opened: Checkpoint):
        self.module = module
        self.hosted = Hosted(opened.over(weights_of(module)))
        self.patcher = host.managed(module)


class Adopted:
    """The VAEs of ComfyUI's own loaders that were seen, each as long as it lives."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, Hosted | str] = WeakKeyDictionary()

    def of(self, core: Any) -> Hosted | str:
        """Over the weights of one of ComfyUI's VAE objects; or why it is none that we can run, in a sentence."""
        core.throw_exception_if_invalid()
        module = core.first_stage_model
        if module not in self._kept:
            self._kept[module] = self._recognised(core, module)
        return self._kept[module]

    def _recognised(self, core: Any, module: nn.Module) -> Hosted | str:
        if type(core) is not host.CoreVAE:
            return f"it is a {type(core).__name__} of another pack, which decodes in its own way"
        try:
            return Hosted(open_state_dict(weights_of(module), "this VAE"))
        except CheckpointError as error:
            return str(error)
