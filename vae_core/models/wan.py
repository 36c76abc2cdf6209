"""The autoencoders of Wan 2.1 and Qwen-Image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any, ClassVar

from torch import Tensor

from ..blend import GridScheme
from ..nets.wan import AnyConfig, AutoencoderKLQwenImageConfig, AutoencoderKLWanConfig, WanNetwork
from ..spec import QWEN, WAN
from .base import checked
from .clip import ClipModel

FRAMES_PER_CHUNK = 4


class WanModel(WanNetwork, ClipModel):
    """What the two share."""

    config: AnyConfig
    config_class: ClassVar[Callable[..., AnyConfig]]

    def __init__(self, **config: Any):
        super().__init__(checked(self.config_class, config))
        self.pixel_channels, self.latent_channels = self.config.in_channels, self.config.z_dim
        self.spatial_compression_ratio = 2**self.config.halvings
        self.tile_sample_min_height = self.tile_sample_min_width = 256
        self.tile_sample_stride_height = self.tile_sample_stride_width = 192

    # --- chunks -------------------------------------------------------------------------------------------------------

    def encode_chunks(self, frames: int) -> list[int]:
        size = self._frames_per_chunk
        return [1, *[size] * ((frames - 1) // size)]

    def endless_chunks(self) -> Iterator[int]:
        return chain([1], repeat(self._frames_per_chunk))

    def decode_chunks(self, latents: int) -> list[int]:
        return [1] * latents

    def frames_of(self, latents: int) -> int:
        return 1 + (latents - 1) * 2**self.config.halvings_t

    def latents_of(self, frames: int) -> int:
        return 1 + (sum(self.encode_chunks(frames)) - 1) // 2**self.config.halvings_t

    @property
    def _frames_per_chunk(self) -> int:
        """A chunk must have a latent at least."""
        return max(FRAMES_PER_CHUNK, 2**self.config.halvings_t)

    # --- decode -------------------------------------------------------------------------------------------------------

    def _whole_decode(self, z: Tensor) -> Tensor:
        return super()._whole_decode(z).clamp_(-1, 1)

    # --- overlap and blend --------------------------------------------------------------------------------------------

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
    ) -> None:
        """Overlapping tiles, blended: approximate. `vae_core.VAE` tiles exactly.

        Height and width of a tile in pixels, and the steps from one to the next; None or 0 leaves one as it is.
        """
        self.use_tiling = True
        self.tile_sample_min_height = tile_sample_min_height or self.tile_sample_min_height
        self.tile_sample_min_width = tile_sample_min_width or self.tile_sample_min_width
        self.tile_sample_stride_height = tile_sample_stride_height or self.tile_sample_stride_height
        self.tile_sample_stride_width = tile_sample_stride_width or self.tile_sample_stride_width

    def tiled_encode(self, x: Tensor) -> Tensor:
        made = super().tiled_encode(x)
        h, w = (n // self.spatial_compression_ratio for n in x.shape[-2:])
        return made[..., :h, :w]

    def _tiled_decode(self, z: Tensor) -> Tensor:
        h, w = (n * self.spatial_compression_ratio for n in z.shape[-2:])
        return super()._tiled_decode(z)[..., :h, :w]

    def _latent_tile(self) -> tuple[int, int]:
        return self._in_latents(self._sample_tile())

    def _encode_grid(self) -> GridScheme:
        tile, stride = self._sample_tile(), self._sample_stride()
        return GridScheme.by_stride(tile, stride, self._in_latents(tile), self._in_latents(stride))

    def _decode_grid(self) -> GridScheme:
        tile, stride = self._sample_tile(), self._sample_stride()
        return GridScheme.by_stride(self._in_latents(tile), self._in_latents(stride), tile, stride)

    def _sample_tile(self) -> tuple[int, int]:
        return self.tile_sample_min_height, self.tile_sample_min_width

    def _sample_stride(self) -> tuple[int, int]:
        return self.tile_sample_stride_height, self.tile_sample_stride_width

    def _in_latents(self, pixels: tuple[int, int]) -> tuple[int, int]:
        return pixels[0] // self.spatial_compression_ratio, pixels[1] // self.spatial_compression_ratio


class AutoencoderKLWan(WanModel):
    """The video VAE of Wan 2.1. Constructor fields, methods and names are those of diffusers.

    Pixels `b 3 t h w` in [-1, 1], decoded ones clamped; latents `b z t' ⌊h/8⌋ ⌊w/8⌋`, raw: subtract `config.latents_mean` and
    divide by `config.latents_std`, channel by channel, for the diffusion model's space. 4k+1 frames have k+1 latents; frames beyond
    the last such number are not encoded.
    """

    network = WAN
    config_class = AutoencoderKLWanConfig

    def _tiled_decode(self, z: Tensor) -> Tensor:
        return super()._tiled_decode(z).clamp_(-1, 1)


class AutoencoderKLQwenImage(WanModel):
    """The VAE of Qwen-Image: the network of Wan 2.1 with weights of its own. Fields, methods and names are those of diffusers.

    Pictures are clips of one frame, `b c 1 h w` in [-1, 1], with 3 or, in RGBA, 4 channels; all else is as in AutoencoderKLWan, but
    that pixels decoded in tiles are not clamped, as in diffusers.
    """

    network = QWEN
    config_class = AutoencoderKLQwenImageConfig
