"""VAEs of video models in the nodes, as plain classes around real networks; and the nodes that write and read video files."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from math import floor
from pathlib import Path
from typing import Any

import pytest
import random_checkpoints
import torch
from clip_twins import SMALL, clip_twins, random_latents
from tiny_nets import relative_error
from torch import Tensor, nn

from vae_core.checkpoint import save_diffusers
from vae_core.media import open_source
from vae_core.spec import COGVIDEOX, QWEN, WAN

EQUAL = 1e-5
"""Relative, float32: the same operations in another order."""

NETWORKS = [WAN, COGVIDEOX]


@pytest.fixture(scope="session")
def clip_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip_vaes")
    for network, fields in ((WAN, {}), (COGVIDEOX, {}), (QWEN, {"input_channels": 4})):
        _, net = clip_twins(network, **fields)
        save_diffusers(folder / network, network, SMALL[network] | fields, net.state_dict())
    return folder


@pytest.fixture(scope="session")
def vaes(exact: Any, clip_folders: Path) -> dict[str, Any]:
    return {network: exact.vae(clip_folders / network, dtype=torch.float32) for network in (WAN, COGVIDEOX, QWEN)}


@pytest.fixture
def wan(vaes: dict[str, Any]) -> Any:
    return vaes[WAN]


@pytest.fixture(autouse=True)
def temporary(exact: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that stands for ComfyUI's temporary one."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(exact.part("nodes.host"), "temporary_folder", lambda: folder)
    monkeypatch.setattr(exact.part("nodes.host"), "unfinished_folder", lambda: tmp_path / "unfinished")
    return folder


def clip(frames: int = 5, h: int = 32, w: int = 40, channels: int = 3) -> Tensor:
    """The frames of a clip, as IMAGE."""
    return torch.rand(frames, h, w, channels, generator=torch.Generator().manual_seed(1))


def decode(exact: Any, vae: Any, samples: Tensor, node: str = "ExactVAEDecode", **inputs: Any) -> Tensor:
    return exact.node(node).decode({"samples": samples}, vae, **inputs)["result"][0]


def encode(exact: Any, vae: Any, image: Tensor, **inputs: Any) -> dict[str, Any]:
    return exact.node("ExactVAEEncode").encode(image, vae, **inputs)["result"][0]


def film(exact: Any, vae: Any, latent: Tensor | dict[str, Any], **inputs: Any) -> dict[str, Any]:
    given = {"fps": 12.0, "format": "mp4 (h264)"} | inputs
    latent = latent if isinstance(latent, dict) else {"samples": latent}
    return exact.node("ExactVAEVideoDecode").decode(latent, vae, **given)


def plainly_decoded(vae: Any, latents: Tensor) -> Tensor:
    """The network's own decode, as IMAGE."""
    with torch.no_grad():
        return vae.first_stage_model.decode(latents).clamp(-1, 1).add(1).div(2).movedim(1, -1).flatten(0, -4)


def plainly_encoded(vae: Any, image: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.first_stage_model.encode(image.movedim(-1, 0)[None] * 2 - 1)


def told(output: dict[str, Any]) -> dict[str, Any]:
    """What the panel is sent; it must be plain values in a list."""
    (summary,) = json.loads(json.dumps(output["ui"]["exact_vae"]))
    return summary


def frames_in(path: str, count: int = 1000) -> Tensor:
    """As IMAGE."""
    with open_source(path) as source:
        frames = source.read(count)
    assert frames is not None
    return frames.movedim(0, -1).add(1).div(2)


# --- the VAE object -----------------------------------------------------------------------------------------------------


def test_it_measures_itself_as_comfyuis_own_does(wan):
    assert wan.latent_dim == 3 and not wan.not_video and wan.output_channels == 3
    assert wan.upscale_ratio[1:] == wan.downscale_ratio[1:] == (8, 8)
    assert wan.upscale_index_formula == wan.downscale_index_formula == (4, 8, 8)
    for n in (0, 1, 2, 5, 6, 81, 8192):
        assert wan.upscale_ratio[0](n) == max(0, n * 4 - 3)
        assert wan.downscale_ratio[0](n) == max(0, floor((n + 3) / 4))


def test_cogvideox_measures_itself_by_its_chunks(vaes):
    vae = vaes[COGVIDEOX]
    assert [vae.upscale_ratio[0](n) for n in (0, 1, 2, 3, 13)] == [0, 1, 8, 9, 49]
    assert round(vae.upscale_ratio[0](8192) / 8192) == 4 and vae.downscale_ratio[0](49) == 13


@pytest.mark.parametrize("network", NETWORKS)
def test_the_object_decodes_to_clips_and_encodes_one(vaes, network):
    vae, z = vaes[network], random_latents(3, 4, 5, batch=2)
    image = vae.decode(z)
    assert image.shape == (2, 9, 32, 40, 3)
    assert relative_error(image.flatten(0, 1), plainly_decoded(vae, z)) < EQUAL
    assert relative_error(vae.decode_tiled(z, tile_x=4, tile_y=4, overlap=0, tile_t=2, overlap_t=1), image) < EQUAL
    samples = vae.encode(image[0])
    assert samples.shape == (1, 4, 3, 4, 5) and torch.equal(vae.encode(image)[:1], samples)
    assert relative_error(samples, plainly_encoded(vae, image[0])) < EQUAL
    assert relative_error(vae.encode_tiled(image[0], tile_x=16, tile_y=16, overlap=0, tile_t=8), samples) < EQUAL


def test_pictures_are_not_a_video_where_that_is_said(wan):
    assert wan.encode(clip(3), not_video=True).shape == (3, 4, 1, 4, 5)


def test_what_a_run_takes_is_told_of_clips(wan):
    short, long = (wan.memory_used_decode((1, 4, n, 32, 32), torch.float32) for n in (1, 5))
    assert 0 < short < long
    assert wan.memory_used_encode((1, 3, 5, 64, 64), torch.float32) > 0


# --- the nodes for pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_clip_is_decoded_to_its_frames(exact, vaes, network):
    z = random_latents(3, 4, 5)
    output = exact.node("ExactVAEDecode").decode({"samples": z}, vaes[network])
    assert output["result"][0].shape == (9, 32, 40, 3)
    assert relative_error(output["result"][0], plainly_decoded(vaes[network], z)) < EQUAL
    assert told(output)["frames"] == 9 and told(output)["images"] == 1 and told(output)["exact"]


def test_a_memory_limit_and_tiles_change_nothing(exact, wan):
    z = random_latents(3, 12, 10)
    whole = decode(exact, wan, z)
    tight = exact.node("ExactVAEDecode").decode({"samples": z}, wan, memory_limit="8MiB")
    assert told(tight)["tiles"] and told(tight)["device_bytes"] <= told(tight)["limit_bytes"] == 8 * 2**20
    assert relative_error(tight["result"][0], whole) < EQUAL
    assert relative_error(decode(exact, wan, z, "ExactVAEDecodeTiled", tile_size=64), whole) < EQUAL
    blended = decode(exact, wan, z, "ExactVAEDecodeTiled", tile_size=64, method="blend", overlap=16)
    assert blended.shape == whole.shape and not torch.equal(blended, whole)


def test_latents_of_pictures_are_clips_of_one_frame(exact, wan):
    z = random_latents(2, 4, 5)[0].movedim(1, 0)
    output = exact.node("ExactVAEDecode").decode({"samples": z}, wan)
    assert relative_error(output["result"][0], plainly_decoded(wan, z.unsqueeze(2))) < EQUAL
    assert told(output)["notes"] == ["2 pictures, each decoded as a clip of one frame"]


def test_a_batch_of_pictures_is_encoded_as_one_clip(exact, wan):
    image = clip(6, 35, 45)
    output = exact.node("ExactVAEEncode").encode(image, wan)
    latent = output["result"][0]
    assert latent["samples"].shape == (1, 4, 2, 4, 5) and latent.keys() == {"samples"}
    assert relative_error(latent["samples"], plainly_encoded(wan, image[:5, 1:33, 2:42])) < EQUAL
    assert (
        told(output)["notes"] == ["cropped from 45×35 to 40×32"]
        and "the last frame is not encoded" in told(output)["events"][0]
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_padding_gives_frames_and_size_back(exact, vaes, network):
    image = clip(6, 35, 45)
    output = exact.node("ExactVAEEncode").encode(image, vaes[network], fit="pad")
    latent, frames = output["result"][0], {WAN: 9, COGVIDEOX: 8}[network]
    assert (latent["exact_vae_size"], latent["exact_vae_frames"]) == ((35, 45), 6)
    assert told(output)["notes"] == ["padded from 45×35 to 48×40", f"padded from 6 to {frames} frames"]
    again = exact.node("ExactVAEDecode").decode(latent, vaes[network])["result"][0]
    assert again.shape == image.shape
    whole = decode(exact, vaes[network], latent["samples"])
    assert torch.equal(again, whole[:6, :35, :45]) and len(whole) == frames
    longer = {**latent, "samples": latent["samples"].repeat(1, 1, 2, 1, 1)}
    assert len(exact.node("ExactVAEDecode").decode(longer, vaes[network])["result"][0]) > frames


def test_alpha_goes_through_a_vae_that_has_it(exact, vaes):
    vae, image = vaes[QWEN], clip(1)
    opaque = torch.cat([image, torch.ones(1, 32, 40, 1)], dim=-1)
    assert torch.equal(encode(exact, vae, image)["samples"], encode(exact, vae, opaque)["samples"])
    output = exact.node("ExactVAEEncode").encode(torch.cat([image, image[..., :1]], dim=-1), vae)
    assert told(output)["notes"] == [] and not torch.equal(
        output["result"][0]["samples"], encode(exact, vae, image)["samples"]
    )
    assert decode(exact, vae, output["result"][0]["samples"]).shape == (1, 32, 40, 4)


def test_latents_of_another_model_get_a_sentence(exact, wan):
    with pytest.raises(ValueError, match=r"of 4 channels .* has 48, as latents of Wan 2.2"):
        decode(exact, wan, torch.zeros(1, 48, 3, 4, 4))


def test_a_clip_is_planned_for(exact, wan):
    plans = [exact.node("ExactVAEPlan").plan(wan, 64, 64, frames=n) for n in (1, 9)]
    one, nine = (told(plan) for plan in plans)
    assert (one["frames"], nine["frames"]) == (1, 9)
    assert nine["rungs"][0]["operations"] > 2 * one["rungs"][0]["operations"]


def test_comfyuis_own_is_adopted(exact, tmp_path, monkeypatch):
    random_checkpoints.wan_vae(tmp_path / "wan.safetensors", width=2)
    ours = exact.vae(tmp_path / "wan.safetensors", dtype=torch.float32)

    class Weights(nn.Module):
        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            return ours.get_sd()

    class Core:
        patcher, first_stage_model = None, Weights()

        def throw_exception_if_invalid(self) -> None:
            pass

    assert "decoder.middle.0.residual.0.gamma" in Core.first_stage_model.state_dict()
    monkeypatch.setattr(exact.part("nodes.host"), "CoreVAE", Core)
    z = torch.randn(1, 16, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    output = exact.node("ExactVAEDecode").decode({"samples": z}, Core())
    assert told(output)["by"] == "exact" and relative_error(output["result"][0], decode(exact, ours, z)) < EQUAL


# --- latents → a video file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_clip_is_decoded_into_a_file(exact, vaes, temporary, network):
    z = random_latents(3, 4, 5)
    output = film(exact, vaes[network], z, crf=0)
    (file,) = temporary.iterdir()
    video, image = output["result"]
    assert video.get_stream_source() == str(file) and file.suffix == ".mp4" and image is None
    with open_source(file) as source:
        assert (source.width, source.height, source.frames, source.fps) == (40, 32, 9, 12)
    # yuv420p halves the resolution of the colours, of which noise has many: only the greys come back.
    grey, expected = (x.mean(-1) for x in (frames_in(str(file)), plainly_decoded(vaes[network], z)))
    assert (grey - expected).abs().mean() < 0.03
    summary = told(output)
    assert (summary["frames"], summary["images"], summary["exact"], summary["notes"]) == (9, 1, True, [])


def test_frames_are_given_as_images_where_that_is_asked_for(exact, wan, temporary):
    z = random_latents(3, 4, 5)
    video, image = film(exact, wan, z, outputs="both")["result"]
    assert torch.equal(image, decode(exact, wan, z)) and len(frames_in(video.get_stream_source())) == 9
    video, image = film(exact, wan, z, outputs="images")["result"]
    assert video is None and torch.equal(image, decode(exact, wan, z)) and len([*temporary.iterdir()]) == 1


@pytest.mark.parametrize("format", ["webm (vp9)", "mp4 (h265)", "webm (av1)"])
def test_other_formats(exact, wan, format):
    video, _ = film(exact, wan, random_latents(2, 8, 8), format=format)["result"]
    assert video.get_stream_source().endswith(f".{format[: format.index(' ')]}")
    assert frames_in(video.get_stream_source()).shape == (5, 64, 64, 3)


def test_a_padded_clip_comes_back_as_it_was(exact, wan):
    latent = encode(exact, wan, clip(6, 36, 46), fit="pad")
    video, _ = film(exact, wan, latent)["result"]
    assert frames_in(video.get_stream_source()).shape == (6, 36, 46, 3)


def test_an_odd_size_is_evened_out_and_said_so(exact, wan):
    latent = encode(exact, wan, clip(1, 35, 45), fit="pad")
    output = film(exact, wan, latent)
    assert frames_in(output["result"][0].get_stream_source()).shape == (1, 36, 46, 3)
    assert "h264 takes even sides only" in told(output)["notes"][0]


def test_pictures_latents_are_the_frames_of_a_clip(exact, sdxl, wan):
    z = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    output = film(exact, sdxl, z, outputs="both")
    video, image = output["result"]
    assert relative_error(image, decode(exact, sdxl, z)) < EQUAL and told(output)["frames"] == 3
    assert len(frames_in(video.get_stream_source())) == 3
    of_video = film(exact, sdxl, z.movedim(0, 1)[None], outputs="images")["result"][1]
    assert torch.equal(of_video, image)
    assert film(exact, wan, z, outputs="images")["result"][1].shape == (3, 64, 48, 3)


def test_clips_of_a_batch_follow_each_other(exact, wan):
    z = random_latents(2, 4, 5, batch=2)
    assert relative_error(film(exact, wan, z, outputs="images")["result"][1], plainly_decoded(wan, z)) < EQUAL


def test_transparency_needs_a_format_that_has_it(exact, vaes, temporary):
    z = random_latents(1, 8, 8)
    with pytest.raises(ValueError, match=r"holds no transparency; write a .webm \(vp9\)"):
        film(exact, vaes[QWEN], z)
    assert not [*temporary.iterdir()]
    video, _ = film(exact, vaes[QWEN], z, format="webm (vp9)")["result"]
    with open_source(video.get_stream_source(), alpha=True) as source:
        assert source.has_alpha


def test_a_crf_that_the_codec_has_not_is_refused_before_anything_runs(exact, wan):
    with pytest.raises(ValueError, match="the crf of h264 is from 0"):
        film(exact, wan, random_latents(1, 8, 8), crf=60)


def test_without_pyav_it_is_the_librarys_sentence(exact, wan, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Exception, match="video files need the package av"):
        film(exact, wan, random_latents(1, 8, 8))


def test_a_vae_that_comfyui_runs_itself_is_filmed_too(exact, monkeypatch):
    class Core:
        first_stage_model = nn.Linear(1, 1)

        def throw_exception_if_invalid(self) -> None:
            pass

        def decode(self, samples: Tensor) -> Tensor:
            return clip(5, 32, 32)[None]

    output = film(exact, Core(), torch.zeros(1, 128, 2, 1, 1))
    assert frames_in(output["result"][0].get_stream_source()).shape == (5, 32, 32, 3)
    assert told(output)["by"] == "comfyui" and told(output)["frames"] == 5


# --- progress, interrupts, and going on ---------------------------------------------------------------------------------


class Cancelled(Exception):
    pass


def cancel_when(exact: Any, monkeypatch: pytest.MonkeyPatch, there: Callable[[], object]) -> None:
    def cancel() -> None:
        if there():
            raise Cancelled

    monkeypatch.setattr(exact.part("nodes.host"), "raise_if_interrupted", cancel)


def test_progress_tells_the_frame_that_is_worked_on(exact, wan, monkeypatch):
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(exact.part("nodes.host"), "send", lambda event, data: said.append(dict(data)))
    monkeypatch.setattr(exact.part("nodes.watch"), "SECONDS_BETWEEN", 0.0)
    film(exact, wan, random_latents(3, 4, 5), unique_id="7")
    assert [*dict.fromkeys(event["frame"] for event in said)] == [1, 2, 6] and {e["frames"] for e in said} == {9}
    said.clear()
    exact.node("ExactVAEEncode").encode(clip(9), wan, unique_id="7")
    assert [*dict.fromkeys(event["frame"] for event in said)] == [1, 2, 6]


def test_an_interrupt_leaves_no_file(exact, wan, temporary, monkeypatch):
    cancel_when(exact, monkeypatch, lambda: [*temporary.glob(".*.mp4*")])
    with pytest.raises(Cancelled):
        film(exact, wan, random_latents(3, 4, 5), audio={"waveform": torch.zeros(1, 1, 8000), "sample_rate": 8000})
    assert not [*temporary.iterdir()]
    assert {p.device.type for p in wan.hosted.vae.net.parameters()} == {"meta"}, "and no weights in the network"


def test_a_long_clip_goes_on_where_it_was_interrupted(exact, wan, tmp_path, monkeypatch):
    monkeypatch.setattr(exact.part("nodes.resuming"), "MIN_LATENTS", 2)
    z = random_latents(4, 4, 5)
    expected = decode(exact, wan, z)
    with monkeypatch.context() as patched, pytest.raises(Cancelled):
        cancel_when(exact, patched, lambda: [*tmp_path.rglob("cache-000001*")])
        film(exact, wan, z)
    (folder,) = (tmp_path / "unfinished").iterdir()
    output = film(exact, wan, z, outputs="both")
    assert told(output)["events"] == [
        f"2 chunks had been decoded before the run was stopped; they were taken over from {tmp_path.name}/unfinished"
    ]
    assert torch.equal(output["result"][1], expected) and not folder.exists()


def test_a_clip_of_which_only_the_file_was_not_whole_is_written_anew(exact, wan, tmp_path, monkeypatch):
    monkeypatch.setattr(exact.part("nodes.resuming"), "MIN_LATENTS", 2)
    z = random_latents(4, 4, 5)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk is full"):
        patched.setattr(exact.part("nodes.filming"), "_made", full_disk)
        film(exact, wan, z)
    output = film(exact, wan, z, outputs="both")
    assert told(output)["rung"] == "finished before" and told(output)["exact"]
    assert torch.equal(output["result"][1], decode(exact, wan, z)) and not [*(tmp_path / "unfinished").iterdir()]


def full_disk(pieces: Iterator[Tensor], count: int, film: Any) -> None:
    for _ in pieces:
        pass
    raise OSError("the disk is full")


def test_short_clips_and_whoever_does_not_want_it_keep_nothing(exact, wan, tmp_path, monkeypatch):
    film(exact, wan, random_latents(1, 8, 8))
    monkeypatch.setattr(exact.part("nodes.resuming"), "MIN_LATENTS", 0)
    film(exact, wan, random_latents(1, 8, 8), resume=False)
    assert not (tmp_path / "unfinished").exists()


def test_the_preview_shows_the_newest_frame(exact, wan):
    watch, finished = exact.part("nodes.watch"), exact.part("vae_core.stream").Finished
    span = exact.part("vae_core.geometry").Span
    preview = watch.Preview(wan.hosted.vae, random_latents(3, 4, 5))
    chunk = torch.rand(1, 3, 4, 16, 40) * 2 - 1
    preview.paste(finished(1, (span(0, 4), span(16, 32), span(0, 40)), chunk))
    assert torch.equal(preview.canvas[:, 16:], chunk[0, :, -1]) and preview.canvas.shape == (3, 32, 40)


# --- a video → latents --------------------------------------------------------------------------------------------------


@pytest.fixture
def filmed(exact: Any, wan: Any) -> Any:
    """A VIDEO of 9 frames, with a second of sound."""
    seconds = torch.arange(48_000) / 48_000
    audio = {"waveform": torch.sin(seconds * 2 * torch.pi * 440)[None, None], "sample_rate": 48_000}
    return film(exact, wan, random_latents(3, 4, 5), audio=audio)["result"][0]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_video_file_is_encoded_as_its_frames_are(exact, vaes, filmed, network):
    output = exact.node("ExactVAEVideoEncode").encode(vaes[network], video=filmed)
    latent, fps, audio = output["result"]
    frames = frames_in(filmed.get_stream_source())
    assert relative_error(latent["samples"], encode(exact, vaes[network], frames)["samples"]) < EQUAL
    assert fps == 12 and told(output)["frames"] == 9 and told(output)["direction"] == "encode"
    assert audio["sample_rate"] == 48_000 and abs(audio["waveform"].shape[-1] / 48_000 - 9 / 12) < 0.1
    assert 0.6 < audio["waveform"].abs().max() <= 1.1


def test_images_are_encoded_as_the_frames_of_a_clip(exact, wan):
    latent, fps, audio = exact.node("ExactVAEVideoEncode").encode(wan, images=clip(6), fit="pad")["result"]
    assert latent["exact_vae_frames"] == 6 and fps is None and audio is None
    assert torch.equal(latent["samples"], encode(exact, wan, clip(6), fit="pad")["samples"])


def test_a_padded_video_goes_round(exact, wan):
    video, _ = film(exact, wan, encode(exact, wan, clip(6, 36, 46), fit="pad"))["result"]
    latent, *_ = exact.node("ExactVAEVideoEncode").encode(wan, video=video, fit="pad")["result"]
    assert (latent["exact_vae_size"], latent["exact_vae_frames"]) == ((36, 46), 6)
    assert decode(exact, wan, latent["samples"]).shape[0] == 9


def test_a_vae_for_pictures_encodes_each_frame(exact, sdxl, filmed):
    latent, *_ = exact.node("ExactVAEVideoEncode").encode(sdxl, video=filmed)["result"]
    frames = frames_in(filmed.get_stream_source())
    assert relative_error(latent["samples"], encode(exact, sdxl, frames)["samples"]) < EQUAL


def test_a_video_in_memory_is_read_from_there(exact, wan, filmed, temporary, monkeypatch):
    host, before = exact.part("nodes.host"), len([*temporary.iterdir()])
    content = io.BytesIO(Path(filmed.get_stream_source()).read_bytes())
    expected = exact.node("ExactVAEVideoEncode").encode(wan, video=filmed)["result"][0]["samples"]
    made = exact.node("ExactVAEVideoEncode").encode(wan, video=host.VideoFile(content))["result"][0]["samples"]
    assert torch.equal(made, expected) and len([*temporary.iterdir()]) == before


def test_a_video_of_components_is_taken_from_its_tensor(exact, wan):
    class Components:
        images, audio, frame_rate = clip(5), None, 24

    class Video:
        def get_components(self) -> Any:
            return Components()

    latent, fps, audio = exact.node("ExactVAEVideoEncode").encode(wan, video=Video())["result"]
    assert torch.equal(latent["samples"], encode(exact, wan, clip(5))["samples"]) and (fps, audio) == (24, None)


def test_either_images_or_a_video(exact, wan, filmed):
    node = exact.node("ExactVAEVideoEncode")
    for inputs in ({}, {"images": clip(1), "video": filmed}):
        with pytest.raises(ValueError, match="connect either images or a video"):
            node.encode(wan, **inputs)
