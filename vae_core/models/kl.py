"""The KL autoencoders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from .. import checkpoint
from ..errors import InputError
from ..nets.attention import Attention, AttnProcessor, FusedAttnProcessor2_0
from ..nets.autoencoder_kl import AutoencoderKLConfig, AutoencoderKLFlux2Config, KLNetwork
from ..nets.posterior import AutoencoderKLOutput, DecoderOutput, DiagonalGaussianDistribution
from ..spec import KL, KL_FLUX2
from .base import PosteriorModel, checked


class AutoencoderKL(KLNetwork, PosteriorModel):
    """The image VAE of SD1, SD2, SDXL, SD3 and FLUX.1. Constructor fields, methods and names are those of diffusers.

    Pixels `b 3 h w` in [-1, 1], decoded ones not clamped; latents `b z ⌊h/f⌋ ⌊w/f⌋`, raw: multiply by `config.scaling_factor`
    (after subtracting `config.shift_factor`) for the diffusion model's space.
    """

    network = KL
    config_class: ClassVar[type[AutoencoderKLConfig]] = AutoencoderKLConfig
    tile_overlap_factor = 0.25

    def __init__(self, **config: Any):
        super().__init__(checked(self.config_class, config))
        size = self.config.sample_size
        self.tile_sample_min_size = size if isinstance(size, int) else size[0]
        self.tile_latent_min_size = self.tile_sample_min_size // 2 ** (len(self.config.block_out_channels) - 1)
        self.original_attn_processors: dict[str, Any] | None = None

    def _moments(self, x: Tensor) -> Tensor:
        if self.use_tiling and max(x.shape[-2:]) > self.tile_sample_min_size:
            return self._tiled_encode(x)
        return self._whole_encode(x)

    def _pixels(self, z: Tensor) -> Tensor:
        if self.use_tiling and max(z.shape[-2:]) > self.tile_latent_min_size:
            return self._tiled_decode(z)
        return self._whole_decode(z)

    def save_flax(self, save_directory: str | Path) -> None:
        """Writes config.json and diffusion_flax_model.msgpack, as FlaxAutoencoderKL has them; `from_pretrained` reads them.

        Raises MissingPackageError without the package msgpack.
        """
        checkpoint.save_flax(save_directory, dict(self.config), self._saved_state(), overwrite=True)

    # --- overlap and blend --------------------------------------------------------------------------------------------

    def tiled_encode(
        self, x: Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """`encode` by overlap-and-blend of the moments, whatever the size."""
        posterior = DiagonalGaussianDistribution(self._tiled_encode(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode` by overlap-and-blend, whatever the size."""
        sample = self._tiled_decode(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def _tiled_encode(self, x: Tensor) -> Tensor:
        return self.blend_encode(x, self.tile_sample_min_size, self.tile_latent_min_size)

    def _tiled_decode(self, z: Tensor) -> Tensor:
        return self.blend_decode(z, self.tile_sample_min_size, self.tile_latent_min_size)

    # --- attention processors -----------------------------------------------------------------------------------------

    def _attentions(self) -> dict[str, Attention]:
        return {f"{name}.processor": m for name, m in self.named_modules() if isinstance(m, Attention)}

    @property
    def attn_processors(self) -> dict[str, Any]:
        """Module path + ".processor" → processor."""
        return {name: attention.processor for name, attention in self._attentions().items()}

    def set_attn_processor(self, processor: Callable[..., Tensor] | Mapping[str, Callable[..., Tensor]]) -> None:
        """One processor for every attention, or one each by module path. Raises InputError if the dict's size does not match."""
        attentions = self._attentions()
        if not isinstance(processor, Mapping):
            processor = dict.fromkeys(attentions, processor)
        if set(processor) != set(attentions):
            raise InputError(
                f"{len(processor)} attention processors were given for {', '.join(map(repr, processor)) or 'nothing'}, "
                f"but this network has {len(attentions)}: {', '.join(attentions)}"
            )
        for name, attention in attentions.items():
            attention.set_processor(processor[name])

    def set_default_attn_processor(self) -> None:
        """Plain attention: stored scores, softmax in float32."""
        self.set_attn_processor(AttnProcessor())

    def fuse_qkv_projections(self) -> None:
        """The queries', keys' and values' projections in one matrix each; the same result."""
        if self.original_attn_processors is None:
            self.original_attn_processors = self.attn_processors
        for attention in self._attentions().values():
            attention.fuse_projections()
        self.set_attn_processor(FusedAttnProcessor2_0())

    def unfuse_qkv_projections(self) -> None:
        """Undoes `fuse_qkv_projections`."""
        for attention in self._attentions().values():
            attention.unfuse_projections()
        if self.original_attn_processors is not None:
            self.set_attn_processor(self.original_attn_processors)
            self.original_attn_processors = None

    def _saved_state(self) -> dict[str, Tensor]:
        """Fused projections are saved as the separate ones that they are of."""
        state = super()._saved_state()
        for fused in [key for key in state if ".to_qkv." in key]:
            for name, part in zip("qkv", state.pop(fused).chunk(3), strict=True):
                state[fused.replace("to_qkv", f"to_{name}")] = part.clone()
        return state


class AutoencoderKLFlux2(AutoencoderKL):
    """The VAE of FLUX.2. `encode` and `decode` speak the unpacked latent `b 32 h w`, as in diffusers.

    The diffusion model's latent is `b 128 h/2 w/2`: `pack` and `unpack` go between them with the running statistics in `bn`.
    """

    network = KL_FLUX2
    config_class = AutoencoderKLFlux2Config

    def __init__(self, **config: Any):
        super().__init__(**config)
        cfg = cast(AutoencoderKLFlux2Config, self.config)
        packed = cfg.patch_size[0] * cfg.patch_size[1] * cfg.latent_channels
        self.bn = nn.BatchNorm2d(packed, cfg.batch_norm_eps, cfg.batch_norm_momentum, affine=False)
