"""vae_core.VAE: what it decodes, encodes and refuses, and the plans that it makes and keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_nets import relative_error
from tiny_vaes import DIRECTIONS, HOWS, an_input, run, seeded, some_latents, some_pixels, tiny_vae
from torch import Tensor

import vae_core
from benchmarks.meter import Meter

EQUAL = 1e-5
"""Relative, float32: whole and streamed, or one image and a batch."""


# --- modes ------------------------------------------------------------------------------------------------------------


@DIRECTIONS
def test_exact_is_the_network_whatever_the_tile(direction: str, x: tuple[int, ...]) -> None:
    vae: Any = tiny_vae()
    with torch.inference_mode():
        if direction == "decode":
            plain = vae.net.decode(an_input(x)).sample.clamp(-1, 1)
        else:
            plain = vae.net.encode(an_input(x)).latent_dist.mode()
    for how in ({}, {"mode": "whole"}, {"tile": 16}, {"tile": 7}, {"tile": 10_000}, {"memory_limit": "2GiB"}):
        assert relative_error(run(vae, direction, an_input(x), **how), plain) <= EQUAL, how


@torch.inference_mode()
def test_pixels_are_clamped() -> None:
    vae: Any = tiny_vae()
    vae.net.decoder.conv_out.weight.data *= 30
    z = some_latents(vae, 6, 7)
    assert vae.net.decode(z).sample.abs().max() > 1
    for how in ({}, {"tile": 16}, {"mode": "blend", "tile": 32}):
        pixels = vae.decode(z, **how)
        assert pixels.max() == 1 and pixels.min() == -1


@DIRECTIONS
def test_batches(direction: str, x: tuple[int, ...]) -> None:
    vae = tiny_vae()
    batch = an_input((3, *x[1:]))
    alone = torch.cat([run(vae, direction, one, mode="whole") for one in batch.split(1)])
    smallest = vae.plan(direction, width=112, height=72, batch=3).rungs[-1].device_bytes  # type: ignore[arg-type]
    for how in ({}, {"mode": "whole"}, {"tile": 16}, {"memory_limit": smallest}):
        assert relative_error(run(vae, direction, batch, **how), alone) <= EQUAL, how


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd", "taef1"])
@DIRECTIONS
def test_blend_is_approximate_and_of_the_right_size(name: str, direction: str, x: tuple[int, ...]) -> None:
    vae: Any = tiny_vae(name)
    channels = x[1] if direction == "encode" else vae.spec.latent_channels
    given = an_input((2, channels, *(2 * n for n in x[2:])))
    exact = run(vae, direction, given)
    for tile in (64, 128):
        blended = run(vae, direction, given, mode="blend", tile=tile)
        assert blended.shape == exact.shape
        assert 1e-4 < relative_error(blended, exact) < 1
    # Larger than the picture is not cut at all.
    assert relative_error(run(vae, direction, given, mode="blend"), exact) <= EQUAL


@torch.inference_mode()
def test_blend_is_tiled_decode() -> None:
    vae: Any = tiny_vae("flux1")
    vae.net.tile_sample_min_size, vae.net.tile_latent_min_size = 64, 8
    z, x = some_latents(vae, 17, 12), some_pixels(136, 96)
    assert torch.equal(vae.decode(z, mode="blend", tile=64), vae.net.tiled_decode(z).sample.clamp(-1, 1))
    assert torch.equal(vae.encode(x, mode="blend", tile=64), vae.net.tiled_encode(x).latent_dist.mode())


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
@pytest.mark.parametrize("tile", [16, 72, 104])
def test_blend_with_any_tile_has_the_right_size(name: str, tile: int) -> None:
    """The size that is asked for may not divide into latents and overlaps; the one that is taken must."""
    vae = tiny_vae(name)
    z, x = some_latents(vae, 21, 15), some_pixels(168, 120)
    exact = vae.decode(z), vae.encode(x)
    blended = vae.decode(z, mode="blend", tile=tile), vae.encode(x, mode="blend", tile=tile)
    for one, other in zip(blended, exact, strict=True):
        assert one.shape == other.shape
        assert one.isfinite().all()


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
@pytest.mark.parametrize("tile", [16, 64, 96, 100, 128, 192])
def test_blended_tiles_lie_where_their_pixels_are(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that only halves and doubles shows the scheme alone: tiles that lie a pixel beside their place would show."""
    vae = tiny_vae(name)
    x, z = torch.linspace(-1, 1, 320).expand(1, 3, 96, 320), some_latents(vae, 12, 40)
    monkeypatch.setattr(vae.net, "_literal_encode", lambda x: F.avg_pool2d(x, 8).repeat(1, 4, 1, 1)[:, :8])
    monkeypatch.setattr(vae.net, "_literal_decode", lambda z: F.interpolate(z[:, :3], scale_factor=8.0))
    made = vae.encode(x, mode="blend", tile=tile)
    assert torch.allclose(made, F.avg_pool2d(x, 8)[:, :1].expand_as(made), atol=1e-6)
    made = vae.decode(z, mode="blend", tile=tile)
    assert torch.allclose(made, F.interpolate(z[:, :3], scale_factor=8.0).clamp(-1, 1), atol=1e-6)


@DIRECTIONS
@pytest.mark.parametrize("how", [{}, {"tile": 32}, {"mode": "whole"}, {"mode": "blend", "tile": 64}], ids=str)
@pytest.mark.parametrize("name", ["sd1", "taesd"])
def test_results_have_the_dtype_of_the_network(
    name: str, how: dict[str, Any], direction: str, x: tuple[int, ...]
) -> None:
    vae = tiny_vae(name, torch.bfloat16)
    assert run(vae, direction, an_input(x).double(), **how).dtype == torch.bfloat16


def test_a_network_that_changed_is_planned_anew() -> None:
    """Another attention processor makes other passes."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    vae: Any = tiny_vae()
    z = some_latents(vae, 9, 14)
    expected = vae.decode(z)
    for change in (
        lambda: vae.net.set_attn_processor(AttnProcessor2_0()),
        vae.net.set_default_attn_processor,
        vae.net.fuse_qkv_projections,
        vae.net.unfuse_qkv_projections,
    ):
        change()
        assert relative_error(vae.decode(z), expected) <= EQUAL
        assert relative_error(vae.decode(z, tile=16), expected) <= EQUAL


def test_inputs_are_not_written() -> None:
    vae = tiny_vae("taesd")
    x, z = some_pixels(67, 69), some_latents(vae, 9, 8)
    kept = x.clone(), z.clone()
    for how in HOWS:
        vae.encode(x, **how)
        vae.decode(z, **how)
    assert torch.equal(x, kept[0]) and torch.equal(z, kept[1])


# --- what is refused --------------------------------------------------------------------------------------------------

BAD_LATENTS = {
    "rank": torch.zeros(4, 8, 8),
    "video": torch.zeros(1, 4, 2, 8, 8),
    "channels": torch.zeros(1, 16, 8, 8),
    "dtype": torch.zeros(1, 4, 8, 8, dtype=torch.uint8),
    "no picture": torch.zeros(0, 4, 8, 8),
    "no width": torch.zeros(1, 4, 8, 0),
}


@pytest.mark.parametrize("kind", BAD_LATENTS)
def test_latents_that_do_not_fit(kind: str) -> None:
    bad = BAD_LATENTS[kind]
    with pytest.raises(vae_core.InputError) as refusal:
        tiny_vae().decode(bad)
    text = str(refusal.value)
    assert "SDXL decodes latents `b z h w` of 4 channels in floating point" in text
    assert str(tuple(bad.shape)) in text and str(bad.dtype).removeprefix("torch.") in text


def test_latents_of_another_model_are_recognised() -> None:
    sixteen = "Stable Diffusion 3 and 3.5, FLUX.1, Wan 2.1, Qwen-Image, CogVideoX or HunyuanVideo"
    for channels, whose in ((16, sixteen), (12, "Mochi"), (128, "FLUX.2 or LTX-Video")):
        for frames in ((), (5,)):
            with pytest.raises(vae_core.InputError, match=rf"has {channels}, as latents of {whose}: load the VAE"):
                tiny_vae().decode(torch.zeros(1, channels, *frames, 8, 8))
    with pytest.raises(vae_core.InputError, match=r"as latents of Stable Diffusion 1.x, .* or "):
        tiny_vae("flux1").decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(vae_core.InputError) as unknown:
        tiny_vae().decode(torch.zeros(1, 7, 8, 8))
    assert "as latents of" not in str(unknown.value)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 64, 64),
        torch.zeros(1, 4, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.int64),
        torch.zeros(1, 3, 7, 64),
    ],
    ids=["rank", "channels", "dtype", "too small"],
)
def test_pixels_that_do_not_fit(bad: Tensor) -> None:
    with pytest.raises(vae_core.InputError, match=r"pixels"):
        tiny_vae().encode(bad)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"mode": "fast"}, "'fast'"),
        ({"tile": 0}, "tile 0"),
        ({"tile": -8}, "tile -8"),
        ({"memory_limit": "plenty"}, "'plenty'.*2GiB"),
        ({"memory_limit": "2 GiB or so"}, "not understood"),
        ({"memory_limit": ""}, "not understood"),
        ({"memory_limit": 0}, "more than zero"),
        ({"memory_limit": -1}, "more than zero"),
        ({"memory_limit": 1.5e9}, "1500000000"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
@DIRECTIONS
def test_options_that_make_no_sense(how: dict[str, Any], words: str, direction: str, x: tuple[int, ...]) -> None:
    with pytest.raises(vae_core.InputError, match=words):
        run(tiny_vae(), direction, an_input(x), **how)
    with pytest.raises(vae_core.InputError, match=words):
        tiny_vae().plan(direction, width=112, height=72, **how)  # type: ignore[arg-type]


def test_a_direction_that_does_not_exist() -> None:
    with pytest.raises(vae_core.InputError, match="'sideways'"):
        tiny_vae().plan("sideways", width=112, height=72)  # type: ignore[arg-type]


def test_an_unknown_fit() -> None:
    with pytest.raises(vae_core.InputError, match="'stretch'"):
        tiny_vae().encode(some_pixels(64, 64), fit="stretch")  # type: ignore[arg-type]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_limits_are_understood_as_bytes_and_as_text() -> None:
    vae = tiny_vae()
    for limit, count in ((3 << 30, 3 << 30), ("1GiB", 1 << 30), ("1.5 gb", 1_500_000_000), ("800M", 800 << 20)):
        assert vae.plan("decode", width=64, height=64, memory_limit=limit).limit_bytes == count


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd"])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_every_limit_is_kept(name: str, direction: str) -> None:
    """What lives while it runs, weights and input with it, is no more than planned, and the plan no more than the limit."""
    vae: Any = tiny_vae(name)
    shape = (3, 128, 160) if direction == "encode" else (vae.spec.latent_channels, 16, 20)
    given = an_input((2, *shape))
    expected = run(vae, direction, given)
    weights = sum(t.numel() * t.element_size() for t in (*vae.net.parameters(), *vae.net.buffers()))
    limit, taken = vae.last_report.plan.device_bytes, []
    while True:
        try:
            with Meter(vae.net) as meter:
                meter.see(given)
                made = run(vae, direction, given, memory_limit=limit)
        except vae_core.BudgetError as refused:
            assert "needs" in str(refused)
            break
        report = vae.last_report
        assert relative_error(made, expected) <= EQUAL
        assert meter.peak["cpu"] + weights <= report.plan.device_bytes <= limit, report.line()
        assert meter.peak["disk"] <= report.plan.disk_bytes
        taken.append(report.plan.rung)
        limit = int(limit * 0.75)
    assert len(taken) >= 5 and taken[0] == "whole" and "whole, image by image" in taken
    assert taken[-1] == "streamed, Fields in files"


def test_nothing_fits() -> None:
    vae = tiny_vae()
    with pytest.raises(vae_core.BudgetError) as refusal:
        vae.decode(some_latents(vae, 64, 64), memory_limit=100_000)
    assert "needs" in str(refusal.value) and "the limit is 97.66 KiB; raise it" in str(refusal.value)
    with pytest.raises(vae_core.BudgetError, match="smaller tile"):
        vae.decode(some_latents(vae, 64, 64), mode="blend", tile=256, memory_limit=1_000_000)


@DIRECTIONS
def test_plans(direction: str, x: tuple[int, ...]) -> None:
    vae: Any = tiny_vae()
    # On a CPU a batch that goes image by image asks for the memory of one.
    for batch, rung in ((1, "whole"), (3, "whole, image by image")):
        plan = vae.plan(direction, width=320, height=240, batch=batch, memory_limit="1GiB")
        assert plan.chosen in plan.rungs and plan.rung == rung and plan.tile is None and plan.exact
        assert plan == vae.plan(direction, width=320, height=240, batch=batch, memory_limit="1GiB")
        read = json.loads(json.dumps(plan.to_dict()))
        assert read["rung"] == rung and read["limit_bytes"] == 1 << 30 and len(read["rungs"]) == len(plan.rungs)
        assert f"→ {rung} " in plan.table() and len(plan.table().splitlines()) == len(plan.rungs) + 1
        lower = vae.plan(direction, width=320, height=240, batch=batch, memory_limit=plan.device_bytes // 4)
        assert not lower.rungs[0].fits and lower.device_bytes <= lower.limit_bytes == plan.device_bytes // 4
    blend = vae.plan(direction, width=640, height=480, mode="blend", tile=256)
    assert not blend.exact and blend.tile == (256, 256)
    assert json.loads(json.dumps(blend.to_dict()))["exact"] is False


def test_a_plan_is_of_the_size_that_is_run() -> None:
    """Sizes that are no multiple of the scale: encode crops, decode makes at least that many pixels."""
    vae = tiny_vae()
    crop = vae.plan("encode", width=71, height=64)
    assert crop.device_bytes == vae.plan("encode", width=64, height=64).device_bytes
    assert vae.plan(width=65, height=64).rungs == vae.plan(width=72, height=64).rungs


# --- posterior --------------------------------------------------------------------------------------------------------


def test_sample_and_mean() -> None:
    vae: Any = tiny_vae()
    x = some_pixels(48, 40, batch=2)
    with torch.inference_mode():
        posterior = vae.net.encode(x).latent_dist
    assert relative_error(vae.encode(x, mode="whole"), posterior.mode()) <= EQUAL
    drawn = vae.encode(x, mode="whole", sample=True, generator=seeded(4))
    assert relative_error(drawn, posterior.sample(seeded(4))) <= EQUAL
    assert relative_error(vae.encode(x, tile=16, sample=True, generator=seeded(4)), drawn) <= EQUAL
    assert not torch.equal(vae.encode(x, sample=True, generator=seeded(5)), drawn)
    assert not torch.equal(vae.encode(x, sample=True), vae.encode(x, sample=True))


# --- what is said of it -----------------------------------------------------------------------------------------------


def test_repr_and_spec() -> None:
    vae = tiny_vae()
    assert repr(vae) == "VAE(SDXL, float32 on cpu)"
    assert (vae.device.type, vae.dtype) == ("cpu", torch.float32)
    assert vae.spec.latent_channels == 4 and vae.spec.multiple == (8, 8)
    custom = vae_core.VAE.of(vae_core.AutoencoderKL(block_out_channels=(32, 64), latent_channels=6))
    assert custom.spec.multiple == (2, 2) and custom.spec.latent_channels == 6
    assert custom.decode(torch.zeros(1, 6, 4, 5)).shape == (1, 3, 8, 10)
