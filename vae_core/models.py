"""The public model classes: the networks of nets/ with the API that diffusers documents for them.

`vae_core.VAE` (vae.py) is the way to decode in bounded memory; these classes are for code written against diffusers, for training
and for compiling. `enable_tiling` here is diffusers' own overlap-and-blend, approximate and bit-compatible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from . import checkpoint
from .blend import AfterTile, FactorScheme, Share, blend_by_factor, blend_by_mask
from .errors import InputError
from .nets.attention import Attention, AttnProcessor, FusedAttnProcessor2_0
from .nets.autoencoder_kl import AutoencoderKLConfig, AutoencoderKLFlux2Config, KLNetwork
from .nets.autoencoder_tiny import AutoencoderTinyConfig, TinyNetwork
from .nets.passes import Field, Whole
from .nets.posterior import AutoencoderKLOutput, AutoencoderTinyOutput, DecoderOutput, DiagonalGaussianDistribution
from .spec import KL, KL_FLUX2, TINY

M = TypeVar("M", bound="Model")


class Model(nn.Module):
    """What the model classes share: where they come from, where they are, and the tiling and slicing switches."""

    network: ClassVar[str]
    config: Any
    tile_overlap_factor: float
    use_tiling = False
    use_slicing = False

    @classmethod
    def from_pretrained(
        cls: type[M],
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
    ) -> M:
        """From a folder in diffusers' layout: config.json beside safetensors, .bin or Flax weights.

        `variant="fp16"` asks for the weight files of that name, as in diffusers. Without `torch_dtype` the weights are float32.
        Raises CheckpointError. Nothing is downloaded: the folder must be on this machine.
        """
        return cls._opened(
            checkpoint.open_checkpoint(pretrained_model_name_or_path, subfolder=subfolder, weights=variant), torch_dtype
        )

    @classmethod
    def from_single_file(
        cls: type[M],
        pretrained_model_link_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        **config: Any,
    ) -> M:
        """From one file, LDM or diffusers naming, bare or inside a full checkpoint. Keywords override configuration fields."""
        opened = checkpoint.open_checkpoint(pretrained_model_link_or_path)
        return cls._opened(opened, torch_dtype, config)

    @classmethod
    def _opened(
        cls: type[M],
        opened: checkpoint.Checkpoint,
        dtype: torch.dtype | None,
        overrides: Mapping[str, Any] | None = None,
    ) -> M:
        if opened.variant.network != cls.network:
            raise InputError(
                f"{opened.path} holds an {opened.variant.network}; load it with vae_core.{opened.variant.network}"
            )
        return cast(M, build(opened, dtype=dtype or torch.float32, overrides=overrides))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | None = None,
    ) -> None:
        """Writes config.json and the weights in diffusers' layout; existing files are replaced, whole or not at all."""
        checkpoint.save_diffusers(
            save_directory,
            self.network,
            dict(self.config),
            self._saved_state(),
            weights=variant,
            overwrite=True,
            max_shard_bytes=max_shard_size,
            safe_serialization=safe_serialization,
        )

    def _saved_state(self) -> dict[str, Tensor]:
        """The state dict under the names that every reader knows."""
        return self.state_dict()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def enable_slicing(self) -> None:
        """Batches one image at a time: less memory, the same result."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def disable_tiling(self) -> None:
        self.use_tiling = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Overlapping tiles, blended: approximate. `vae_core.VAE` tiles exactly."""
        self.use_tiling = use_tiling

    def encode_field(self, x: Field) -> Field:
        """Pixels → what the encoder emits: moments, or latents."""
        raise NotImplementedError

    def decode_field(self, z: Field) -> Field:
        """Raw latents → pixels."""
        raise NotImplementedError

    def blend_encode(
        self,
        x: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        """Overlap-and-blend of what the encoder emits, in tiles of the given edges; `after(done, tiles)` follows each.

        `overlap` is the part of a tile that overlaps the next; default: `tile_overlap_factor`.
        """
        raise NotImplementedError

    def blend_decode(
        self,
        z: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        """Overlap-and-blend of pixels, as `blend_encode`."""
        raise NotImplementedError

    def _whole_encode(self, x: Tensor) -> Tensor:
        return cast(Whole, self.encode_field(Whole(x))).data

    def _whole_decode(self, z: Tensor) -> Tensor:
        return cast(Whole, self.decode_field(Whole(z))).data

    def _literal_encode(self, x: Tensor) -> Tensor:
        return cast(Whole, self.encode_field(Whole(x, literal=True))).data

    def _literal_decode(self, z: Tensor) -> Tensor:
        return cast(Whole, self.decode_field(Whole(z, literal=True))).data

    def _sliced(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([function(one) for one in x.split(1)])
        return function(x)


class AutoencoderKL(KLNetwork, Model):
    """The image VAE of SD1, SD2, SDXL, SD3 and FLUX.1. Constructor fields, methods and names are those of diffusers.

    Pixels `b 3 h w` in [-1, 1]; latents `b z h/f w/f`, raw: multiply by `config.scaling_factor` (after subtracting
    `config.shift_factor`) for the diffusion model's space.
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

    # --- encode and decode --------------------------------------------------------------------------------------------

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...
    @overload
    def encode(self, x: Tensor, return_dict: bool) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]: ...

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels `b 3 h w` in [-1, 1] → the posterior of the raw latents `b z ⌊h/f⌋ ⌊w/f⌋`."""
        posterior = DiagonalGaussianDistribution(self._sliced(self._moments, x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    @overload
    def decode(
        self, z: Tensor, return_dict: Literal[True] = True, generator: torch.Generator | None = None
    ) -> DecoderOutput: ...
    @overload
    def decode(
        self, z: Tensor, return_dict: bool, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]: ...

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Raw latents `b z h w` → pixels `b 3 h·f w·f`, about [-1, 1], not clamped. `generator` is accepted and unused."""
        sample = self._sliced(self._pixels, z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encodes and decodes: the posterior's mean, or a sample of it."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict)

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

    def blend_encode(
        self,
        x: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        overlap = self.tile_overlap_factor if overlap is None else overlap
        scheme = FactorScheme.of((tile_px, tile_px), (tile_latent, tile_latent), (overlap, overlap))
        return blend_by_factor(x, self._literal_encode, scheme, after)

    def blend_decode(
        self,
        z: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        overlap = self.tile_overlap_factor if overlap is None else overlap
        scheme = FactorScheme.of((tile_latent, tile_latent), (tile_px, tile_px), (overlap, overlap))
        return blend_by_factor(z, self._literal_decode, scheme, after)

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


CLASSES: Mapping[str, type[Model]] = {cls.network: cls for cls in (AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny)}


def checked(config_class: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """A configuration from keywords. Raises InputError for a field that the class does not have."""
    known = config_class.__dataclass_fields__  # type: ignore[attr-defined]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(f"{config_class.__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")  # type: ignore[attr-defined]
    return config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def build(
    opened: checkpoint.Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    overrides: Mapping[str, Any] | None = None,
) -> Model:
    """The model of an opened checkpoint with its weights, in evaluation mode. `dtype` None keeps the stored one."""
    with torch.device("meta"):
        model = CLASSES[opened.variant.network](**{**opened.config, **(overrides or {})})
    checkpoint.assign(model, opened, dtype=dtype, device=device)
    return model.eval()
