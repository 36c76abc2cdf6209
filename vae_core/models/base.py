"""What the model classes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..blend import AfterTile, GridScheme, Share, blend_on_grid
from ..errors import InputError
from ..nets.passes import Field, Whole
from ..nets.posterior import AutoencoderKLOutput, DecoderOutput, DiagonalGaussianDistribution
from ..nets.undrawn import without_weights

M = TypeVar("M", bound="Model")


class Model(nn.Module):
    """What the model classes share: where they come from, where they are, and the tiling and slicing switches."""

    network: ClassVar[str]
    clip: ClassVar[bool] = False
    """Takes clips, chunk by chunk, rather than pictures."""
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
        return cls.built(opened, dtype=dtype or torch.float32, overrides=overrides)

    @classmethod
    def built(
        cls: type[M],
        opened: checkpoint.Checkpoint,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        overrides: Mapping[str, Any] | None = None,
    ) -> M:
        """The model of an opened checkpoint with its weights, in evaluation mode. `dtype` None keeps the stored one."""
        with without_weights():
            model = cls(**{**opened.config, **(overrides or {})})
        checkpoint.assign(model, opened, dtype=dtype, device=device)
        return model.eval()

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
        """Batches one picture or clip at a time: less memory, the same result."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def disable_tiling(self) -> None:
        self.use_tiling = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Overlapping tiles, blended: approximate. `vae_core.VAE` tiles exactly."""
        self.use_tiling = use_tiling

    def encode_field(self, x: Field) -> Field:
        """A picture's pixels → what the encoder emits: moments, or latents."""
        raise NotImplementedError

    def decode_field(self, z: Field) -> Field:
        """A picture's raw latents → pixels."""
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
        return self._encoded(x, literal=False)

    def _whole_decode(self, z: Tensor) -> Tensor:
        return self._decoded(z, literal=False)

    def _literal_encode(self, x: Tensor) -> Tensor:
        return self._encoded(x, literal=True)

    def _literal_decode(self, z: Tensor) -> Tensor:
        return self._decoded(z, literal=True)

    def _encoded(self, x: Tensor, literal: bool) -> Tensor:
        return cast(Whole, self.encode_field(Whole(x, literal))).data

    def _decoded(self, z: Tensor, literal: bool) -> Tensor:
        return cast(Whole, self.decode_field(Whole(z, literal))).data

    def _sliced(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([function(one) for one in x.split(1)])
        return function(x)


class PosteriorModel(Model):
    """A model whose encoder emits the moments of a Gaussian posterior."""

    @overload
    def encode(self, x: Tensor, return_dict: Literal[True] = True) -> AutoencoderKLOutput: ...
    @overload
    def encode(self, x: Tensor, return_dict: bool) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]: ...

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Pixels in [-1, 1] → the posterior of the raw latents, in the shapes that the class names."""
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
        """Raw latents → pixels, about [-1, 1], in the shapes that the class names. `generator` is accepted and unused."""
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
        """Pixels → moments, tiled or not."""
        raise NotImplementedError

    def _pixels(self, z: Tensor) -> Tensor:
        """Raw latents → pixels, tiled or not."""
        raise NotImplementedError

    def blend_encode(
        self,
        x: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        overlap = self.tile_overlap_factor if overlap is None else overlap
        scheme = GridScheme.by_factor((tile_px, tile_px), (tile_latent, tile_latent), (overlap, overlap))
        return blend_on_grid(x, self._literal_encode, scheme, after)

    def blend_decode(
        self,
        z: Tensor,
        tile_px: int,
        tile_latent: int,
        after: AfterTile | None = None,
        overlap: Share | None = None,
    ) -> Tensor:
        overlap = self.tile_overlap_factor if overlap is None else overlap
        scheme = GridScheme.by_factor((tile_latent, tile_latent), (tile_px, tile_px), (overlap, overlap))
        return blend_on_grid(z, self._literal_decode, scheme, after)


def checked(config_class: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """A configuration from keywords. Raises InputError for a field that the class does not have."""
    known = config_class.__dataclass_fields__  # type: ignore[attr-defined]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(f"{config_class.__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")  # type: ignore[attr-defined]
    return config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
