"""Clips through the facade: equal to diffusers and to themselves whatever the memory, bounded, and taken up where they stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_twins import clip_twins, random_clip, random_latents
from safetensors.torch import save_file
from tiny_nets import relative_error
from torch import Tensor

import vae_core
from benchmarks.meter import Meter
from vae_core.models import CLASSES
from vae_core.resume import FinishedChunks, forget, frames_kept
from vae_core.spec import COGVIDEOX, QWEN, VARIANTS, WAN
from vae_core.stream.homes import SCRATCH_VARIABLE

PARITY = 2e-5
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative: sums of some hundred products in another order."""

NETWORKS = (WAN, QWEN, COGVIDEOX)
ROOT = Path(__file__).resolve().parent.parent


def clip_vae(network: str, dtype: torch.dtype = torch.float32, **fields: Any) -> vae_core.VAE:
    return vae_core.VAE.of(clip_twins(network, dtype, **fields)[1])


def joined(chunks: Any) -> Tensor:
    return torch.cat([*chunks], dim=2)


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 33])
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_as_diffusers(network: str, frames: int) -> None:
    theirs, ours = clip_twins(network)
    vae, x = vae_core.VAE.of(ours), random_clip(frames, 24, 40)
    taken = ours.fitting(frames)
    latents = vae.encode(x)
    assert relative_error(latents, theirs.encode(x[:, :, :taken]).latent_dist.mode()) <= PARITY
    z = random_latents(vae.latents_of(taken), 3, 5, batch=2)
    assert relative_error(vae.decode(z), theirs.decode(z).sample.clamp(-1, 1)) <= PARITY


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("tile", [16, 40])
@pytest.mark.parametrize("h, w", [(3, 5), (5, 4)])
@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_tiles_change_nothing(network: str, h: int, w: int, tile: int, dtype: torch.dtype) -> None:
    vae = clip_vae(network, dtype)
    z, x = random_latents(4, h, w, dtype=dtype), random_clip(9, 8 * h + 3, 8 * w, dtype=dtype)
    assert relative_error(vae.decode(z, tile=tile), vae.decode(z, mode="whole")) <= EXACT[dtype]
    assert vae.last_report is not None and vae.last_report.plan.exact
    assert relative_error(vae.encode(x, tile=tile), vae.encode(x, mode="whole")) <= EXACT[dtype]


IN_FILES = {"streamed", "streamed, Fields in files"}


@pytest.mark.parametrize(
    "network, latents, rungs",
    [(WAN, 2, {"depth first in part"}), (WAN, 5, {"depth first in part"}), (COGVIDEOX, 5, IN_FILES)],
)
def test_any_memory_gives_the_same_clip(network: str, latents: int, rungs: set[str]) -> None:
    """From all there is down to what is refused: causal caches and Fields in files too."""
    vae, z = clip_vae(network), random_latents(latents, 6, 9)
    expected, seen, frames = vae.decode(z, mode="whole"), set(), vae.frames_of(latents)
    limit = vae.plan("decode", width=72, height=48, frames=frames, mode="whole").device_bytes
    with pytest.raises(vae_core.BudgetError, match="the limit is"):
        while True:
            made = vae.decode(z, memory_limit=limit)
            report = vae.last_report
            assert report is not None and report.plan.device_bytes <= limit
            assert relative_error(made, expected) <= EXACT[torch.float32]
            seen.add(report.plan.rung)
            limit = limit * 5 // 6
    assert rungs <= seen


@pytest.mark.parametrize("clips", [(9, 33), pytest.param((9, 33, 129), marks=pytest.mark.slow)])
@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_memory_does_not_grow_with_the_clip(
    network: str, direction: str, tile: int | None, clips: tuple[int, ...]
) -> None:
    """Live bytes at most, of clips of so many latents that are thrown away as they come."""
    vae, peaks = clip_vae(network), []
    for latents in clips:
        frames = vae.frames_of(latents)
        with Meter(vae.net) as meter:
            if direction == "decode":
                z = random_latents(1, 2, 4).expand(-1, -1, latents, -1, -1)
                for pixels in vae.decode_frames(z, tile=tile):
                    del pixels
            else:
                x = random_clip(1, 16, 32)[0]
                for z in vae.encode_frames((x for _ in range(frames)), count=frames, tile=tile):
                    del z
        peaks.append(meter.peak["cpu"])
    assert max(peaks) <= 1.02 * min(peaks)


@pytest.mark.parametrize("network", NETWORKS)
def test_frames_come_in_pieces_of_any_length(network: str) -> None:
    vae, x = clip_vae(network), random_clip(17, 21, 40)
    expected = vae.encode(x, fit="pad")
    for pieces in (1, 3, 17):
        made = joined(vae.encode_frames(x[0].split(pieces, dim=1), count=17, fit="pad"))
        assert torch.equal(made, expected)
    if network != COGVIDEOX:
        assert torch.equal(joined(vae.encode_frames(x[0].split(5, dim=1), fit="pad")), expected)


def test_cogvideox_must_know_how_many_frames_come() -> None:
    with pytest.raises(vae_core.InputError, match="must be told how many frames"):
        joined(clip_vae(COGVIDEOX).encode_frames(random_clip(9, 16, 16)))


@pytest.mark.parametrize(
    "network, frames, cropped, padded", [(WAN, 7, 5, 9), (COGVIDEOX, 13, 9, 16), (COGVIDEOX, 5, 1, 8)]
)
def test_frame_counts_that_do_not_fit(network: str, frames: int, cropped: int, padded: int) -> None:
    vae, x = clip_vae(network), random_clip(frames, 16, 16)
    assert torch.equal(vae.encode(x), vae.encode(x[:, :, :cropped]))
    vae.encode(x)
    assert vae.last_report is not None and f"the last {frames - cropped} frames are not" in vae.last_report.events[0]
    streamed = joined(vae.encode_frames(x[0].split(2, dim=1), count=frames))
    assert torch.equal(streamed, vae.encode(x[:, :, :cropped]))
    latents = vae.encode(x, fit="pad")
    assert latents.shape[2] == vae.latents_of(padded) and vae.last_report is not None and not vae.last_report.events
    assert vae.decode(latents, frames=frames).shape[2] == frames
    assert joined(vae.decode_frames(latents, frames=frames, size=(15, 13))).shape[2:] == (frames, 15, 13)


def test_fewer_frames_than_announced() -> None:
    vae = clip_vae(WAN)
    with pytest.raises(vae_core.InputError, match="at least 9 frames were announced, and 6 came"):
        joined(vae.encode_frames(random_clip(6, 16, 16)[0].split(1, dim=1), count=9))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda vae: vae.decode(torch.zeros(1, 4, 3, 3)), "decodes latents `b z t h w` of 4 channels"),
        (lambda vae: vae.encode(torch.zeros(1, 3, 32, 32)), "encodes pixels `b c t h w` of 3 channels"),
        (lambda vae: vae.decode_frames(torch.zeros(1, 4, 1, 3, 3), mode="blend"), "sees a clip as a whole"),
        (lambda vae: joined(vae.encode_frames([torch.zeros(3, 32, 32)])), "frames come as `c t h w`"),
        (lambda vae: joined(vae.encode_frames([])), "got none"),
    ],
)
def test_refusals(call: Any, said: str) -> None:
    with pytest.raises(vae_core.InputError, match=said):
        call(clip_vae(WAN))


def test_a_clip_in_the_space_of_its_diffusion_model() -> None:
    vae = vae_core.VAE.of(CLASSES[WAN](base_dim=8, num_res_blocks=1), VARIANTS["wan21"])
    z = torch.randn(2, 16, 3, 4, 5)
    mean, std = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (vae.spec.latents_mean, vae.spec.latents_std))
    assert torch.equal(vae.normalize(z), (z - mean) / std)
    assert relative_error(vae.denormalize(vae.normalize(z)), z) <= 1e-6


def test_a_batch_of_pictures_is_a_clip_for_an_image_vae() -> None:
    vae = vae_core.load_embedded()
    z = torch.randn(3, vae.spec.latent_channels, 4, 4)
    chunks = [*vae.decode_frames(z)]
    assert [c.shape for c in chunks] == [(1, 3, 1, *vae.decode(z).shape[2:])] * 3
    assert relative_error(torch.cat(chunks)[:, :, 0], vae.decode(z)) <= 1e-5


@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_blending_is_there_for_comparison(network: str) -> None:
    vae, z = clip_vae(network), random_latents(3, 8, 9)
    assert vae.decode(z, mode="blend", tile=32).shape == vae.decode(z).shape
    plan = vae.plan("decode", width=72, height=64, frames=9, mode="blend", tile=32)
    assert not plan.exact and plan.operations > vae.plan("decode", width=72, height=64, frames=9).operations


def test_progress_runs_once_from_start_to_end() -> None:
    vae, told = clip_vae(WAN), []
    vae.decode(
        random_latents(4, 4, 4, batch=2), tile=16, progress=lambda done, total, info: told.append((done, total, info))
    )
    done, totals, infos = zip(*told, strict=True)
    assert [*done] == sorted(done) and done[-1] == totals[-1] and len(set(totals)) == 1
    assert [i.chunk for i in infos] == sorted(i.chunk for i in infos) and infos[-1].chunk == 3


def test_a_plan_of_a_clip_counts_all_chunks() -> None:
    vae = clip_vae(WAN)
    long, short = (vae.plan("decode", width=64, height=64, frames=n) for n in (33, 17))
    assert long.device_bytes == short.device_bytes and 1.9 < long.operations / short.operations < 2.1
    vae.decode(random_latents(5, 8, 8))
    assert vae.last_report is not None and vae.last_report.plan.operations == short.operations


# --- taken up again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, 24])
@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_a_stopped_decode_goes_on(tmp_path: Path, network: str, tile: int | None) -> None:
    vae, z = clip_vae(network), random_latents(7, 2, 3, batch=2)
    expected, chunks = joined(vae.decode_frames(z, tile=tile)), len([*vae.decode_frames(z)])
    for stop in {0, 1, 2, chunks - 1, chunks}:
        stopped = vae.decode_frames(z, tile=tile, resume=tmp_path / "work")
        made = sum(next(stopped).shape[2] for _ in range(stop))
        del stopped
        assert frames_kept(tmp_path / "work") == made, "each chunk is kept before it is given away"
        again = joined(vae.decode_frames(z, tile=tile, resume=tmp_path / "work"))
        assert torch.equal(again, expected)
        forget(tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_pictures_are_taken_over_too(tmp_path: Path) -> None:
    vae = vae_core.load_embedded()
    z = torch.randn(3, vae.spec.latent_channels, 4, 4)
    next(vae.decode_frames(z, resume=tmp_path / "work"))
    assert torch.equal(joined(vae.decode_frames(z, resume=tmp_path / "work")), joined(vae.decode_frames(z)))
    assert vae.last_report is not None


def test_the_folder_of_another_decode_is_refused(tmp_path: Path) -> None:
    vae, z = clip_vae(WAN), random_latents(2, 3, 3)
    next(vae.decode_frames(z, resume=tmp_path / "work"))
    others = {"latents": (vae, z + 1), "weights": (clip_vae(WAN), z), "dtype": (clip_vae(WAN, torch.bfloat16), z)}
    with torch.no_grad():
        others["weights"][0].net.decoder.conv_in.weight.mul_(2)  # type: ignore[union-attr]
    for other, latents in others.values():
        with pytest.raises(vae_core.InputError, match="the work of another decode"):
            other.decode_frames(latents, resume=tmp_path / "work")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("chapter one")
    with pytest.raises(vae_core.InputError, match="something else than a stopped decode"):
        vae.decode_frames(z, resume=tmp_path / "mine")
    forget(tmp_path / "mine")
    assert (tmp_path / "mine" / "novel.txt").exists()


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    vae, z = clip_vae(WAN), random_latents(4, 3, 3)
    chunks = vae.decode_frames(z, resume=tmp_path)
    assert frames_kept(tmp_path) == 0
    for _ in range(3):
        next(chunks)
    file = tmp_path / "chunk-000001.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(vae_core.InputError, match=r"chunk-000001.*delete .* to begin anew"):
        joined(vae.decode_frames(z, resume=tmp_path))
    assert frames_kept(tmp_path) == 0


def test_a_full_disk_ends_the_keeping_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, z, kept = clip_vae(WAN), random_latents(4, 3, 3), FinishedChunks.keep

    def keep(self: FinishedChunks, *args: Any) -> None:
        if self.count == 2:
            raise OSError(28, "No space left on device")
        kept(self, *args)

    monkeypatch.setattr(FinishedChunks, "keep", keep)
    expected = vae.decode(z)
    assert torch.equal(joined(vae.decode_frames(z, resume=tmp_path)), expected)
    assert vae.last_report is not None and any("No space left" in event for event in vae.last_report.events)
    monkeypatch.undo()
    assert torch.equal(joined(vae.decode_frames(z, resume=tmp_path)), expected)


DECODE = """
import sys, time, torch, vae_core
from safetensors.torch import load_file
from vae_core.media import open_sink
folder = sys.argv[1]
vae, z = vae_core.load(folder + "/vae", dtype=torch.float32), load_file(folder + "/z.safetensors")["z"]
with open_sink(folder + "/clip.npy", fps=16) as sink:
    for pixels in vae.decode_frames(z, resume=folder + "/work"):
        sink.write(pixels[0])
        time.sleep(0.05)  # so that whoever is to stop it, comes before it is done
"""


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", [WAN, COGVIDEOX])
def test_killed_and_taken_up_again(tmp_path: Path, network: str, kills: int) -> None:
    """SIGKILL at some moment after another chunk is finished, again and again: the same file as of an undisturbed run."""
    vae, z = clip_vae(network), random_latents(6 * kills + 4, 3, 4)
    vae.net.save_pretrained(tmp_path / "vae")
    save_file({"z": z}, tmp_path / "z.safetensors")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command, moments = [sys.executable, "-c", DECODE, str(tmp_path)], random.Random(kills)
    for _ in range(kills):
        process, reached = subprocess.Popen(command, env=environment), finished(tmp_path)
        while process.poll() is None and finished(tmp_path) <= reached:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.06)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the clip is too short to be stopped so often"
    assert not (tmp_path / "clip.npy").exists()
    subprocess.run(command, env=environment, check=True)
    assert np.array_equal(np.load(tmp_path / "clip.npy"), vae.decode(z)[0].movedim(0, -1).numpy())


def finished(folder: Path) -> int:
    """Chunks that a decode has kept so far."""
    return len([*folder.glob("work/chunk-*")])


def test_nothing_is_left_in_the_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    vae, z = clip_vae(WAN), random_latents(5, 6, 9)
    least = vae.plan("decode", width=72, height=48, frames=17, mode="whole").device_bytes // 2
    vae.decode(z, memory_limit=least)
    assert [*tmp_path.iterdir()] == []
