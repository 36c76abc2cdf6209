"""Pictures and latents, in and out of files."""

from .images import Picture, check_image, numbered, read_image, write_image
from .latents import Latents, read_latents, write_latents

__all__ = [
    "Latents",
    "Picture",
    "check_image",
    "numbered",
    "read_image",
    "read_latents",
    "write_image",
    "write_latents",
]
