"""The VAE that our loader gives: one of ComfyUI's own kind, so that every node takes it, and exact wherever it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..vae_core.checkpoint import Checkpoint, comfyui_names
from ..vae_core.execution import How
from ..vae_core.loading import from_checkpoint
from . import host
from .conventions import frames_of, latent_channels, latents_of, tiny_scale, with_the_axes_of
from .hosted import FirstStage, Own
from .mishaps import latent_kept
from .watch import Watch, decoding


class ExactVAE(host.CoreVAE):
    """ComfyUI's VAE object, decoding and encoding through vae_core.

    ComfyUI's constructor is not called, since it would load the weights in its own way; what it sets is set here.
    Sizes are ratios of pixels to latent cells; tiles of `decode_tiled` come in latent cells, those of `encode_tiled` in pixels.
    A video VAE's IMAGE is the frames of one clip, and what it decodes to `b t h w c`; nodes make one IMAGE of it.
    """

    def __init__(self, opened: Checkpoint, dtype: torch.dtype | None = None):
        # Normal tensors, also where ComfyUI runs this in inference mode: other packs may train with them.
        with torch.inference_mode(False), torch.no_grad():
            loaded = from_checkpoint(
                opened,
                device=host.device(),
                dtype=dtype or host.flagged_dtype(),
                weights_on=host.offload_device(),
            )
        own = Own(FirstStage(loaded.net), opened)
        self.hosted, self.patcher, self.first_stage_model = own.hosted, own.patcher, own.module
        self.vae_dtype, self.working_dtypes = loaded.dtype, [torch.float16, torch.bfloat16, torch.float32]
        spec = loaded.spec
        self.latent_channels, self.output_channels = latent_channels(loaded), spec.pixel_channels
        self.not_video, self.crop_input, self.disable_offload = False, True, False
        self.pad_channel_value = self.extra_1d_channel = self.size = None
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: image.add(1.0).div(2.0).clamp(0.0, 1.0)
        if spec.clip:
            self._measure_clips()
        else:
            self.latent_dim, self.downscale_ratio, self.upscale_ratio = 2, spec.multiple[0], spec.multiple[0]
            self.downscale_index_formula = self.upscale_index_formula = None

    def _measure_clips(self) -> None:
        """What ComfyUI calls a VAE of three dimensions."""
        vae = self.hosted.vae
        self.latent_dim, self.pad_channel_value = 3, 1.0
        self.upscale_ratio = (lambda latents: frames_of(vae, latents), *vae.spec.multiple)
        self.downscale_ratio = (lambda frames: latents_of(vae, frames), *vae.spec.multiple)
        self.downscale_index_formula = self.upscale_index_formula = tuple(vae.spec.scale)

    def __repr__(self) -> str:
        return f"ExactVAE({self.hosted.vae.spec.title})"

    @property
    def device(self) -> torch.device:
        """Where it computes: other nodes may choose another device for the patcher."""
        return self.patcher.load_device if self.patcher is not None else host.device()

    @device.setter
    def device(self, device: torch.device) -> None:
        self.patcher.load_device = device

    @property
    def output_device(self) -> torch.device:
        return host.result_device()

    def memory_used_decode(self, shape: Any, dtype: torch.dtype) -> int:
        """Bytes that decoding latents of this shape takes beside the weights, as it would be planned now."""
        (mh, mw), vae = self.hosted.vae.spec.multiple, self.hosted.vae
        frames = frames_of(vae, shape[2]) if len(shape) == 5 else 1
        return self._activation_bytes("decode", shape[-2] * mh, shape[-1] * mw, shape[0], frames)

    def memory_used_encode(self, shape: Any, dtype: torch.dtype) -> int:
        """The same for encoding pixels `b c h w`, or `b c t h w`."""
        return self._activation_bytes("encode", shape[-2], shape[-1], shape[0], shape[2] if len(shape) == 5 else 1)

    def _activation_bytes(self, direction: Any, height: int, width: int, images: int, frames: int) -> int:
        plan = self.hosted.plan(direction, width, height, images, How(), self.patcher, frames)
        return max(plan.device_bytes - self.hosted.weight_bytes, 0)

    def model_size(self) -> int:
        return self.hosted.weight_bytes

    def get_ram_usage(self) -> int:
        return self.model_size()

    def throw_exception_if_invalid(self) -> None:
        """It never is: a file that holds no VAE is refused when it is loaded."""

    def get_sd(self) -> dict[str, Tensor]:
        """The weights under ComfyUI's names, so that what VAESave writes is loaded by ComfyUI's own nodes too."""
        state = comfyui_names(self.first_stage_model.state_dict())
        if self.hosted.vae.spec.latent_of:
            state["vae_scale"], state["vae_shift"] = map(torch.tensor, tiny_scale(self.hosted.vae.spec))
        return {name: tensor.contiguous() for name, tensor in state.items()}

    # --- pixels and latents -------------------------------------------------------------------------------------------

    def decode(self, samples_in: Tensor, vae_options: Any = None, **options: Any) -> Tensor:
        """A LATENT's samples → IMAGE."""
        return self._decoded(samples_in, How())

    def decode_tiled(
        self, samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, **options: Any
    ) -> Tensor:
        """The same in tiles of the given edges at most, in latent cells. They are inside the network: there is no overlap."""
        edges = [edge * self.hosted.vae.spec.multiple[0] for edge in (tile_x, tile_y) if edge is not None]
        return self._decoded(samples, How(tile=min(edges, default=None)))

    def encode(self, pixel_samples: Tensor, not_video: bool | None = None, **options: Any) -> Tensor:
        """IMAGE → a LATENT's samples; sizes that do not divide are cropped about the centre."""
        return self._encoded(pixel_samples, How(), not_video)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        not_video: bool | None = None,
        **options: Any,
    ) -> Tensor:
        """The same in tiles of the given edges at most, in pixels. They are inside the network: there is no overlap."""
        edges = [edge for edge in (tile_x, tile_y) if edge is not None]
        return self._encoded(pixel_samples, How(tile=min(edges, default=None)), not_video)

    def _decoded(self, samples: Tensor, how: How) -> Tensor:
        samples = with_the_axes_of(self.hosted.vae, samples)
        with latent_kept(samples):
            return self.hosted.decode(samples, self.patcher, how, decoding())

    def _encoded(self, image: Tensor, how: How, not_video: bool | None) -> Tensor:
        single = self.not_video if not_video is None else not_video
        if self.latent_dim == 3 and image.ndim == 4 and single:
            image = image.unsqueeze(1)  # pictures, each a clip of one frame
        return self.hosted.encode(image, self.patcher, how, Watch())
