"""The tiny autoencoders."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from ..blend import AfterTile, Share, blend_by_mask
from ..nets.autoencoder_tiny import AutoencoderTinyConfig, TinyNetwork
from ..nets.posterior import AutoencoderTinyOutput, DecoderOutput
from ..spec import TINY
from .base import Model, checked


class AutoencoderTiny(TinyNetwork, Model):
    """TAESD and its kin. Constructor fields, methods and names are those of diffusers; `pool_mid_blocks` is TAEF2's.

    Pixels `b 3 h w` in [-1, 1]; latents `b z ⌈h/8⌉ ⌈w/8⌉` in the diffusion model's own space.
    """

    network = TINY
    tile_overlap_factor = 0.125
    tile_sample_min_size = 512

    def __init__(self, **config: Any):
        super().__init__(checked(AutoencoderTinyConfig, config))
        self.spatial_scale_factor = self.config.upsampling_scaling_factor ** (len(self.config.num_decoder_blocks) - 1)
        self.tile_latent_min_size = self.tile_sample_min_size // self.spatial_scale_factor

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Pixels `b 3 h w` in [-1, 1] → latents."""
        latents = self._sliced(self._tiled_encode if self.use_tiling else self._whole_encode, x)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents → pixels `b 3 8h 8w`, about [-1, 1], not clamped. `generator` is accepted and unused."""
        sample = self._sliced(self._tiled_decode if self.use_tiling else self._whole_decode, x)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encodes, rounds the latents to bytes as if stored in a picture, and decodes."""
        latents = cast(AutoencoderTinyOutput, self.encode(sample)).latents
        stored = self.scale_latents(latents).mul(255).round().byte()
        return self.decode(self.unscale_latents(stored.to(latents.dtype) / 255.0), return_dict=return_dict)

    def scale_latents(self, x: Tensor) -> Tensor:
        """Latents, about ±latent_magnitude, → [0, 1]."""
        return x.div(2 * self.config.latent_magnitude).add(self.config.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """[0, 1] → latents."""
        return x.sub(self.config.latent_shift).mul(2 * self.config.latent_magnitude)

    def _tiled_encode(self, x: Tensor) -> Tensor:
        return self.blend_encode(x, self.tile_sample_min_size, self.tile_latent_min_size)

    def _tiled_decode(self, z: Tensor) -> Tensor:
        return self.blend_decode(z, self.tile_sample_min_size, self.tile_latent_min_size)

    def blend_encode(
        self,
        x: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        ratio = Fraction(1, self.spatial_scale_factor)
        overlap = self.tile_overlap_factor if overlap is None else overlap
        return blend_by_mask(x, self._literal_encode, tile_px, ratio, overlap, after)

    def blend_decode(
        self,
        z: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        ratio = Fraction(self.spatial_scale_factor)
        overlap = self.tile_overlap_factor if overlap is None else overlap
        return blend_by_mask(z, self._literal_decode, tile_latent, ratio, overlap, after)
