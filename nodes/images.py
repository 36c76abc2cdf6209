"""The nodes that decode and encode pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from ..vae_core.execution import How
from .hosted import Adopted, Fit
from .inputs import (
    FIT,
    HIDDEN,
    MASK,
    MEMORY_LIMIT,
    METHOD,
    OVERLAP,
    PIXELS,
    PRECISION,
    SAMPLES,
    TILE_SIZE,
    VAE_INPUT,
    checked_limit,
    limit_of,
)
from .running import Asked, decoded, encoded

CATEGORY = "latent/exact vae"

Method = Literal["exact", "blend"]


def tiled(tile_size: int, method: Method, overlap: int, memory_limit: str) -> How:
    """How a node with a tile size runs."""
    return How(method, tile_size, limit_of(memory_limit), overlap if method == "blend" else None)


class Node:
    """What the nodes share. ComfyUI keeps one object per node of a graph: the VAEs that it has seen live with it."""

    CATEGORY = CATEGORY

    def __init__(self) -> None:
        self.adopted = Adopted()

    @classmethod
    def VALIDATE_INPUTS(cls, memory_limit: Any = "auto") -> bool | str:
        return checked_limit(memory_limit)


class _Decodes(Node):
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The decoded pictures.",)
    FUNCTION = "decode"


class _Encodes(Node):
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The latents: the posterior's mean, as ComfyUI's own VAE Encode gives.",)
    FUNCTION = "encode"


class ExactVAEDecode(_Decodes):
    """Latents → pictures, exact in whatever memory there is."""

    DESCRIPTION = (
        "Decodes latents into pictures in bounded memory. The picture is the same however little memory there is: tiles, where "
        "they are needed, are inside the network."
    )
    SEARCH_ALIASES = ["vae decode", "decode latent", "latent to image", "low vram decode"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"samples": SAMPLES, "vae": VAE_INPUT},
            "optional": {"memory_limit": MEMORY_LIMIT, "precision": PRECISION},
            "hidden": HIDDEN,
        }

    def decode(
        self,
        samples: Mapping[str, Any],
        vae: Any,
        memory_limit: str = "auto",
        precision: str = "auto",
        unique_id: str | None = None,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        how = How(memory_limit=limit_of(memory_limit))
        asked = Asked(how, precision, node_id=unique_id, prompt=prompt, workflow=extra_pnginfo)
        return decoded(self.adopted, vae, samples, asked)


class ExactVAEDecodeTiled(_Decodes):
    """Latents → pictures, in tiles of a size that the user chooses."""

    DESCRIPTION = (
        "Decodes latents in tiles of a chosen size: exact, with tiles inside the network and no seam, or by the classic "
        "blending of overlapping tiles."
    )
    SEARCH_ALIASES = ["vae decode tiled", "tiled vae", "seamless tiles"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"samples": SAMPLES, "vae": VAE_INPUT, "tile_size": TILE_SIZE},
            "optional": {
                "method": METHOD,
                "overlap": OVERLAP,
                "memory_limit": MEMORY_LIMIT,
                "precision": PRECISION,
            },
            "hidden": HIDDEN,
        }

    def decode(
        self,
        samples: Mapping[str, Any],
        vae: Any,
        tile_size: int,
        method: Method = "exact",
        overlap: int = 64,
        memory_limit: str = "auto",
        precision: str = "auto",
        unique_id: str | None = None,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        how = tiled(tile_size, method, overlap, memory_limit)
        asked = Asked(how, precision, node_id=unique_id, prompt=prompt, workflow=extra_pnginfo)
        return decoded(self.adopted, vae, samples, asked)


class ExactVAEEncode(_Encodes):
    """Pictures → latents, exact in whatever memory there is."""

    DESCRIPTION = (
        "Encodes pictures into latents in bounded memory. The latents are the same however little memory there is."
    )
    SEARCH_ALIASES = ["vae encode", "encode image", "image to latent", "low vram encode"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"pixels": PIXELS, "vae": VAE_INPUT},
            "optional": {"fit": FIT, "memory_limit": MEMORY_LIMIT, "precision": PRECISION, "mask": MASK},
            "hidden": HIDDEN,
        }

    def encode(
        self,
        pixels: Tensor,
        vae: Any,
        fit: Fit = "crop",
        memory_limit: str = "auto",
        precision: str = "auto",
        mask: Tensor | None = None,
        unique_id: str | None = None,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        asked = Asked(How(memory_limit=limit_of(memory_limit)), precision, fit, unique_id)
        return encoded(self.adopted, vae, pixels, mask, asked)


class ExactVAEEncodeTiled(_Encodes):
    """Pictures → latents, in tiles of a size that the user chooses."""

    DESCRIPTION = (
        "Encodes pictures in tiles of a chosen size: exact, with tiles inside the network, or by the classic blending of "
        "overlapping tiles."
    )
    SEARCH_ALIASES = ["vae encode tiled", "tiled vae", "seamless tiles"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"pixels": PIXELS, "vae": VAE_INPUT, "tile_size": TILE_SIZE},
            "optional": {
                "method": METHOD,
                "overlap": OVERLAP,
                "fit": FIT,
                "memory_limit": MEMORY_LIMIT,
                "precision": PRECISION,
                "mask": MASK,
            },
            "hidden": HIDDEN,
        }

    def encode(
        self,
        pixels: Tensor,
        vae: Any,
        tile_size: int,
        method: Method = "exact",
        overlap: int = 64,
        fit: Fit = "crop",
        memory_limit: str = "auto",
        precision: str = "auto",
        mask: Tensor | None = None,
        unique_id: str | None = None,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        asked = Asked(tiled(tile_size, method, overlap, memory_limit), precision, fit, unique_id)
        return encoded(self.adopted, vae, pixels, mask, asked)
