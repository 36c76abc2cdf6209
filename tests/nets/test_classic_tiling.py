"""`tiled_encode`, `tiled_decode` and `enable_tiling` are diffusers' overlap-and-blend, bit for bit.

So is the run that they are made of: `literal`, the network computed step by step as diffusers computes it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny_nets import tiny_net
from twins import KL_NAMES, encoded, factor, latents, literal, picture, twins

from vae_core.blend import blend_by_mask

FULL, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
"""Where oneDNN computes bfloat16 with AMX, strided convolutions to a single column are garbage in torch 2.13, and ours differ from
diffusers' on purpose (nets/convolutions.py); so no tile of these tests is narrower than 16 px."""

SIZES = ((88, 88), (112, 64))
"""Pixels (h, w); no multiples of a tile's stride, and of all tiles but one."""
TILES = (32, 64, 96)

TINY_SIZES = ((264, 72), (136, 200))
TINY_TILES = (128, 192, 256)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in (*KL_NAMES, "taesd", "taef1") for dtype in (FULL, BRAIN)]
    + [("sdxl", HALF), ("sdxl", torch.float64)],
    ids=str,
)
@torch.inference_mode()
def test_literal_runs_are_bit_equal(name: str, dtype: torch.dtype) -> None:
    theirs, ours = twins(name, dtype)
    # After the attention of a single image and of several, the published code goes on in different memory layouts.
    for batch, h, w in ((1, 65, 43), (2, 40, 56), (3, 24, 17)):
        x, z = picture(h, w, dtype, batch), latents(ours, h, w, dtype, batch)
        assert torch.equal(literal(ours.encode_field, x), encoded(theirs, x)), (batch, h, w)
        assert torch.equal(literal(ours.decode_field, z), theirs.decode(z).sample), (batch, h, w)


def test_literal_runs_are_not_the_usual_ones() -> None:
    """Else the tests of this file would show nothing: upsampling and convolution in one round differently."""
    ours = tiny_net("sdxl")
    z = latents(ours, 64, 64)
    with torch.inference_mode():
        assert not torch.equal(literal(ours.decode_field, z), ours.decode(z).sample)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, FULL) for name in KL_NAMES] + [("sdxl", BRAIN), ("sdxl", HALF), ("flux2", BRAIN)],
    ids=str,
)
@torch.inference_mode()
def test_tiled_is_bit_equal(name: str, dtype: torch.dtype) -> None:
    theirs, ours = twins(name, dtype)
    for tile in TILES:
        set_tiles((theirs, ours), tile, factor(ours))
        for i, (h, w) in enumerate(SIZES):
            batch = i + 1
            x, z = picture(h, w, dtype, batch), latents(ours, h, w, dtype, batch)
            their_moments = theirs.tiled_encode(x).latent_dist.parameters
            assert torch.equal(ours.tiled_encode(x).latent_dist.parameters, their_moments), (tile, h, w)
            assert torch.equal(ours.tiled_decode(z).sample, theirs.tiled_decode(z).sample), (tile, h, w)


@torch.inference_mode()
def test_tile_sizes_that_do_not_fit_their_overlap() -> None:
    """diffusers' rounding is kept, even where the size comes out wrong: steps of 4 latents, of which 36 px are kept."""
    theirs, ours = twins("sdxl")
    set_tiles((theirs, ours), 48, 8)
    z = latents(ours, 120, 72)
    made = ours.tiled_decode(z).sample
    assert torch.equal(made, theirs.tiled_decode(z).sample)
    assert made.shape[-2:] != (120, 72)


@torch.inference_mode()
def test_tiles_of_a_single_latent_column() -> None:
    """104 px in steps of 24 leave a last tile of 8 px."""
    theirs, ours = twins("sdxl")
    set_tiles((theirs, ours), 32, 8)
    x, z = picture(104, 56), latents(ours, 104, 56)
    assert torch.equal(ours.tiled_encode(x).latent_dist.parameters, theirs.tiled_encode(x).latent_dist.parameters)
    assert torch.equal(ours.tiled_decode(z).sample, theirs.tiled_decode(z).sample)


@torch.inference_mode()
def test_other_overlaps() -> None:
    theirs, ours = twins("flux1")
    set_tiles((theirs, ours), 64, 8)
    theirs.tile_overlap_factor = ours.tile_overlap_factor = 0.5
    x, z = picture(112, 80), latents(ours, 112, 80)
    assert torch.equal(ours.tiled_encode(x).latent_dist.parameters, theirs.tiled_encode(x).latent_dist.parameters)
    assert torch.equal(ours.tiled_decode(z).sample, theirs.tiled_decode(z).sample)


@pytest.mark.parametrize("name", ["sdxl", "flux2"])
@torch.inference_mode()
def test_enable_tiling_takes_its_tiles_from_sample_size(name: str) -> None:
    theirs, ours = twins(name, sample_size=64)
    untiled = ours.encode(picture(112, 64)).latent_dist.parameters, ours.decode(latents(ours, 112, 64)).sample
    for model in (theirs, ours):
        model.enable_tiling()
        model.enable_slicing()
    assert (ours.tile_sample_min_size, ours.tile_latent_min_size) == (64, theirs.tile_latent_min_size)
    for h, w in ((112, 64), (64, 80)):  # larger than a tile one way: tiled both ways
        x, z = picture(h, w, batch=2), latents(ours, h, w, batch=2)
        assert torch.equal(encoded(ours, x), encoded(theirs, x))
        assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample)
    assert not torch.allclose(encoded(ours, picture(112, 64)), untiled[0], rtol=0, atol=1e-4)
    assert not torch.allclose(ours.decode(latents(ours, 112, 64)).sample, untiled[1], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_pictures_of_one_tile_are_not_tiled() -> None:
    _, ours = twins("sdxl", sample_size=64)
    x, z = picture(64, 64), latents(ours, 64, 64)
    plain = encoded(ours, x), ours.decode(z).sample
    ours.enable_tiling()
    assert torch.equal(encoded(ours, x), plain[0])
    assert torch.equal(ours.decode(z).sample, plain[1])


def test_tiled_decode_differentiates_as_in_diffusers() -> None:
    """The cross-fades are written in place, into what autograd has seen."""
    theirs, ours = twins("sdxl", torch.float64)
    set_tiles((theirs, ours), 32, 8)
    gradients = []
    for model in (theirs, ours):
        z = latents(ours, 56, 40, torch.float64).requires_grad_()
        model.tiled_decode(z).sample.square().sum().backward()
        gradients.append(z.grad)
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-12)


# --- AutoencoderTiny --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FULL, BRAIN, HALF], ids=str)
@torch.inference_mode()
def test_tiny_is_bit_equal(dtype: torch.dtype) -> None:
    theirs, ours = twins("taesd", dtype)
    for model in (theirs, ours):
        model.enable_tiling()
    # Which tiles there are does not depend on the dtype, and a CPU without a unit for half precision is slow in it.
    tiles, sizes = (TINY_TILES, TINY_SIZES) if dtype == FULL else (TINY_TILES[:1], TINY_SIZES[:1])
    for tile in tiles:
        set_tiles((theirs, ours), tile, 8)
        for h, w in sizes:
            x, z = picture(h, w, dtype), latents(ours, h, w, dtype)
            assert torch.equal(encoded(ours, x), encoded(theirs, x)), (tile, h, w)
            assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample), (tile, h, w)


@torch.inference_mode()
def test_tiny_with_its_own_tiles() -> None:
    """512 px; each picture is tiled, whatever its size."""
    theirs, ours = twins("taesd")
    for model in (theirs, ours):
        model.enable_tiling()
        model.enable_slicing()
    x, z = picture(520, 64, batch=2), latents(ours, 520, 64, batch=2)
    assert torch.equal(encoded(ours, x), encoded(theirs, x))
    assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample)


@torch.inference_mode()
def test_tiny_with_16_channels() -> None:
    """diffusers' buffer has 4 channels. Its scheme on 4 of the 16 at a time is what all 16 must come to."""
    theirs, ours = twins("taef1")
    for model in (theirs, ours):
        model.enable_tiling()
    set_tiles((theirs, ours), 128, 8)
    x, z = picture(264, 136), latents(ours, 264, 136)
    with pytest.raises(RuntimeError):
        theirs.encode(x)
    encoder, parts = theirs.encoder, []
    for first in range(0, 16, 4):
        theirs.encoder = Channels(encoder, first, first + 4)
        parts.append(theirs.encode(x).latents)
    assert torch.equal(ours.encode(x).latents, torch.cat(parts, dim=1))
    assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample)


@pytest.mark.parametrize("size", [(263, 137), (257, 300), (129, 128)])
@torch.inference_mode()
def test_tiny_with_odd_sizes(size: tuple[int, int]) -> None:
    """The encoder rounds up; diffusers' buffer rounds down, and fails."""
    theirs, ours = twins("taesd")
    for model in (theirs, ours):
        model.enable_tiling()
    set_tiles((theirs, ours), 128, 8)
    x = picture(*size)
    with pytest.raises(RuntimeError):
        theirs.encode(x)
    made = ours.encode(x).latents
    assert made.shape == (1, 4, -(-size[0] // 8), -(-size[1] // 8))
    # Up to the second tile (112 px, 14 cells) the result is the first tile's, and at the end the last one's.
    first = literal(ours.encode_field, x[..., :128, :128])
    assert torch.equal(made[..., :14, :14], first[..., :14, :14])
    last = [n - n % 112 for n in size]
    end = literal(ours.encode_field, x[..., last[0] :, last[1] :])
    if min(end.shape[-2:]) > 2:  # beyond the ramp, which is 2 cells wide
        assert torch.equal(made[..., -1, -1], end[..., -1, -1])
    assert made.isfinite().all()


@pytest.mark.parametrize("tile", [64, 48, 16])
@torch.inference_mode()
def test_tiny_tiles_whose_overlap_is_one_cell_or_less(tile: int) -> None:
    """diffusers divides by overlap - 1 there, and makes NaN or zeros; ours puts tile beside tile, where diffusers would put it."""
    _, ours = twins("taesd")
    set_tiles((ours,), tile, 8)
    ours.enable_tiling()
    x = picture(136, 136)
    made = ours.encode(x).latents
    assert made.isfinite().all()
    stride = (tile - tile // 8) // 8
    second = literal(ours.encode_field, x[..., :tile, tile - tile // 8 :][..., :tile])
    assert torch.equal(made[..., :stride, stride : 2 * stride], second[..., :stride, :stride])


def test_tiny_pieces_of_one_picture_meet_exactly() -> None:
    """A network without any reach shows the scheme alone: blending equal tiles changes nothing, at whatever scale."""
    x = torch.rand(1, 2, 90, 57)
    for ratio, network in (
        (Fraction(1), lambda t: t),
        (Fraction(3), lambda t: t.repeat_interleave(3, -1).repeat_interleave(3, -2)),
        (Fraction(1, 3), lambda t: t[..., ::3, ::3]),
    ):
        assert torch.allclose(blend_by_mask(x, network, 24, ratio, 0.125), network(x), atol=1e-6)


# --- helpers ----------------------------------------------------------------------------------------------------------


class Channels(torch.nn.Module):
    """Some of a network's output channels."""

    def __init__(self, network: Any, start: int, stop: int):
        super().__init__()
        self.network, self.start, self.stop = network, start, stop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)[:, self.start : self.stop]


def set_tiles(models: tuple[Any, ...], tile_px: int, scale: int) -> None:
    for model in models:
        model.tile_sample_min_size, model.tile_latent_min_size = tile_px, tile_px // scale
