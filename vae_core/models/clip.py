"""What the causal models of clips share: a clip goes through chunk by chunk, one causal cache after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from torch import Tensor

from ..blend import GridScheme, blend_on_grid
from ..errors import InputError
from ..nets.passes import Carry, Field, Whole
from ..nets.posterior import DecoderOutput
from .base import PosteriorModel

OnChunk = Callable[[Field, bool], Field]
"""(chunk, whether it is the first) → result."""


class ClipModel(PosteriorModel):
    """A causal model of clips: pixels `b c t h w` in [-1, 1], raw latents `b z t' ⌊h/f⌋ ⌊w/f⌋`.

    `encode` and `decode` raise InputError for a tensor of another shape. A tile, in overlap-and-blend, is a part of the picture
    with all of its frames.
    """

    clip = True
    tile_overlap_factor = 0.25
    pixel_channels: int
    latent_channels: int
    spatial_compression_ratio: int
    """Pixels per latent cell along height and width."""
    tile_sample_min_height: int
    tile_sample_min_width: int

    # --- chunks -------------------------------------------------------------------------------------------------------

    def encode_chunk(self, x: Field, first: bool) -> Field:
        """One chunk's pixels → moments."""
        raise NotImplementedError

    def decode_chunk(self, z: Field, first: bool) -> Field:
        """One chunk's raw latents → pixels."""
        raise NotImplementedError

    def encode_chunks(self, frames: int) -> list[int]:
        """How many frames each chunk of a clip takes; together `frames`, or fewer: the rest at the end has no latent."""
        raise NotImplementedError

    def endless_chunks(self) -> Iterator[int] | None:
        """The same for a clip of which no one knows how long it is; None where they depend on that."""
        return None

    def decode_chunks(self, latents: int) -> list[int]:
        """How many latents each chunk of a clip takes; together `latents`."""
        raise NotImplementedError

    def frames_of(self, latents: int) -> int:
        """How many frames that many latents decode to."""
        raise NotImplementedError

    def latents_of(self, frames: int) -> int:
        """How many latents that many frames encode to."""
        raise NotImplementedError

    def fitting(self, frames: int, *, more: bool = False) -> int:
        """The number of frames nearest to `frames`, less or with `more` more, that come back as many when they are decoded."""
        while self.frames_of(self.latents_of(frames)) != frames:
            frames += 1 if more else -1
        return frames

    # --- encode and decode --------------------------------------------------------------------------------------------

    def _moments(self, x: Tensor) -> Tensor:
        self._require("encodes pixels `b c t h w`", x, self.pixel_channels, self.spatial_compression_ratio)
        if self.use_tiling and _exceeds(x, (self.tile_sample_min_height, self.tile_sample_min_width)):
            return self.tiled_encode(x)
        return self._whole_encode(x)

    def _pixels(self, z: Tensor) -> Tensor:
        self._require("decodes latents `b z t h w`", z, self.latent_channels)
        if self.use_tiling and _exceeds(z, self._latent_tile()):
            return self._tiled_decode(z)
        return self._whole_decode(z)

    def _encoded(self, x: Tensor, literal: bool) -> Tensor:
        frames = x.shape[2]
        return self._in_chunks(self.encode_chunk, x, self.encode_chunks(frames), self.latents_of(frames), literal)

    def _decoded(self, z: Tensor, literal: bool) -> Tensor:
        latents = z.shape[2]
        return self._in_chunks(self.decode_chunk, z, self.decode_chunks(latents), self.frames_of(latents), literal)

    def _in_chunks(self, run: OnChunk, clip: Tensor, chunks: Sequence[int], t: int, literal: bool) -> Tensor:
        """`run` on the chunks of a clip: `b c t' …`, with `t` frames in all."""
        carry, whole, start, done = Carry(), None, 0, 0
        for i, length in enumerate(chunks):
            carry = Carry(carry.after, keeps=i + 1 < len(chunks), consumes=True)
            chunk = clip[:, :, start : start + length]
            made = cast(Whole, run(Whole(chunk, literal, carry=carry), i == 0)).data
            if whole is None and made.shape[2] == t:
                return made
            whole = made.new_empty(*made.shape[:2], t, *made.shape[3:]) if whole is None else whole
            whole[:, :, done : done + made.shape[2]] = made
            start, done = start + length, done + made.shape[2]
            del made  # or it would be held while the next chunk runs
        assert whole is not None
        return whole

    def _require(self, does: str, x: Tensor, channels: int, smallest: int = 1) -> None:
        """Raises InputError unless `x` is a clip of so many channels, of a frame at least, `smallest` cells high and wide."""
        fits = x.ndim == 5 and x.shape[1] == channels and x.is_floating_point()
        if not fits or min(x.shape[:3]) < 1 or min(x.shape[3:]) < smallest:
            raise InputError(
                f"{self.network} {does} of {channels} channels in floating point, at least one frame of {smallest}×{smallest}; "
                f"got {tuple(x.shape)} in {str(x.dtype).removeprefix('torch.')}"
            )

    # --- overlap and blend --------------------------------------------------------------------------------------------

    def tiled_encode(self, x: Tensor) -> Tensor:
        """The moments by overlap-and-blend, whatever the size."""
        self._require("encodes pixels `b c t h w`", x, self.pixel_channels, self.spatial_compression_ratio)
        return blend_on_grid(x, self._literal_encode, self._encode_grid())

    def tiled_decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """`decode` by overlap-and-blend, whatever the size."""
        self._require("decodes latents `b z t h w`", z, self.latent_channels)
        sample = self._tiled_decode(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def _tiled_decode(self, z: Tensor) -> Tensor:
        return blend_on_grid(z, self._literal_decode, self._decode_grid())

    def _latent_tile(self) -> tuple[int, int]:
        """Height and width of a tile of latents."""
        raise NotImplementedError

    def _encode_grid(self) -> GridScheme:
        raise NotImplementedError

    def _decode_grid(self) -> GridScheme:
        raise NotImplementedError


def _exceeds(x: Tensor, tile: tuple[int, int]) -> bool:
    return x.shape[-2] > tile[0] or x.shape[-1] > tile[1]
