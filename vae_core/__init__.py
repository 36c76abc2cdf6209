"""vae_core: diffusion VAEs that decode and encode in bounded memory, exactly.

    import vae_core
    vae = vae_core.load("sdxl_vae.safetensors")
    pixels = vae.decode(latents, memory_limit="2GiB")     # raw latents b z h w -> pixels b 3 h w in [-1, 1]

`AutoencoderKL`, `AutoencoderKLFlux2`, `AutoencoderTiny`, and for clips `AutoencoderKLCogVideoX`, `AutoencoderKLWan` and
`AutoencoderKLQwenImage` have the API that diffusers documents for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BudgetError,
        CheckpointError,
        ConfigError,
        ExactVAEError,
        InputError,
        MissingPackageError,
        NonFiniteError,
        StateDictError,
        UnknownModelError,
    )
    from .models import (
        AutoencoderKL,
        AutoencoderKLCogVideoX,
        AutoencoderKLFlux2,
        AutoencoderKLQwenImage,
        AutoencoderKLWan,
        AutoencoderTiny,
    )
    from .nets.posterior import AutoencoderKLOutput, AutoencoderTinyOutput, DecoderOutput, DiagonalGaussianDistribution
    from .plan import Plan
    from .report import Report
    from .spec import VARIANTS, Spec, Variant
    from .stream import Progress
    from .vae import VAE, load, load_embedded

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "VARIANTS",
    "AutoencoderKL",
    "AutoencoderKLCogVideoX",
    "AutoencoderKLFlux2",
    "AutoencoderKLOutput",
    "AutoencoderKLQwenImage",
    "AutoencoderKLWan",
    "AutoencoderTiny",
    "AutoencoderTinyOutput",
    "BudgetError",
    "CheckpointError",
    "ConfigError",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "ExactVAEError",
    "InputError",
    "MissingPackageError",
    "NonFiniteError",
    "Plan",
    "Progress",
    "Report",
    "Spec",
    "StateDictError",
    "UnknownModelError",
    "Variant",
    "load",
    "load_embedded",
]

_PLACES = {
    "errors": (
        "BudgetError",
        "CheckpointError",
        "ConfigError",
        "ExactVAEError",
        "InputError",
        "MissingPackageError",
        "NonFiniteError",
        "StateDictError",
        "UnknownModelError",
    ),
    "models": (
        "AutoencoderKL",
        "AutoencoderKLCogVideoX",
        "AutoencoderKLFlux2",
        "AutoencoderKLQwenImage",
        "AutoencoderKLWan",
        "AutoencoderTiny",
    ),
    "nets.posterior": ("AutoencoderKLOutput", "AutoencoderTinyOutput", "DecoderOutput", "DiagonalGaussianDistribution"),
    "plan": ("Plan",),
    "report": ("Report",),
    "spec": ("Spec", "VARIANTS", "Variant"),
    "stream": ("Progress",),
    "vae": ("VAE", "load", "load_embedded"),
}
"""In which module each name is. They come when they are asked for: whoever loads one network pays for no other."""

_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
