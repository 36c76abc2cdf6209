"""What is timed: full-size networks with random weights, one direction, one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vae_core.spec import VARIANTS, Spec


@dataclass(frozen=True)
class Case:
    """One run. Of a picture, `frames` is 1."""

    variant: str
    direction: str
    width: int
    height: int
    frames: int = 1

    @property
    def name(self) -> str:
        clip = f"×{self.frames}" if self.frames > 1 else ""
        return f"{self.variant} {self.direction} {self.width}×{self.height}{clip}"

    def shape(self, spec: Spec, latents: int = 1) -> tuple[int, ...]:
        """Of the input; `latents` is how many the frames have."""
        decodes = self.direction == "decode"
        channels = spec.latent_channels if decodes else spec.pixel_channels
        time = ((latents if decodes else self.frames),) if spec.clip else ()
        sides = (self.height // spec.scale.h, self.width // spec.scale.w) if decodes else (self.height, self.width)
        return (1, channels, *time, *sides)

    @property
    def network(self) -> str:
        return VARIANTS[self.variant].network


def squares(variant: str, sides_px: Sequence[int], directions: Sequence[str] = ("decode", "encode")) -> list[Case]:
    return [Case(variant, direction, side, side) for direction in directions for side in sides_px]


def clips(variant: str, width: int, height: int, frames: int) -> list[Case]:
    return [Case(variant, direction, width, height, frames) for direction in ("decode", "encode")]


FULL = {
    "cpu": (
        *squares("sdxl", (256, 512, 1024)),
        *squares("taesd", (512,)),
        *clips("wan21", 128, 128, 9),
        *clips("cogvideox-5b", 128, 128, 9),
    ),
    "cuda": (
        *squares("sdxl", (512, 1024, 2048)),
        *squares("taesd", (1024,)),
        *clips("wan21", 832, 480, 17),
        *clips("cogvideox-5b", 720, 480, 17),
    ),
}
"""By the kind of device: sizes that keep it busy for a while."""

QUICK = (*squares("sdxl", (192,)), *squares("taesd", (256,)), Case("wan21", "decode", 64, 64, 5))
SCALING = tuple(squares("sdxl", (256, 512, 1024, 2048), ("decode",)))
"""Over tiles of 512 px, whose time should grow as the pixels do."""
