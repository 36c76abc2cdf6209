"""A VAE whose weights ComfyUI keeps: bound to our network for the time of a run, and let go after it.

ComfyUI moves weights between devices as it needs room, and may leave a part of them behind. So no network here owns weights: before
a run they are taken as they are then, shared where they already lie on the device, and after it the network is empty again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, Literal
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..vae_core import VAE, CheckpointError, Plan
from ..vae_core.checkpoint import Checkpoint, assign, open_state_dict
from ..vae_core.errors import BudgetError
from ..vae_core.execution import Direction, How
from ..vae_core.models import build
from ..vae_core.plan import COSTS
from ..vae_core.spec import Spec
from ..vae_core.stream import OnProgress
from . import host
from .conventions import SIZE_KEY, fitted_mask, from_raw, to_image, to_pixels, to_raw
from .watch import Watch

SHARES = 4
"""In how many parts it is weighed how much of the other models should leave."""

META = torch.device("meta")


class Hosted:
    """A VAE over weights that are kept elsewhere. `vae.net` is empty between runs."""

    def __init__(self, opened: Checkpoint):
        self.opened = opened
        net = build(opened, device=META).requires_grad_(False)
        self.vae = VAE(net, Spec.of(opened.variant, opened.config), opened, host.device())
        self._converted: dict[torch.dtype, Own] = {}

    @property
    def weight_bytes(self) -> int:
        net = self.vae.net
        return sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))

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

    def plan(self, direction: Direction, width: int, height: int, images: int, how: How, patcher: Any) -> Plan:
        """How a run would go, with as much of other models gone as pays. Raises BudgetError where not even all of it would do.

        What leaves has to come back: each byte costs what moving it to the device costs.
        """

        def planned(free: int | None) -> Plan:
            return self.vae.plan(direction, width=width, height=height, batch=images, free=free, **asdict(how))

        if patcher is None or self.vae.device.type == "cpu":
            return planned(None)
        now = host.free_bytes(self.vae.device) + patcher.loaded_size()
        others = host.reclaimable_bytes(self.vae.device, patcher)
        plans = [planned(now + others)]
        for share in range(SHARES if others else 0):
            with suppress(BudgetError):
                plans.append(planned(now + others * share // SHARES))
        return min(plans, key=lambda plan: plan.chosen.cost + max(plan.device_bytes - now, 0) * COSTS["cuda"].host_byte)

    def outline(self, samples: Tensor) -> Tensor:
        """A LATENT's samples as raw latents, without data. Raises InputError, saying whose they look like, if they do not fit."""
        raw = to_raw(self.vae, samples.to(META))
        self.vae.check("decode", raw)
        return raw

    def decode(
        self,
        samples: Tensor,
        patcher: Any,
        how: How,
        watched: Callable[[VAE, Tensor], Watch],
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """A LATENT's samples → IMAGE, cropped to `size` if it is given. `watched` makes the watch of the run."""
        outline = self.outline(samples)
        scale = self.vae.spec.scale
        self._make_room("decode", outline.shape[-1] * scale.w, outline.shape[-2] * scale.h, len(outline), how, patcher)
        with self.bound() as vae:
            raw = to_raw(vae, samples)
            watch = watched(vae, raw)
            pixels = vae.decode(raw, progress=watch, size=size, **asdict(how))
            watch.finish(pixels)
            return to_image(pixels, host.result_device())

    def encode(
        self,
        image: Tensor,
        patcher: Any,
        how: How,
        progress: OnProgress | None = None,
        fit: Literal["crop", "pad"] = "crop",
    ) -> Tensor:
        """IMAGE → a LATENT's samples."""
        pixels = to_pixels(image, self.vae.spec.pixel_channels)
        self.vae.check("encode", pixels)
        height, width = pixels.shape[-2:]
        if fit == "pad":
            height, width = (-(-n // m) * m for n, m in zip((height, width), self.vae.spec.multiple, strict=True))
        self._make_room("encode", width, height, len(pixels), how, patcher)
        with self.bound() as vae:
            raw = vae.encode(pixels, progress=progress, fit=fit, **asdict(how))
            return from_raw(vae, raw).to(host.result_device(), torch.float32)

    def encode_latent(
        self,
        image: Tensor,
        patcher: Any,
        how: How,
        progress: OnProgress | None = None,
        fit: Literal["crop", "pad"] = "crop",
        mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """IMAGE → LATENT, with the mask and, where it was padded, the size of the picture."""
        latent: dict[str, Any] = {"samples": self.encode(image, patcher, how, progress, fit)}
        size, multiple = (image.shape[1], image.shape[2]), self.vae.spec.multiple
        if mask is not None:
            latent["noise_mask"] = fitted_mask(mask, size, multiple, fit)
        if fit == "pad" and (size[0] % multiple[0] or size[1] % multiple[1]):
            latent[SIZE_KEY] = size
        return latent

    def _make_room(self, direction: Direction, width: int, height: int, images: int, how: How, patcher: Any) -> None:
        if patcher is not None:
            self.vae.device = patcher.load_device
        if patcher is None or self.vae.device.type == "cpu":
            host.load(patcher, 0)
            return
        plan = self.plan(direction, width, height, images, how, patcher)
        host.load(patcher, max(plan.device_bytes - self.weight_bytes, 0))


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
        """Raw latents `b z h w` → pixels, all at once: for code that reaches past the VAE object."""
        return self._net[0].decode(z).sample  # type: ignore[operator]

    def encode(self, x: Tensor, **options: Any) -> Tensor:
        """Pixels `b 3 h w` in [-1, 1] → raw latents, the posterior's mean."""
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
