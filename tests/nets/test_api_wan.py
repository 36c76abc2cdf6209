"""AutoencoderKLWan and AutoencoderKLQwenImage have the methods of diffusers, with the same names, arguments and results."""

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
from vae_core.nets.passes import Carry, Whole
from vae_core.spec import QWEN, WAN

SAME = 2e-5
"""Relative, float32, between diffusers and here: the upsampling convolution is summed in another order."""
LITERAL = 2e-6
"""The same where every step is computed as in diffusers; often nothing at all."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan": (WAN, {}),
    "another decoder": (WAN, {"decoder_base_dim": 16}),
    "qwen": (QWEN, {}),
    "qwen, RGBA": (QWEN, {"input_channels": 4}),
}
TILES = ((32, 32, 24, 24), (24, 40, 16, 24), (40, 32, 32, 16))
"""Arguments of enable_tiling."""

each_model = pytest.mark.parametrize("name", MODELS)


def twins(name: str) -> tuple[Any, Any]:
    network, fields = MODELS[name]
    return clip_twins(network, **fields)


# --- encode, decode, forward ------------------------------------------------------------------------------------------


@each_model
@torch.inference_mode()
def test_encode_and_decode_equal_diffusers(name: str) -> None:
    theirs, ours = twins(name)
    for frames in (1, 5, 9, 13, 17, 33) if name == "wan" else (1, 9):
        x = random_clip(frames, 24, 16, channels=ours.pixel_channels)
        made = moments(ours, x)
        assert relative_error(made, moments(theirs, x)) <= SAME, frames
        assert made.shape[2] == ours.latents_of(frames) == 1 + (frames - 1) // 4
        z = random_latents(made.shape[2], 3, 2)
        pixels = ours.decode(z).sample
        assert relative_error(pixels, theirs.decode(z).sample) <= SAME, frames
        assert pixels.shape[1:3] == (ours.pixel_channels, ours.frames_of(made.shape[2])) == (x.shape[1], frames)


@torch.inference_mode()
def test_frames_without_a_latent_are_left_out() -> None:
    theirs, ours = twins("wan")
    x = random_clip(8, 16, 16)
    for frames in (2, 4, 7, 8):
        part = x[:, :, :frames]
        assert relative_error(moments(ours, part), moments(theirs, part)) <= SAME
        assert torch.equal(moments(ours, part), moments(ours, part[:, :, : 1 + (frames - 1) // 4 * 4]))


@each_model
@torch.inference_mode()
def test_decoded_pixels_are_clamped(name: str) -> None:
    theirs, ours = twins(name)
    for model in (theirs, ours):
        model.decoder.conv_out.weight.mul_(10)
    z = random_latents(2, 3, 2)
    made = ours.decode(z).sample
    assert float(made.amin()) == -1 and float(made.amax()) == 1
    assert relative_error(made, theirs.decode(z).sample) <= SAME


@pytest.mark.parametrize("name", ["wan", "qwen"])
@torch.inference_mode()
def test_outputs_and_forward(name: str) -> None:
    theirs, ours = twins(name)
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
    theirs, ours = twins("wan")
    x, z = random_clip(5, 16, 24, batch=3), random_latents(2, 2, 3, batch=3)
    batches: list[int] = []
    network = ours.decode_chunk

    def seen(z: Any, first: bool) -> Any:
        batches.append(z.shape[0])
        return network(z, first)

    ours.decode_chunk = seen
    together = moments(ours, x), ours.decode(z).sample
    ours.enable_slicing()
    theirs.enable_slicing()
    assert relative_error(moments(ours, x), together[0]) <= SAME
    sample = ours.decode(z).sample
    assert relative_error(sample, together[1]) <= SAME and relative_error(sample, theirs.decode(z).sample) <= SAME
    assert batches == [3, 3, *[1] * 6]


def test_gradients_are_those_of_diffusers() -> None:
    """In float32: diffusers upsamples in it."""
    gradients: list[dict[str, Any]] = []
    for model in twins("wan"):
        x = random_clip(9, 16, 8).requires_grad_()
        output = model.encode(x)
        z = output.latent_dist.sample(torch.Generator().manual_seed(0))
        (model.decode(z).sample - x).square().mean().backward()
        gradients.append({"x": x.grad} | {key: value.grad for key, value in model.named_parameters()})
    theirs, ours = gradients
    assert theirs.keys() == ours.keys()
    # The keys' bias moves all scores of a query alike, so that its gradient is zero but for rounding.
    noise = 1e-6 * max(float(g.norm()) for g in theirs.values())
    for key, expected in theirs.items():
        assert float((ours[key] - expected).norm()) <= 1e-4 * float(expected.norm()) + noise, key


@torch.inference_mode()
def test_a_longer_clip_takes_no_more_than_its_pixels() -> None:
    """What chunks hold, and their causal caches, is let go with the next chunk."""
    _, ours = twins("wan")
    beyond = []
    for count in (4, 12):
        with Meter(ours) as meter:
            pixels = ours.decode(random_latents(count, 4, 4)).sample
        beyond.append(meter.peak["cpu"] - pixels.nbytes)
    latents = 4 * 16 * 4
    assert beyond[1] - beyond[0] == (12 - 4) * latents


# --- frames and latents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_time", [(False, False), (True, False), (True, True)])
@torch.inference_mode()
def test_counts_are_those_of_the_network(in_time: tuple[bool, ...]) -> None:
    _, ours = clip_twins(WAN, dim_mult=(1, 1, 1), temperal_downsample=in_time)
    for n in (*range(1, 10), 20):
        assert sum(ours.decode_chunks(n)) == n and 0 <= n - sum(ours.encode_chunks(n)) < 4
        assert moments(ours, random_clip(n, 4, 4)).shape[2] == ours.latents_of(n)
        assert through(ours.encode_chunk, random_clip(n, 4, 4), ours.encode_chunks(n)) == ours.latents_of(n)
        assert through(ours.decode_chunk, random_latents(n, 1, 1), ours.decode_chunks(n)) == ours.frames_of(n)


@torch.inference_mode()
def test_chunks_have_a_latent_at_least() -> None:
    """diffusers has no clips for a network that halves time three times."""
    _, ours = clip_twins(WAN, temperal_downsample=(True, True, True))
    assert ours.encode_chunks(20) == [1, 8, 8]
    assert moments(ours, random_clip(20, 8, 8)).shape[2] == ours.latents_of(20) == 3
    assert ours.decode(random_latents(3, 1, 1)).sample.shape[2] == ours.frames_of(3) == 17


def through(network: Any, clip: torch.Tensor, chunks: list[int]) -> int:
    """How many frames the chunks become."""
    carry, count = Carry(), 0
    for i, part in enumerate(clip[:, :, : sum(chunks)].split(chunks, dim=2)):
        carry = Carry(carry.after)
        count += network(Whole(part, carry=carry), i == 0).shape[2]
    return count


def test_counts_of_published_clips() -> None:
    with torch.device("meta"):
        net = vae_core.AutoencoderKLWan()
    assert isinstance(net, ClipModel) and net.clip
    assert (net.latents_of(81), net.frames_of(21)) == (21, 81)
    assert net.encode_chunks(12) == [1, 4, 4] and net.decode_chunks(3) == [1, 1, 1]
    assert net.latents_of(1) == net.frames_of(1) == 1


# --- overlap and blend ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("name", ["wan", "qwen, RGBA"])
@torch.inference_mode()
def test_tiled_equals_diffusers(name: str, tiles: tuple[int, ...]) -> None:
    theirs, ours = twins(name)
    for model in (theirs, ours):
        model.enable_tiling(*tiles)
    x, z = random_clip(5, 44, 60, channels=ours.pixel_channels), random_latents(2, 5, 7)
    made = ours.tiled_encode(x)
    expected = theirs.tiled_encode(x)
    assert made.shape == expected.shape == (1, 8, 2, 5, 7)
    assert relative_error(made, expected) <= LITERAL
    (pixels,) = ours.tiled_decode(z, return_dict=False)
    assert pixels.shape[-3:] == (5, 40, 56)
    assert relative_error(pixels, theirs.tiled_decode(z).sample) <= LITERAL


@pytest.mark.parametrize(("name", "clamped"), [("wan", True), ("qwen", False)])
@torch.inference_mode()
def test_only_wan_clamps_tiles(name: str, clamped: bool) -> None:
    theirs, ours = twins(name)
    for model in (theirs, ours):
        model.enable_tiling(*TILES[1])
        model.decoder.conv_out.weight.mul_(10)
    z = random_latents(1, 4, 5)
    made = ours.decode(z).sample
    assert (float(made.abs().amax()) == 1) == clamped
    assert relative_error(made, theirs.decode(z).sample) <= LITERAL


@torch.inference_mode()
def test_when_tiles_are_used() -> None:
    _, ours = twins("wan")
    tiled = {}
    for h, w in ((32, 48), (40, 48), (32, 56)):
        x, z = random_clip(1, h, w), random_latents(1, h // 8, w // 8)
        ours.disable_tiling()
        plain = moments(ours, x), ours.decode(z).sample
        ours.enable_tiling(32, 48, 24, 40)
        made = moments(ours, x), ours.decode(z).sample
        tiled[h, w] = tuple(not torch.equal(a, b) for a, b in zip(made, plain, strict=True))
        if any(tiled[h, w]):
            assert torch.equal(made[0], ours.tiled_encode(x)) and torch.equal(made[1], ours.tiled_decode(z).sample)
    assert tiled == {(32, 48): (False, False), (40, 48): (True, True), (32, 56): (True, True)}


@pytest.mark.parametrize("name", ["wan", "qwen"])
def test_enable_tiling_keeps_what_it_is_not_given(name: str) -> None:
    names = [f"tile_sample_{name}" for name in ("min_height", "min_width", "stride_height", "stride_width")]
    theirs, ours = twins(name)
    for arguments in ({}, {names[0]: 320}, {names[1]: 128, names[0]: 0}, {names[2]: 256}, {names[3]: 96}):
        for model in (theirs, ours):
            model.enable_tiling(**arguments)
        assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]


@torch.inference_mode()
def test_blend_of_square_tiles() -> None:
    """What `vae_core.VAE` calls for mode="blend"."""
    _, ours = twins("wan")
    ours.enable_tiling(32, 32, 24, 24)
    x, z = random_clip(5, 40, 48), random_latents(2, 5, 6)
    seen: list[tuple[int, int]] = []
    pixels = ours.blend_decode(z, 32, 4, lambda done, tiles: seen.append((done, tiles)))
    assert torch.equal(pixels.clamp(-1, 1), ours.tiled_decode(z).sample)
    assert seen == [(i + 1, 4) for i in range(4)]
    assert torch.equal(ours.blend_encode(x, 32, 4, overlap=0.25), ours.tiled_encode(x))


def test_tiles_that_do_not_advance_are_refused() -> None:
    _, ours = twins("wan")
    ours.enable_tiling(32, 32, 4, 4)
    with pytest.raises(vae_core.InputError, match="the next begins where the last one did"):
        ours.tiled_decode(random_latents(1, 3, 3))


# --- configuration and errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [WAN, QWEN])
def test_the_configuration_is_that_of_diffusers(network: str) -> None:
    with torch.device("meta"):
        ours, theirs = getattr(vae_core, network)().config, getattr(diffusers, network)().config
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in theirs.items() if not k.startswith("_")}
    assert {k: v for k, v in dict(ours).items() if k != "clip_output"} == expected


def test_published_fields_are_accepted() -> None:
    with torch.device("meta"):
        net = vae_core.AutoencoderKLWan(
            attn_scales=[], dropout=0.0, is_residual=False, patch_size=None, scale_factor_temporal=4, clip_output=True
        )
        picture = vae_core.AutoencoderKLQwenImage(input_channels=4)
    assert net.config.attn_scales == () and net.spatial_compression_ratio == 8
    assert picture.pixel_channels == 4
    with pytest.raises(vae_core.InputError, match="has no field 'decoder_base_dim'"):
        vae_core.AutoencoderKLQwenImage(decoder_base_dim=96)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"is_residual": True}, "belong to the network of Wan 2.2, which this version does not have"),
        ({"patch_size": 2, "z_dim": 48, "clip_output": False}, "belong to the network of Wan 2.2"),
        ({"attn_scales": (0.5,)}, "attn_scales must be empty"),
        ({"dropout": 0.1}, "dropout 0"),
    ],
)
def test_configurations_that_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(vae_core.ConfigError, match=words):
        vae_core.AutoencoderKLWan(**fields)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 4, 5, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 16, 7), (16,)])
def test_pixels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    _, ours = twins("wan")
    for encode in (ours.encode, ours.tiled_encode):
        with pytest.raises(vae_core.InputError) as caught:
            encode(torch.zeros(shape))
        assert str(caught.value) == (
            "AutoencoderKLWan encodes pixels `b c t h w` of 3 channels in floating point, at least one frame of 8×8; "
            f"got {shape} in float32"
        )


@pytest.mark.parametrize("shape", [(4, 2, 2), (1, 16, 3, 2, 2), (1, 4, 0, 2, 2), (1, 4, 1, 0, 2)])
def test_latents_that_do_not_fit(shape: tuple[int, ...]) -> None:
    _, ours = twins("qwen")
    for decode in (ours.decode, ours.tiled_decode):
        with pytest.raises(vae_core.InputError, match=r"Qwen.* decodes latents `b z t h w` of 4 channels .*; got"):
            decode(torch.zeros(shape))
