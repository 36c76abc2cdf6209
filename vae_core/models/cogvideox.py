"""The autoencoder of CogVideoX."""

from __future__ import annotations

from typing import Any

from ..blend import GridScheme
from ..nets.cogvideox import (
    FRAMES_PER_CHUNK,
    LATENTS_PER_CHUNK,
    AutoencoderKLCogVideoXConfig,
    CogVideoXNetwork,
    chunks,
)
from ..spec import COGVIDEOX
from .base import checked
from .clip import ClipModel


class AutoencoderKLCogVideoX(CogVideoXNetwork, ClipModel):
    """The video VAE of CogVideoX. Constructor fields, methods and names are those of diffusers.

    Pixels `b 3 t h w` in [-1, 1], decoded ones not clamped; latents `b z t' ⌊h/8⌋ ⌊w/8⌋`, raw: multiply by `config.scaling_factor`
    for the diffusion model's space. 8k+1 frames have 2k+1 latents and come back as many; 8k frames have 2k. Other counts are
    encoded too, and may come back as another: `latents_of`, `frames_of`.
    """

    network = COGVIDEOX
    config: AutoencoderKLCogVideoXConfig
    tile_overlap_factor = 0.2

    def __init__(self, **config: Any):
        super().__init__(checked(AutoencoderKLCogVideoXConfig, config))
        self.pixel_channels, self.latent_channels = self.config.in_channels, self.config.latent_channels
        self.spatial_compression_ratio = 2 ** (len(self.config.block_out_channels) - 1)
        self.tile_overlap_factor_height, self.tile_overlap_factor_width = 1 / 6, 1 / 5
        self._set_tile(self.config.sample_height // 2, self.config.sample_width // 2)

    # --- chunks -------------------------------------------------------------------------------------------------------

    def encode_chunks(self, frames: int) -> list[int]:
        return chunks(frames, FRAMES_PER_CHUNK)

    def decode_chunks(self, latents: int) -> list[int]:
        return chunks(latents, LATENTS_PER_CHUNK)

    def frames_of(self, latents: int) -> int:
        return sum(map(self._doubled, self.decode_chunks(latents)))

    def latents_of(self, frames: int) -> int:
        return sum(map(self._halved, self.encode_chunks(frames)))

    def _doubled(self, latents: int) -> int:
        """Frames of one chunk; the first of an odd number of frames is not doubled."""
        for _ in range(self.config.halvings_t):
            latents = 2 * latents - latents % 2
        return latents

    def _halved(self, frames: int) -> int:
        """Latents of one chunk; the first of an odd number of frames is not halved."""
        for _ in range(self.config.halvings_t):
            frames = (frames + 1) // 2
        return frames

    # --- overlap and blend --------------------------------------------------------------------------------------------

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_overlap_factor_height: float | None = None,
        tile_overlap_factor_width: float | None = None,
    ) -> None:
        """Overlapping tiles, blended: approximate. `vae_core.VAE` tiles exactly.

        Height and width of a tile in pixels, and the shares of them that overlap; None or 0 leaves one as it is.
        """
        self.use_tiling = True
        self._set_tile(
            tile_sample_min_height or self.tile_sample_min_height, tile_sample_min_width or self.tile_sample_min_width
        )
        self.tile_overlap_factor_height = tile_overlap_factor_height or self.tile_overlap_factor_height
        self.tile_overlap_factor_width = tile_overlap_factor_width or self.tile_overlap_factor_width

    def _set_tile(self, height_px: int, width_px: int) -> None:
        self.tile_sample_min_height, self.tile_sample_min_width = height_px, width_px
        self.tile_latent_min_height = height_px // self.spatial_compression_ratio
        self.tile_latent_min_width = width_px // self.spatial_compression_ratio

    def _latent_tile(self) -> tuple[int, int]:
        return self.tile_latent_min_height, self.tile_latent_min_width

    def _encode_grid(self) -> GridScheme:
        return GridScheme.by_factor(self._sample_tile(), self._latent_tile(), self._overlaps())

    def _decode_grid(self) -> GridScheme:
        return GridScheme.by_factor(self._latent_tile(), self._sample_tile(), self._overlaps())

    def _sample_tile(self) -> tuple[int, int]:
        return self.tile_sample_min_height, self.tile_sample_min_width

    def _overlaps(self) -> tuple[float, float]:
        return self.tile_overlap_factor_height, self.tile_overlap_factor_width
