"""vae_core: diffusion VAEs that decode and encode in bounded memory, exactly.

    import vae_core
    vae = vae_core.load("sdxl_vae.safetensors")
    pixels = vae.decode(latents, memory_limit="2GiB")     # raw latents b z h w -> pixels b 3 h w in [-1, 1]

`AutoencoderKL`, `AutoencoderKLFlux2`, `AutoencoderTiny`, and for clips `AutoencoderKLCogVideoX`, `AutoencoderKLWan` and
`AutoencoderKLQwenImage` have the API that diffusers documents for them.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _modules() -> dict[str, str]:
    """In which module each public name is: as the stub beside this file tells type checkers, so that no list is kept twice."""
    lines = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    return {name.name: f".{line.module}" for line in lines if isinstance(line, ast.ImportFrom) for name in line.names}


_MODULES = _modules()
__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Names come when they are asked for: whoever loads one network pays for no other."""
    if name not in _MODULES:
        try:
            return import_module(f".{name}", __name__)
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
