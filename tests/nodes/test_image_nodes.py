"""The nodes that decode and encode, as plain classes around real networks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from einops import rearrange
from tiny_nets import relative_error
from torch import Tensor

from vae_core.checkpoint import save_taesd_pair
from vae_core.models import AutoencoderTiny

EQUAL = 1e-5
"""Relative, float32: the same operations in another order."""


def latents(channels: int = 4, h: int = 9, w: int = 7, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, h, w, generator=torch.Generator().manual_seed(0))


def picture(h: int = 45, w: int = 61, batch: int = 1, channels: int = 3) -> Tensor:
    return torch.rand(batch, h, w, channels, generator=torch.Generator().manual_seed(1))


def decode(exact: Any, vae: Any, latent: dict[str, Any], node: str = "ExactVAEDecode", **inputs: Any) -> Tensor:
    return exact.node(node).decode(latent, vae, **inputs)["result"][0]


def encode(exact: Any, vae: Any, image: Tensor, node: str = "ExactVAEEncode", **inputs: Any) -> dict[str, Any]:
    return exact.node(node).encode(image, vae, **inputs)["result"][0]


def plainly_decoded(vae: Any, raw: Tensor) -> Tensor:
    """The network's own decode of raw latents, as IMAGE."""
    with torch.no_grad():
        return vae.first_stage_model.decode(raw).clamp(-1, 1).add(1).div(2).movedim(1, -1)


def told(output: dict[str, Any]) -> dict[str, Any]:
    """What the panel is sent; it must be plain values in a list."""
    (summary,) = json.loads(json.dumps(output["ui"]["exact_vae"]))
    return summary


@pytest.mark.parametrize("batch", [1, 3])
def test_decode_is_the_networks_own(exact, sdxl, batch):
    z = latents(batch=batch)
    image = decode(exact, sdxl, {"samples": z})
    assert image.shape == (batch, 72, 56, 3) and image.dtype == torch.float32
    assert relative_error(image, plainly_decoded(sdxl, z)) < EQUAL


@pytest.mark.parametrize("size", [64, 128])
def test_tiles_change_nothing(exact, sdxl, size):
    z = latents(h=20, w=17)
    whole = decode(exact, sdxl, {"samples": z})
    assert relative_error(decode(exact, sdxl, {"samples": z}, "ExactVAEDecodeTiled", tile_size=size), whole) < EQUAL
    image = picture(h=136, w=152)
    whole = encode(exact, sdxl, image)["samples"]
    tiled = encode(exact, sdxl, image, "ExactVAEEncodeTiled", tile_size=size)["samples"]
    assert relative_error(tiled, whole) < EQUAL


def test_a_memory_limit_changes_nothing_but_the_rung(exact, sdxl):
    z = latents(h=32, w=32)
    node = exact.node("ExactVAEDecode")
    free, tight = node.decode({"samples": z}, sdxl), node.decode({"samples": z}, sdxl, memory_limit="9MiB")
    assert relative_error(tight["result"][0], free["result"][0]) < EQUAL
    assert told(free)["rung"] == "whole" and told(free)["exact"]
    assert told(tight)["rung"] != "whole" and told(tight)["exact"] and told(tight)["tiles"]
    assert told(tight)["device_bytes"] <= told(tight)["limit_bytes"] == 9 * 2**20


def test_blend_is_approximate_and_says_so(exact, sdxl):
    z = latents(h=24, w=24)
    node = exact.node("ExactVAEDecodeTiled")
    blended = node.decode({"samples": z}, sdxl, tile_size=64, method="blend", overlap=16)
    assert not told(blended)["exact"] and told(blended)["rung"] == "blend"
    assert blended["result"][0].shape == (1, 192, 192, 3)
    wider = node.decode({"samples": z}, sdxl, tile_size=64, method="blend", overlap=32)["result"][0]
    assert not torch.equal(blended["result"][0], wider), "the overlap makes a difference"


def test_an_overlap_as_wide_as_the_tiles_is_refused(exact, sdxl):
    with pytest.raises(ValueError, match="an overlap of 64 pixels needs larger tiles than 64"):
        decode(exact, sdxl, {"samples": latents()}, "ExactVAEDecodeTiled", tile_size=64, method="blend", overlap=64)


def test_padding_loses_no_pixel(exact, sdxl):
    image = picture()
    latent = encode(exact, sdxl, image, fit="pad")
    assert latent["samples"].shape == (1, 4, 6, 8) and latent["exact_vae_size"] == (45, 61)
    assert decode(exact, sdxl, latent).shape == image.shape
    whole = plainly_decoded(sdxl, latent["samples"])
    assert relative_error(decode(exact, sdxl, latent), whole[:, :45, :61]) < EQUAL


def test_a_noted_size_is_forgotten_when_the_latents_have_another(exact, sdxl):
    latent = encode(exact, sdxl, picture(), fit="pad")
    latent["samples"] = latent["samples"].repeat(1, 1, 2, 2)
    assert decode(exact, sdxl, latent).shape == (1, 96, 128, 3)


def test_cropping_is_about_the_centre_as_comfyui_does(exact, sdxl):
    image = picture()
    cut = image[:, 2:42, 2:58]
    cropped = encode(exact, sdxl, image)
    assert set(cropped) == {"samples"} and cropped["samples"].shape == (1, 4, 5, 7)
    assert torch.equal(cropped["samples"], encode(exact, sdxl, cut)["samples"])


def test_alpha_is_left_out_and_grey_becomes_colour(exact, sdxl):
    image = picture(40, 48)
    with_alpha = torch.cat([image, torch.rand(1, 40, 48, 1)], dim=-1)
    output = exact.node("ExactVAEEncode").encode(with_alpha, sdxl)
    assert relative_error(output["result"][0]["samples"], encode(exact, sdxl, image)["samples"]) < EQUAL
    assert told(output)["notes"] == ["the alpha channel is left out"]
    grey = picture(40, 48, channels=1)
    coloured = encode(exact, sdxl, grey.repeat(1, 1, 1, 3))["samples"]
    assert relative_error(encode(exact, sdxl, grey)["samples"], coloured) < EQUAL


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_mask_goes_with_the_picture(exact, sdxl, fit):
    mask = torch.zeros(1, 45, 61)
    mask[:, 10:20, 30:40] = 1
    latent = encode(exact, sdxl, picture(), fit=fit, mask=mask)
    h, w = (n * 8 for n in latent["samples"].shape[-2:])
    assert latent["noise_mask"].shape == (1, 1, h, w)
    top, left = (2, 2) if fit == "crop" else (0, 0)
    assert torch.equal(latent["noise_mask"][0, 0, 10 - top : 20 - top, 30 - left : 40 - left], torch.ones(10, 10))
    assert latent["noise_mask"].sum() == 100


def test_a_mask_of_another_size_is_resized(exact, sdxl):
    latent = encode(exact, sdxl, picture(), mask=torch.ones(64, 64))
    assert latent["noise_mask"].shape == (1, 1, 40, 56) and torch.allclose(latent["noise_mask"], torch.ones(()))


def test_what_others_put_into_a_latent_is_no_trouble(exact, sdxl):
    z = latents()
    extra = {"samples": z, "noise_mask": torch.ones(1, 1, 72, 56), "batch_index": [3], "downscale_ratio_spacial": 8}
    assert torch.equal(decode(exact, sdxl, extra), decode(exact, sdxl, {"samples": z}))
    assert set(extra) == {"samples", "noise_mask", "batch_index", "downscale_ratio_spacial"}


def test_of_a_video_the_first_frame_is_decoded(exact, sdxl):
    z = latents()
    video = torch.stack([z, z + 1, z - 1], dim=2)
    output = exact.node("ExactVAEDecode").decode({"samples": video}, sdxl)
    assert torch.equal(output["result"][0], decode(exact, sdxl, {"samples": z}))
    assert "a video of 3 latent frames" in told(output)["notes"][0]


def test_of_nested_latents_the_first_is_decoded(exact, sdxl):
    class Nested:
        is_nested = True

        def unbind(self) -> list[Tensor]:
            return [latents(), torch.zeros(1, 8, 16)]

    assert torch.equal(decode(exact, sdxl, {"samples": Nested()}), decode(exact, sdxl, {"samples": latents()}))


def test_latents_of_another_model_get_a_sentence(exact, sdxl):
    for shape in ((1, 16, 8, 8), (1, 16, 5, 8, 8)):
        with pytest.raises(ValueError, match=r"of 4 channels .* has 16, as latents of .*FLUX.1, Wan 2.1"):
            decode(exact, sdxl, {"samples": torch.zeros(shape)})


def test_flux2_latents_are_packed_and_normalised(exact, folders):
    vae = exact.vae(folders / "flux2")
    image = picture(64, 96)
    latent = encode(exact, vae, image)
    assert latent["samples"].shape == (1, 32, 4, 6) and vae.latent_channels == 32
    with vae.hosted.bound() as bound:
        raw = bound.denormalize(latent["samples"])
    assert relative_error(raw, vae.first_stage_model.encode(image.movedim(-1, 1) * 2 - 1)) < EQUAL
    assert relative_error(decode(exact, vae, latent), plainly_decoded(vae, raw)) < EQUAL


def test_the_tiny_vae_of_flux2_packs_its_latents(exact, tmp_path):
    torch.manual_seed(0)
    net = AutoencoderTiny(latent_channels=32, pool_mid_blocks=True)
    save_taesd_pair(tmp_path, dict(net.config), net.state_dict(), name="taef2")
    vae = exact.vae(tmp_path / "taef2_decoder.safetensors")
    latent = encode(exact, vae, picture(64, 96))
    assert latent["samples"].shape == (1, 128, 4, 6)
    raw = rearrange(latent["samples"], "b (c ph pw) h w -> b c (h ph) (w pw)", ph=2, pw=2)
    assert relative_error(decode(exact, vae, latent), plainly_decoded(vae, raw)) < EQUAL


def test_tiny_latents_are_those_of_the_big_vae(exact, taesd):
    image = picture(48, 64)
    latent = encode(exact, taesd, image)["samples"]
    # ComfyUI's wrapper: vae_scale 0.18215 and vae_shift 0 for TAESD.
    model_space = taesd.first_stage_model.encode(image.movedim(-1, 1) * 2 - 1)
    assert relative_error(latent, model_space / 0.18215) < EQUAL
    assert relative_error(decode(exact, taesd, {"samples": latent}), plainly_decoded(taesd, model_space)) < EQUAL


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", EQUAL), ("bf16", 3e-2)])
def test_precision_is_the_runs_own(exact, sdxl, precision, tolerance):
    # bfloat16 rounds to 8 bits in each of some thirty layers.
    z = latents()
    output = exact.node("ExactVAEDecode").decode({"samples": z}, sdxl, precision=precision)
    assert told(output)["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert relative_error(output["result"][0], plainly_decoded(sdxl, z)) < tolerance


def test_weights_are_converted_once(exact, sdxl):
    first = sdxl.hosted.converted(torch.bfloat16)
    decode(exact, sdxl, {"samples": latents()}, precision="bf16")
    assert sdxl.hosted.converted(torch.bfloat16) is first
    assert {p.dtype for p in sdxl.first_stage_model.parameters()} == {torch.float32}


def test_between_runs_the_network_holds_no_weights(exact, sdxl):
    decode(exact, sdxl, {"samples": latents()})
    with pytest.raises(ValueError):
        decode(exact, sdxl, {"samples": torch.zeros(1, 16, 8, 8)})
    assert {p.device.type for p in sdxl.hosted.vae.net.parameters()} == {"meta"}
    with sdxl.hosted.bound() as vae:
        mine = {p.data_ptr() for p in sdxl.first_stage_model.parameters()}
        assert {p.data_ptr() for p in vae.net.parameters()} == mine, "weights are shared, not copied"


def test_progress_that_raises_ends_the_run(exact, sdxl, monkeypatch):
    class Cancelled(Exception):
        pass

    calls: list[int] = []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    monkeypatch.setattr(exact.part("nodes.host"), "raise_if_interrupted", cancel)
    with pytest.raises(Cancelled):
        decode(exact, sdxl, {"samples": latents(h=32, w=32)}, memory_limit="9MiB")
    assert len(calls) == 3 and {p.device.type for p in sdxl.hosted.vae.net.parameters()} == {"meta"}
