"""Clips through the command line: real video files, tiny causal VAEs with random weights."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_files import NTSC, clip_file, frames_of, in_npy, moving, stored
from clip_twins import random_latents
from PIL import Image
from safetensors.torch import save_file

import vae_core
from benchmarks.meter import Meter
from vae_core.cli.main import DONE
from vae_core.media import open_sink, open_source, read_image, read_latents
from vae_core.spec import COGVIDEOX, QWEN, WAN

av: Any = pytest.importorskip("av")


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "target"), [(WAN, "out.mp4"), (QWEN, "out.webm"), (COGVIDEOX, "out.gif")])
def test_a_padded_clip_comes_back_with_its_frames_its_size_and_its_rate(run, clip_vae, tmp_path, network, target):
    source = clip_file(tmp_path / "in.webm", frames=6, h=21, w=35)
    latents, out, vae = tmp_path / "z.safetensors", tmp_path / target, clip_vae(network)
    encoded = run("encode", source, "-o", latents, "--vae", vae, "--fit", "pad", "--json")
    assert encoded.status == DONE, encoded.err
    assert [encoded.json["files"][0][key] for key in ("frames", "height", "width")] == [6, 21, 35]
    file, loaded = read_latents(latents), vae_core.load(vae)
    assert (file.size, file.frames, file.fps) == ((21, 35), 6, NTSC)
    expected = loaded.encode(frames_of(source)[None], fit="pad")
    assert (file.tensor - expected).abs().max() < 1e-5
    decoded = run("decode", latents, "-o", out, "--vae", vae, "--json")
    assert decoded.status == DONE, decoded.err
    with open_source(out) as clip:
        padded = target.endswith(".mp4")  # h264 takes even sides only
        assert (clip.height, clip.width) == ((22, 36) if padded else (21, 35))
        assert clip.fps == (NTSC if not target.endswith(".gif") else clip.fps)
    assert frames_of(out).shape[1] == 6
    result = decoded.json["files"][0]
    assert (result["frames"], result["height"], result["width"]) == (6, clip.height, clip.width)
    assert result["fps"] == pytest.approx(float(NTSC)) and result["report"]["shape"] == [*file.tensor.shape]


def test_cropping_is_announced(run, wan, tmp_path):
    source = clip_file(tmp_path / "in.webm", frames=6, h=21, w=35)
    ran = run("encode", source, "-o", tmp_path / "z.safetensors", "--vae", wan)
    assert (
        ran.status == DONE
        and "cropped from 35×21 to 32×16 px" in ran.err
        and "the last frame is not encoded" in ran.err
    )
    file = read_latents(tmp_path / "z.safetensors")
    assert (file.tensor.shape, file.size, file.frames) == ((1, 4, 2, 2, 4), None, None)


@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_npy_holds_what_the_library_decodes(run, clip_vae, tmp_path, network):
    latents, vae = random_latents(5, 3, 5), clip_vae(network)
    out = tmp_path / "out.npy"
    assert run("decode", stored(tmp_path, latents), "-o", out, "--vae", vae).status == DONE
    expected = vae_core.load(vae).decode(latents)[0]
    assert in_npy(out).shape == expected.shape and (in_npy(out) - expected).abs().max() <= 1e-6


def test_normalized_latents_of_a_clip(run, clip_vae, tmp_path):
    vae = clip_vae(WAN, latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.5, 0.5, 2.0, 1.0))
    source = clip_file(tmp_path / "in.webp", frames=5)
    for name, options in {"raw": [], "scaled": ["--normalized"]}.items():
        path = tmp_path / f"{name}.safetensors"
        assert run("encode", source, "-o", path, "--vae", vae, *options).status == DONE
        assert run("decode", path, "-o", path.with_suffix(".npy"), "--vae", vae).status == DONE
    scaled, raw = (read_latents(tmp_path / f"{name}.safetensors").tensor for name in ("scaled", "raw"))
    assert (scaled - raw).abs().max() > 0.1
    assert (in_npy(tmp_path / "scaled.npy") - in_npy(tmp_path / "raw.npy")).abs().max() < 1e-4


def test_numpy_and_comfyui_latents_of_a_clip(run, wan, tmp_path):
    latents = random_latents(2, 2, 3)
    np.save(tmp_path / "a.npy", latents.numpy())
    save_file({"latent_tensor": latents, "latent_format_version_0": torch.tensor([])}, tmp_path / "b.latent")
    out = tmp_path / "out"
    ran = run("decode", tmp_path / "a.npy", tmp_path / "b.latent", "-o", out, "--format", "npy", "--vae", wan)
    assert ran.status == DONE, ran.err
    assert torch.equal(in_npy(out / "a.npy"), in_npy(out / "b.npy")) and in_npy(out / "a.npy").shape == (3, 5, 16, 24)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_is_one_clip_in_and_out(run, wan, tmp_path):
    with open_sink(f"{tmp_path / 'in'}/", fps=1) as sink:
        sink.write(moving(9))
    latents, out = tmp_path / "z.safetensors", tmp_path / "out"
    assert run("encode", tmp_path / "in", "-o", latents, "--vae", wan).status == DONE
    expected = vae_core.load(wan).encode(frames_of(tmp_path / "in")[None])
    assert (read_latents(latents).tensor - expected).abs().max() < 1e-5 and read_latents(latents).fps is None
    decoded = run("decode", latents, "-o", out, "--vae", wan, "--json")
    assert decoded.status == DONE, decoded.err
    assert sorted(path.name for path in out.iterdir()) == [f"{i:06}.png" for i in range(1, 10)]
    assert (decoded.json["files"][0]["frames"], decoded.json["files"][0]["fps"]) == (9, None)
    assert (frames_of(out) - vae_core.load(wan).decode(expected)[0]).abs().max() < 1.5 / 127.5


def test_a_picture_is_a_clip_of_one_frame(run, clip_vae, picture, tmp_path):
    latents, out, vae = tmp_path / "z.safetensors", tmp_path / "out.png", clip_vae(QWEN)
    assert run("encode", picture, "-o", latents, "--vae", vae, "--fit", "pad").status == DONE
    file = read_latents(latents)
    assert (file.tensor.shape, file.size, file.frames, file.fps) == ((1, 4, 1, 5, 6), (37, 45), None, None)
    assert run("decode", latents, "-o", out, "--vae", vae).status == DONE
    expected = vae_core.load(vae).decode(file.tensor, size=(37, 45))[:, :, 0]
    assert (read_image(out).pixels - expected).abs().max() < 1.5 / 127.5
    assert run("decode", latents, "-o", tmp_path / "many", "--vae", vae).status == DONE
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["z.png"]
    assert run("decode", latents, "-o", tmp_path / "one.mp4", "--vae", vae).status == DONE
    assert frames_of(tmp_path / "one.mp4").shape[1] == 1


def test_pixels_with_alpha_are_encoded_and_written(run, clip_vae, picture, tmp_path):
    vae = clip_vae(QWEN, input_channels=4)
    image = Image.open(picture)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "clear.png")
    latents = tmp_path / "z.safetensors"
    ran = run("encode", tmp_path / "clear.png", "-o", latents, "--vae", vae, "--fit", "pad", "--quiet")
    assert ran == (DONE, "", "")
    assert run("decode", latents, "-o", tmp_path / "out.png", "--vae", vae).status == DONE
    expected = vae_core.load(vae).decode(read_latents(latents).tensor, size=(37, 45))[0, :, 0]
    alpha = read_image(tmp_path / "out.png").alpha
    assert alpha is not None and (alpha * 2 - 1 - expected[3:]).abs().max() < 1.5 / 127.5
    assert (
        run("decode", stored(tmp_path, random_latents(2, 2, 2)), "-o", tmp_path / "a.webp", "--vae", vae).status == DONE
    )
    assert frames_of(tmp_path / "a.webp", alpha=True)[3].std() > 0


def test_a_batch_of_pictures_latents_is_a_clip_where_the_output_is_one(run, vae, vae_path, tmp_path):
    latents = random_latents(1, 3, 4, batch=1)[:, :, 0].repeat(5, 1, 1, 1) * torch.linspace(0.5, 1, 5).view(5, 1, 1, 1)
    source = stored(tmp_path, latents, fps=Fraction(12))
    for target in ("out.npy", "out.mp4"):
        ran = run("decode", source, "-o", tmp_path / target, "--vae", vae_path, "--json")
        assert ran.status == DONE and ran.json["files"][0]["frames"] == 5, ran.err
    assert (in_npy(tmp_path / "out.npy").transpose(0, 1) - vae.decode(latents)).abs().max() <= 1e-5
    with open_source(tmp_path / "out.mp4") as clip:
        assert (clip.frames, clip.fps) == (5, 12)
    assert run("decode", source, "-o", tmp_path / "out.png", "--vae", vae_path).status == DONE
    assert len(list(tmp_path.glob("out_*.png"))) == 5


# --- options ----------------------------------------------------------------------------------------------------------


def with_sound(path: Path, frames: int, fps: int) -> Path:
    """A clip of grey frames with a tone as long."""
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=fps), container.add_stream("aac", rate=48_000)
        video.width, video.height, video.pix_fmt, sound.layout = 32, 32, "yuv420p", "mono"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = np.sin(np.arange(48_000 * frames // fps) / 20).astype(np.float32)
        for at in range(0, len(wave), 1024):
            samples = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 48_000, at, Fraction(1, 48_000)
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    return path


def sound_of(path: Path) -> list[bytes]:
    """The packets of the first audio stream."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def test_sound_is_taken_along(run, wan, tmp_path):
    source = with_sound(tmp_path / "in.mp4", frames=9, fps=9)
    latents = tmp_path / "z.safetensors"
    assert run("encode", source, "-o", latents, "--vae", wan).status == DONE
    ran = run("decode", latents, "-o", tmp_path / "out.mp4", "--vae", wan, "--audio", source)
    assert ran.status == DONE, ran.err
    copied = sound_of(tmp_path / "out.mp4")
    assert len(copied) >= 47 and copied == sound_of(source)[: len(copied)]  # a second of 1024 samples
    ran = run("roundtrip", source, "-o", tmp_path / "again.mp4", "--vae", wan)
    assert ran.status == DONE and sound_of(tmp_path / "again.mp4") == copied, ran.err


def test_rate_codec_and_crf(run, wan, tmp_path):
    source = stored(tmp_path, random_latents(3, 3, 4), fps=Fraction(12))
    sizes = {}
    for crf in (10, 50):
        options = ["--codec", "av1", "--crf", crf, "--fps", "30000/1001"]
        ran = run("decode", source, "-o", tmp_path / f"{crf}.webm", "--vae", wan, *options)
        assert ran.status == DONE, ran.err
        sizes[crf] = (tmp_path / f"{crf}.webm").stat().st_size
        with av.open(str(tmp_path / f"{crf}.webm")) as container:
            assert container.streams.video[0].codec_context.name in ("libdav1d", "av1", "libaom-av1")
            assert container.streams.video[0].average_rate == NTSC
    assert sizes[10] > 1.5 * sizes[50]
    unknown = stored(tmp_path, random_latents(2, 2, 2), "unknown.safetensors")
    ran = run("decode", unknown, "-o", tmp_path / "out.mp4", "--vae", wan)
    assert ran.status == DONE and "16 are taken" in ran.err
    with open_source(tmp_path / "out.mp4") as clip:
        assert clip.fps == 16


def test_clips_of_a_batch_are_numbered(run, wan, tmp_path):
    source = stored(tmp_path, random_latents(2, 2, 3, batch=2))
    assert run("decode", source, "-o", tmp_path / "out.npy", "--vae", wan).status == DONE
    expected = vae_core.load(wan).decode(random_latents(2, 2, 3, batch=2))
    for i in range(2):
        assert (in_npy(tmp_path / f"out_{i + 1}.npy") - expected[i]).abs().max() <= 1e-6


def test_several_clips_into_folders(run, wan, tmp_path):
    inputs = [stored(tmp_path, random_latents(2, 2, 2), name) for name in ("a.safetensors", "b.safetensors")]
    still = stored(tmp_path, random_latents(1, 2, 2), "still.safetensors")
    assert run("decode", *inputs, still, "-o", tmp_path / "out", "--vae", wan, "--resume", "--fps", 8).status == DONE
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "still.png"]
    assert [len(list((tmp_path / "out" / name).iterdir())) for name in "ab"] == [5, 5]
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.webm"):
        clip_file(videos / name, frames=5)
    assert run("encode", videos, "-o", tmp_path / "z", "--vae", wan).status == DONE
    assert sorted(path.name for path in (tmp_path / "z").iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_roundtrip_tells_the_psnr_of_all_frames(run, clip_vae, tmp_path, network):
    source, out = clip_file(tmp_path / "in.webm", frames=7, h=21, w=35), tmp_path / "again.npy"
    ran = run("roundtrip", source, "-o", out, "--vae", clip_vae(network), "--json")
    assert ran.status == DONE, ran.err
    decoded, original = in_npy(out), frames_of(source)
    assert decoded.shape == original.shape == (3, 7, 21, 35)
    mse = (decoded.double() - original.double()).square().mean().item()
    assert ran.json["psnr_db"] == pytest.approx(10 * math.log10(4 / mse), abs=1e-4) and ran.json["frames"] == 7


def test_plan_and_inspect_know_clips(run, wan):
    size = ("--width", 64, "--height", 32, "--vae", wan)
    one, many = (run("plan", *size, "--frames", frames, "--json").json for frames in (1, 33))
    assert many["operations"] > 8 * one["operations"]
    assert "33 frames" in run("plan", *size, "--frames", 33).out
    told, parsed = run("inspect", wan), run("inspect", wan, "--json")
    assert "1 latent per 4 frames after the first" in told.out and "8×8 px" in told.out
    assert parsed.json["latent"]["frames"] == 4


# --- counts that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [4, 11, 30])
@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_a_file_that_counts_its_frames_wrongly_is_read_to_its_end(run, clip_vae, tmp_path, network, announced):
    source = tmp_path / "in.avi"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(11):
            levels = np.full((32, 32, 3), 20 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(source.read_bytes())
    at = data.index(b"strh") + 40  # dwLength of AVISTREAMHEADER
    assert int.from_bytes(data[at : at + 4], "little") == 11
    data[at : at + 4] = announced.to_bytes(4, "little")
    source.write_bytes(data)
    with open_source(source) as clip:
        assert clip.frames == announced
    ran = run("encode", source, "-o", tmp_path / "z.safetensors", "--vae", clip_vae(network), "--fit", "pad")
    assert ran.status == DONE, ran.err
    expected = vae_core.load(clip_vae(network)).encode(frames_of(source)[None], fit="pad")
    file = read_latents(tmp_path / "z.safetensors")
    assert file.frames == 11 and (file.tensor - expected).abs().max() < 1e-5


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_clip(run, wan, tmp_path):
    peaks = {}
    for count in (9, 33):
        source = stored(tmp_path, random_latents(count, 6, 6), f"{count}.safetensors")
        with Meter() as meter:
            ran = run("decode", source, "-o", tmp_path / f"{count}.npy", "--vae", wan)
        assert ran.status == DONE, ran.err
        assert np.load(tmp_path / f"{count}.npy", mmap_mode="r").shape == (4 * count - 3, 48, 48, 3)
        peaks[count] = meter.peak["cpu"]
    assert peaks[33] <= 1.02 * peaks[9], peaks
    clip_bytes = (129 - 33) * 48 * 48 * 3 * 4
    assert clip_bytes > 0.2 * peaks[9], "what held the clip would be found out"


def test_memory_of_encoding_does_not_grow_with_the_clip(run, wan, tmp_path):
    peaks = {}
    for frames in (17, 65):
        source = clip_file(tmp_path / f"{frames}.webp", frames, h=48, w=48)
        with Meter() as meter:
            ran = run("encode", source, "-o", tmp_path / f"{frames}.safetensors", "--vae", wan)
        assert ran.status == DONE, ran.err
        peaks[frames] = meter.peak["cpu"]
    assert peaks[65] <= 1.02 * peaks[17], peaks
