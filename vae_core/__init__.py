"""vae_core: diffusion VAEs that decode and encode in bounded memory, exactly.

    import vae_core
    vae = vae_core.load("sdxl_vae.safetensors")
    pixels = vae.decode(latents, memory_limit="2GiB")     # raw latents b z h w -> pixels b 3 h w in [-1, 1]

`AutoencoderKL`, `AutoencoderKLFlux2`, `AutoencoderTiny`, and for clips `AutoencoderKLCogVideoX`, `AutoencoderKLWan` and
`AutoencoderKLQwenImage` have the API that diffusers documents for them.
"""

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
