"""AutoencoderKLCogVideoX has the methods that diffusers documents, with the same names, arguments and results."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from clip_twins import clip_twins, moments, random_clip, random_latents
from tiny_nets import relative_error

import vae_core
from benchmarks.meter import Meter
from vae_core.models import ClipModel
from vae_core.nets.passes import Whole
from vae_core.spec import COGVIDEOX

SAME = 2e-5
"""Relative, float32, between diffusers and here: the upsampling convolution is summed in another order."""

TILES = ((24, 32, None, None), (40, 32, 0.25, 0.5), (24, 40, 1 / 3, None))
"""Arguments of enable_tiling; where steps and overlaps do not fit, as in the first two, the size comes out wrong, and alike."""


def cogvideox(dtype: torch.dtype = torch.float32, **fields: Any) -> tuple[Any, Any]:
    return clip_twins(COGVIDEOX, dtype, **fields)


# --- encode, decode, forward ------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_encode_equals_diffusers() -> None:
    theirs, ours = cogvideox()
    for frames in (1, 2, 3, 4, 5, 8, 9, 13, 17, 33):
        x = random_clip(frames, 16, 16)
        made = moments(ours, x)
        assert relative_error(made, moments(theirs, x)) <= SAME, frames
        assert made.shape[2] == ours.latents_of(frames)


@torch.inference_mode()
def test_decode_equals_diffusers() -> None:
    theirs, ours = cogvideox()
    for count in (1, 2, 3, 4, 5, 9):
        z = random_latents(count, 3, 2)
        made = ours.decode(z).sample
        assert relative_error(made, theirs.decode(z).sample) <= SAME, count
        assert made.shape[2] == ours.frames_of(count)


@torch.inference_mode()
def test_outputs_and_forward() -> None:
    theirs, ours = cogvideox()
    x = random_clip(5, 16, 24, batch=2)
    output, (posterior,) = ours.encode(x), ours.encode(x, return_dict=False)
    assert isinstance(output, vae_core.AutoencoderKLOutput)
    assert isinstance(posterior, vae_core.DiagonalGaussianDistribution)
    assert torch.equal(output.latent_dist.parameters, posterior.parameters)
    decoded, (pixels,) = ours.decode(posterior.mode()), ours.decode(posterior.mode(), return_dict=False)
    assert isinstance(decoded, vae_core.DecoderOutput)
    assert torch.equal(decoded.sample, pixels)
    assert torch.equal(ours(x).sample, pixels) and torch.equal(ours(x, return_dict=False)[0], pixels)
    drawn = [
        model(x, sample_posterior=True, generator=torch.Generator().manual_seed(3)).sample for model in (ours, theirs)
    ]
    assert relative_error(*drawn) <= SAME
    assert not torch.allclose(drawn[0], pixels, atol=1e-3)


@torch.inference_mode()
def test_slicing_takes_one_clip_at_a_time() -> None:
    theirs, ours = cogvideox()
    x, z = random_clip(9, 16, 24, batch=3), random_latents(3, 2, 3, batch=3)
    batches: list[int] = []
    network = ours.decode_chunk

    def seen(z: Any, first: bool) -> Any:
        batches.append(z.shape[0])
        return network(z, first)

    ours.decode_chunk = seen
    together = moments(ours, x), ours.decode(z).sample
    assert batches == [3]
    ours.enable_slicing()
    theirs.enable_slicing()
    assert relative_error(moments(ours, x), together[0]) <= SAME
    assert relative_error(ours.decode(z).sample, together[1]) <= SAME
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) <= SAME
    assert batches == [3, *[1] * 6]
    ours.disable_slicing()
    ours.decode(z)
    assert batches[-1] == 3


def test_gradients_are_those_of_diffusers() -> None:
    gradients: list[dict[str, Any]] = []
    for model in cogvideox(torch.float64):
        x = random_clip(9, 16, 8, dtype=torch.float64).requires_grad_()
        model(x).sample.square().mean().backward()
        gradients.append({"x": x.grad} | {key: value.grad for key, value in model.named_parameters()})
    theirs, ours = gradients
    assert theirs.keys() == ours.keys()
    for key, expected in theirs.items():
        assert float((ours[key] - expected).norm()) <= 1e-9 * float(expected.norm()), key


@torch.inference_mode()
def test_a_longer_clip_takes_no_more_than_its_pixels() -> None:
    """What chunks hold, and their causal caches, is let go with the next chunk."""
    _, ours = cogvideox()
    beyond = []
    for count in (6, 20):
        with Meter(ours) as meter:
            pixels = ours.decode(random_latents(count, 2, 2)).sample
        beyond.append(meter.peak["cpu"] - pixels.nbytes)
    latents = 4 * 4 * 4
    assert beyond[1] - beyond[0] == (20 - 6) * latents


# --- frames and latents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@torch.inference_mode()
def test_counts_are_those_of_the_network(ratio: int) -> None:
    narrow = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "temporal_compression_ratio": ratio}
    _, ours = cogvideox(**narrow)
    for n in range(1, 21):
        assert sum(ours.encode_chunks(n)) == sum(ours.decode_chunks(n)) == n
        encoded = [ours.encode_chunk(Whole(random_clip(t, 8, 8)), False).shape[2] for t in ours.encode_chunks(n)]
        decoded = [ours.decode_chunk(Whole(random_latents(t, 1, 1)), False).shape[2] for t in ours.decode_chunks(n)]
        assert (ours.latents_of(n), ours.frames_of(n)) == (sum(encoded), sum(decoded)), n


def test_counts_of_published_clips() -> None:
    with torch.device("meta"):
        net = vae_core.AutoencoderKLCogVideoX()
    assert isinstance(net, ClipModel) and net.clip and not vae_core.AutoencoderKL.clip
    assert (net.latents_of(49), net.frames_of(13)) == (13, 49)
    assert (net.latents_of(81), net.frames_of(21)) == (21, 81)
    assert (net.latents_of(5), net.frames_of(2)) == (2, 8)


# --- overlap and blend ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_literal_runs_are_bit_equal() -> None:
    theirs, ours = cogvideox()
    for batch, frames, h, w in ((1, 1, 8, 8), (2, 5, 24, 40), (1, 17, 41, 24)):
        x, z = random_clip(frames, h, w, batch=batch), random_latents((frames + 3) // 4, h // 8, w // 8, batch=batch)
        assert torch.equal(ours._literal_encode(x), moments(theirs, x)), (frames, h, w)
        assert torch.equal(ours._literal_decode(z), theirs.decode(z).sample), (frames, h, w)
    assert not torch.equal(ours.decode(z).sample, theirs.decode(z).sample), "or this test would show nothing"


@pytest.mark.parametrize("tiles", TILES)
@torch.inference_mode()
def test_tiled_is_bit_equal(tiles: tuple[Any, ...]) -> None:
    theirs, ours = cogvideox()
    for model in (theirs, ours):
        model.enable_tiling(*tiles)
    x, z = random_clip(16, 40, 48), random_latents(4, 5, 6)
    assert torch.equal(ours.tiled_encode(x), theirs.tiled_encode(x))
    (pixels,) = ours.tiled_decode(z, return_dict=False)
    assert torch.equal(pixels, theirs.tiled_decode(z).sample)
    assert (pixels.shape[-2:] == (40, 48)) == (tiles == TILES[2])


@torch.inference_mode()
def test_when_tiles_are_used() -> None:
    theirs, ours = cogvideox(sample_height=96, sample_width=97)
    for model in (theirs, ours):
        model.enable_slicing()
        model.enable_tiling()  # tiles of 48 × 48 pixels
    for h, w in ((48, 48), (56, 48), (48, 56)):
        x, z = random_clip(1, h, w, batch=2), random_latents(1, h // 8, w // 8, batch=2)
        tiled = (h, w) != (48, 48)
        assert torch.equal(moments(ours, x), moments(theirs, x)), "without upsampling, both are bit-equal"
        assert torch.equal(ours.decode(z).sample, theirs.decode(z).sample) == tiled
        ours.disable_tiling()
        plain = ours.decode(z).sample
        ours.enable_tiling()
        assert torch.equal(ours.decode(z).sample, plain) != tiled


def test_enable_tiling_keeps_what_it_is_not_given() -> None:
    names = ("sample_min_height", "sample_min_width", "latent_min_height", "latent_min_width")
    names = tuple(f"tile_{name}" for name in (*names, "overlap_factor_height", "overlap_factor_width"))
    theirs, ours = cogvideox()
    for arguments in ({}, {"tile_sample_min_height": 100}, {"tile_sample_min_width": 88, "tile_sample_min_height": 0},
                      {"tile_overlap_factor_height": 0.25}, {"tile_overlap_factor_width": 0.5}):  # fmt: skip
        for model in (theirs, ours):
            model.enable_tiling(**arguments)
        assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]


@torch.inference_mode()
def test_blend_of_square_tiles() -> None:
    """What `vae_core.VAE` calls for mode="blend"."""
    _, ours = cogvideox()
    ours.enable_tiling(40, 40, 0.2, 0.2)
    x, z = random_clip(5, 56, 72), random_latents(2, 7, 9)
    seen: list[tuple[int, int]] = []
    pixels = ours.blend_decode(z, 40, 5, lambda done, tiles: seen.append((done, tiles)))
    assert torch.equal(pixels, ours.tiled_decode(z).sample)
    assert seen == [(i + 1, 6) for i in range(6)]
    assert torch.equal(ours.blend_encode(x, 40, 5, overlap=0.2), ours.tiled_encode(x))


def test_tiles_that_do_not_advance_are_refused() -> None:
    _, ours = cogvideox()
    ours.enable_tiling(8, 8, 0.5, 0.5)
    with pytest.raises(vae_core.InputError, match="the next begins where the last one did"):
        ours.tiled_decode(random_latents(1, 3, 3))


# --- configuration and errors -----------------------------------------------------------------------------------------


def test_the_configuration_is_that_of_diffusers() -> None:
    with torch.device("meta"):
        ours, theirs = vae_core.AutoencoderKLCogVideoX().config, diffusers.AutoencoderKLCogVideoX().config
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in theirs.items() if not k.startswith("_")}
    assert dict(ours) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers": 2}, "has no field 'layers'"),
        ({"down_block_types": ("DownEncoderBlock2D",) * 4}, "down_block_types must name 'CogVideoXDownBlock3D'"),
        ({"up_block_types": ("CogVideoXUpBlock3D",) * 3}, "for each of the 4 block_out_channels"),
        ({"use_post_quant_conv": True}, "no published weights have them"),
    ],
)
def test_configurations_that_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vae_core.AutoencoderKLCogVideoX(**fields)


@pytest.mark.parametrize(
    "shape", [(1, 3, 16, 16), (1, 4, 5, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 16, 7), (0, 3, 1, 8, 8)]
)
def test_pixels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    _, ours = cogvideox()
    for encode in (ours.encode, ours.tiled_encode):
        with pytest.raises(vae_core.InputError) as caught:
            encode(torch.zeros(shape))
        assert str(caught.value) == (
            "AutoencoderKLCogVideoX encodes pixels `b c t h w` of 3 channels in floating point, at least one frame of 8×8; "
            f"got {shape} in float32"
        )


@pytest.mark.parametrize("shape", [(4, 2, 2), (1, 16, 3, 2, 2), (1, 4, 0, 2, 2), (1, 4, 1, 0, 2)])
def test_latents_that_do_not_fit(shape: tuple[int, ...]) -> None:
    _, ours = cogvideox()
    for decode in (ours.decode, ours.tiled_decode):
        with pytest.raises(
            vae_core.InputError, match=r"decodes latents `b z t h w` of 4 channels .* one frame of 1×1; got"
        ):
            decode(torch.zeros(shape))
    with pytest.raises(vae_core.InputError, match="in int64"):
        ours.decode(torch.zeros(1, 4, 1, 2, 2, dtype=torch.int64))
