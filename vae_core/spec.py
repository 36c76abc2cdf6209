"""What is known of each published variant: configuration, latent convention, dtypes that are safe.

A network's code says how it computes; this table says which weights go with which numbers. Sources are named beside each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

KL = "AutoencoderKL"
KL_FLUX2 = "AutoencoderKLFlux2"
TINY = "AutoencoderTiny"
WAN = "AutoencoderKLWan"
QWEN = "AutoencoderKLQwenImage"
COGVIDEOX = "AutoencoderKLCogVideoX"

CLIPS = frozenset({WAN, QWEN, COGVIDEOX})
"""Causal video networks: pixels `b c t h w`, the first frame with a latent of its own."""


class Scale(NamedTuple):
    """Pixels (frames) per latent cell along each axis."""

    t: int
    h: int
    w: int


@dataclass(frozen=True)
class Variant:
    """One published set of weights, or a custom configuration of a known network.

    A latent is *raw* as the network emits it. `z_model = (z - shift) * scaling`, or, where per-channel statistics are given,
    `z_model = (z - mean) / std * scaling`.
    """

    name: str
    """The id that `variant=` takes: "sdxl"."""
    title: str
    """For people: "SDXL"."""
    network: str
    """The class that builds it: `KL`, `KL_FLUX2`, `TINY`, `WAN`, `QWEN` or `COGVIDEOX`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Constructor fields that differ from the class defaults, as published."""
    source: str = ""
    """Where the numbers come from."""
    fp16_safe: bool = True
    """False where activations are known to overflow float16."""
    latent_of: str = ""
    """For a tiny network, the variant in whose normalised latent space it speaks."""
    model: str = ""
    """The name that its latents go by, where several variants share them: "CogVideoX"; "" for the title."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", MappingProxyType(dict(self.config)))


FLUX2_PATCH = (2, 2)
"""Class default of AutoencoderKLFlux2, diffusers 0.42."""

_KL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
_KL16 = _KL | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": 1024}

# Playground v2.5: vae/config.json of playgroundai/playground-v2.5-1024px-aesthetic
_PLAYGROUND_MEAN = (-1.6574, 1.886, -1.383, 2.5155)
_PLAYGROUND_STD = (8.4927, 5.9022, 6.5498, 5.2299)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        row.name: row
        for row in (
            Variant(
                "sd1",
                "Stable Diffusion 1.x",
                KL,
                _KL | {"sample_size": 512, "scaling_factor": 0.18215},
                "vae/config.json of runwayml/stable-diffusion-v1-5",
            ),
            Variant(
                "sd2",
                "Stable Diffusion 2.x",
                KL,
                _KL | {"sample_size": 768, "scaling_factor": 0.18215},
                "vae/config.json of stabilityai/stable-diffusion-2-1",
            ),
            Variant(
                "sdxl",
                "SDXL",
                KL,
                _KL | {"sample_size": 1024, "scaling_factor": 0.13025},
                "vae/config.json of stabilityai/stable-diffusion-xl-base-1.0",
                fp16_safe=False,
            ),
            Variant(
                "playground25",
                "Playground v2.5",
                KL,
                _KL
                | {
                    "sample_size": 1024,
                    "scaling_factor": 0.5,
                    "latents_mean": _PLAYGROUND_MEAN,
                    "latents_std": _PLAYGROUND_STD,
                },
                "vae/config.json of playgroundai/playground-v2.5-1024px-aesthetic",
                fp16_safe=False,
            ),
            Variant(
                "sd3",
                "Stable Diffusion 3 and 3.5",
                KL,
                _KL16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
                "vae/config.json of stabilityai/stable-diffusion-3-medium-diffusers",
            ),
            Variant(
                "flux1",
                "FLUX.1",
                KL,
                _KL16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
                "vae/config.json of black-forest-labs/FLUX.1-dev",
            ),
            Variant(
                "flux2",
                "FLUX.2",
                KL_FLUX2,
                {},
                "class defaults of AutoencoderKLFlux2, diffusers 0.42",
            ),
            Variant(
                "x4-upscaler",
                "Stable Diffusion x4 upscaler",
                KL,
                {
                    "block_out_channels": (128, 256, 512),
                    "layers_per_block": 2,
                    "norm_num_groups": 32,
                    "sample_size": 256,
                    "scaling_factor": 0.08333,
                },
                "vae/config.json of stabilityai/stable-diffusion-x4-upscaler; its pipeline forces 0.08333",
            ),
            Variant("taesd", "TAESD (tiny, SD 1.x and 2.x)", TINY, {}, "madebyollin/taesd", latent_of="sd1"),
            Variant("taesdxl", "TAESDXL (tiny, SDXL)", TINY, {}, "madebyollin/taesdxl", latent_of="sdxl"),
            Variant(
                "taesd3", "TAESD3 (tiny, SD3)", TINY, {"latent_channels": 16}, "madebyollin/taesd3", latent_of="sd3"
            ),
            Variant(
                "taef1", "TAEF1 (tiny, FLUX.1)", TINY, {"latent_channels": 16}, "madebyollin/taef1", latent_of="flux1"
            ),
            Variant(
                "taef2",
                "TAEF2 (tiny, FLUX.2)",
                TINY,
                {"latent_channels": 32, "pool_mid_blocks": True},
                "madebyollin/taesd, taef2 files",
                latent_of="flux2",
            ),
            Variant("wan21", "Wan 2.1", WAN, {}, "class defaults of AutoencoderKLWan, diffusers 0.42; Wan 2.2 14B too"),
            Variant(
                "qwen-image",
                "Qwen-Image",
                QWEN,
                {},
                "class defaults of AutoencoderKLQwenImage, diffusers 0.42, and vae/config.json of Qwen/Qwen-Image",
            ),
            Variant(
                "qwen-image-layered",
                "Qwen-Image-Layered",
                QWEN,
                {"input_channels": 4},
                "vae/config.json of Qwen/Qwen-Image-Layered: pixels with alpha",
                model="Qwen-Image",
            ),
            Variant(
                "cogvideox-2b",
                "CogVideoX-2B",
                COGVIDEOX,
                {"scaling_factor": 1.15258426},
                "vae/config.json of THUDM/CogVideoX-2b",
                model="CogVideoX",
            ),
            Variant(
                "cogvideox-5b",
                "CogVideoX-5B",
                COGVIDEOX,
                {"scaling_factor": 0.7},
                "vae/config.json of THUDM/CogVideoX-5b and -5b-I2V",
                model="CogVideoX",
            ),
            Variant(
                "cogvideox-1.5",
                "CogVideoX 1.5",
                COGVIDEOX,
                {"scaling_factor": 0.7, "invert_scale_latents": True},
                "vae/config.json of THUDM/CogVideoX1.5-5B and -5B-I2V",
                model="CogVideoX",
            ),
        )
    }
)


OTHER_LATENTS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        12: ("Mochi",),
        16: ("HunyuanVideo",),
        32: ("HunyuanVideo 1.5",),
        48: ("Wan 2.2",),
        64: ("HunyuanImage 2.1",),
        128: ("LTX-Video",),
    }
)
"""Channels of the latents of models whose VAE is not here. Source: comfy/latent_formats.py of ComfyUI 0.8.0, diffusers' configs."""


def whose_latent(channels: int) -> tuple[str, ...]:
    """Names of the models whose latents have so many channels, raw or as the diffusion model takes them; tiny networks apart."""
    ours = (row for row in VARIANTS.values() if row.network != TINY and channels in _latent_channels(row))
    return (*dict.fromkeys(row.model or row.title for row in ours), *OTHER_LATENTS.get(channels, ()))


def _latent_channels(variant: Variant) -> tuple[int, ...]:
    if variant.network == KL_FLUX2:
        return 32, 128
    return (16,) if variant.network in CLIPS else (variant.config.get("latent_channels", 4),)


@dataclass(frozen=True)
class Spec:
    """What one loaded VAE is: its sizes and its latent convention, whatever the network."""

    name: str
    title: str
    network: str
    latent_channels: int
    pixel_channels: int
    scale: Scale
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    patch: tuple[int, int] = (1, 1)
    """Raw latents are packed in patches of this (h, w) into the diffusion model's latent; FLUX.2 and its tiny VAE only."""
    fp16_safe: bool = True
    latent_of: str = ""
    """For a tiny network, the variant whose normalised latents it takes and gives."""
    inverts_scale: bool = False
    """True where the latents of a picture that is to be animated are divided by the scaling factor; CogVideoX 1.5 only."""

    @classmethod
    def of(cls, variant: Variant, config: Mapping[str, Any]) -> Spec:
        """From a variant's row and the network's complete configuration (diffusers' field names)."""
        tiny = variant.network == TINY
        packs = KL_FLUX2 in (variant.network, VARIANTS[variant.latent_of].network if variant.latent_of else "")
        return cls(
            name=variant.name,
            title=variant.title,
            network=variant.network,
            latent_channels=_first(config, "latent_channels", "z_dim"),
            pixel_channels=_first(config, "in_channels", "input_channels"),
            scale=_scale(variant.network, config),
            scaling_factor=1.0 if variant.network == KL_FLUX2 else config.get("scaling_factor", 1.0),
            shift_factor=config.get("shift_factor") or 0.0,
            latents_mean=None if tiny else config.get("latents_mean"),
            latents_std=None if tiny else config.get("latents_std"),
            patch=config.get("patch_size", FLUX2_PATCH) if packs else (1, 1),
            fp16_safe=variant.fp16_safe,
            latent_of=variant.latent_of,
            inverts_scale=config.get("invert_scale_latents", False),
        )

    @property
    def clip(self) -> bool:
        """True for a causal video network: pixels and latents have an axis of time, `b c t h w`."""
        return self.network in CLIPS

    @property
    def decode_dtypes(self) -> tuple[torch.dtype, ...]:
        """Half-precision formats that decoding is safe in, best first. bfloat16 has the range of float32."""
        return (torch.bfloat16, torch.float16) if self.fp16_safe else (torch.bfloat16,)

    @property
    def encode_dtypes(self) -> tuple[torch.dtype, ...]:
        """The same for encoding: none, but for the tiny networks, whose latents are approximate anyway."""
        return self.decode_dtypes if self.network == TINY else ()

    @property
    def multiple(self) -> tuple[int, int]:
        """Pixel sizes (h, w) that encode takes as they are are multiples of this."""
        return self.scale.h * self.patch[0], self.scale.w * self.patch[1]

    @property
    def packed_channels(self) -> int:
        """Channels of the diffusion model's latent."""
        return self.latent_channels * self.patch[0] * self.patch[1]

    @property
    def convention(self) -> str:
        """The latent convention in a line."""
        if self.patch != (1, 1) and self.network == TINY:
            return f"z_model = pack {self.patch[0]}×{self.patch[1]}(z), {self.packed_channels} channels"
        if self.network == KL_FLUX2:
            return f"z_model = batch_norm(pack {self.patch[0]}×{self.patch[1]}(z)), {self.packed_channels} channels"
        if self.latents_mean is not None:
            scaled = f" · {self.scaling_factor:g}" if self.scaling_factor != 1 else ""
            return f"z_model = (z - mean) / std{scaled}, per channel"
        shift = f"(z - {self.shift_factor:g})" if self.shift_factor else "z"
        inverted = f"; of a picture to animate, z / {self.scaling_factor:g}" if self.inverts_scale else ""
        return f"z_model = {shift} · {self.scaling_factor:g}{inverted}"


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next(config[name] for name in names if config.get(name) is not None)


def _scale(network: str, config: Mapping[str, Any]) -> Scale:
    if network in (WAN, QWEN):
        halvings = len(config["dim_mult"]) - 1
        return Scale(2 ** sum(config["temperal_downsample"][:halvings]), 2**halvings, 2**halvings)
    tiny = network == TINY
    levels = len(config["num_decoder_blocks" if tiny else "block_out_channels"])
    factor = (config["upsampling_scaling_factor"] if tiny else 2) ** (levels - 1)
    return Scale(int(config["temporal_compression_ratio"]) if network == COGVIDEOX else 1, factor, factor)
