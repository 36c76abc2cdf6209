"""Video files on a real ComfyUI: read, written and saved by our nodes, also after an interrupt or a failure."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import ComfyServer, Event, Run
from graphs import Graph, Link, kept, said, saved_latent, succeeded, told
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from videos import FPS, FRAMES, HEIGHT, SIZE, WIDTH, empty, film, frames, save, saved, video

from vae_core.media import open_source

pytestmark = pytest.mark.usefixtures("video_files")


def small(graph: Graph, name: str = "vae/small_wan.safetensors") -> Link:
    return graph("ExactVAELoader", vae_name=name, dtype="fp32")


def frames_in(file: Path) -> Tensor:
    """As IMAGE."""
    with open_source(file) as source:
        frames = source.read(1000)
    assert frames is not None
    return frames.movedim(0, -1).add(1).div(2)


def left_behind(comfy: ComfyServer) -> set[str]:
    """Files of ours in ComfyUI's temporary folder, unfinished ones too."""
    return {file.name for file in (comfy.folder / "temp").iterdir() if "exact_vae" in file.name}


@pytest.mark.parametrize(
    "name", ["vae/small_wan.safetensors", "vae/small_cogvideox.safetensors", "diffusers/small_cogvideox_folder"]
)
def test_a_video_goes_round_and_is_saved(comfy, name):
    graph = Graph()
    vae = small(graph, name)
    latent = graph("ExactVAEVideoEncode", vae=vae, video=video(graph))
    decoded = film(graph, latent, vae, fps=[latent[0], 1], audio=[latent[0], 2], outputs="both", crf=0)
    node, images = save(graph, decoded), graph.keep([decoded[0], 1])
    run = succeeded(comfy, graph, timeout_s=300)
    file, image = saved(comfy, run, node), kept(comfy, run, images)
    with open_source(file) as source:
        assert (source.width, source.height, source.frames, source.fps) == (WIDTH, HEIGHT, FRAMES, FPS)
        assert source.has_audio
    assert image.shape == (FRAMES, HEIGHT, WIDTH, 3)
    # Random weights give noise, of whose colours yuv420p keeps a quarter.
    assert (frames_in(file).mean(-1) - image.mean(-1)).abs().mean() < 0.05
    assert told(run, decoded)["frames"] == told(run, latent)["frames"] == FRAMES


def test_savevideo_copies_the_file_as_it_is(comfy):
    graph = Graph()
    before = left_behind(comfy)
    node = save(graph, film(graph, graph("EmptyHunyuanLatentVideo", **SIZE | {"length": 5}), small(graph)))
    run = succeeded(comfy, graph)
    (ours,) = left_behind(comfy) - before
    assert torch.equal(frames_in(saved(comfy, run, node)), frames_in(comfy.folder / "temp" / ours))


def test_webm_with_transparency(comfy):
    graph = Graph()
    latent = graph("EmptyHunyuanLatentVideo", **SIZE | {"length": 1})
    node = save(graph, film(graph, latent, small(graph, "diffusers/small_qwen_layered"), format="webm (vp9)"))
    run = succeeded(comfy, graph)
    with open_source(saved(comfy, run, node).with_suffix(".mp4")) as source:
        assert (source.width, source.height) == (32, 32)


def test_padding_gives_size_and_frames_back(comfy):
    graph = Graph()
    vae = small(graph)
    image = graph("ImageScale", image=frames(graph), upscale_method="area", width=74, height=62, crop="disabled")
    image = graph("ImageFromBatch", image=image, batch_index=0, length=7)
    latent = graph("ExactVAEVideoEncode", vae=vae, images=image, fit="pad")
    node = save(graph, film(graph, latent, vae))
    run = succeeded(comfy, graph)
    frame = frames_in(saved(comfy, run, node))
    assert frame.shape == (7, 62, 74, 3)
    assert_shows(run, frame[-1])


def test_images_that_are_not_asked_for_are_not_given(comfy):
    graph = Graph()
    filmed = film(graph, empty(graph), small(graph))
    node = save(graph, filmed)
    graph("PreviewImage", images=[filmed[0], 1])
    run = comfy.run(graph.prompt)
    assert saved(comfy, run, node).exists()
    errors = [event["exception_message"] for event in run.of("execution_error")]
    assert errors and "set `outputs` to images or to both" in errors[0]


def test_progress_tells_frames_and_shows_the_newest(comfy):
    graph = Graph()
    latent = graph("EmptyHunyuanLatentVideo", width=128, height=128, length=41, batch_size=1)
    filmed = film(graph, latent, small(graph))
    node = save(graph, filmed)
    run = succeeded(comfy, graph, timeout_s=300)
    progress = [event for event in run.of("exact_vae.progress") if event["node"] == filmed[0]]
    numbers = [event["frame"] for event in progress]
    assert len(set(numbers)) > 2 and numbers == sorted(numbers) and {event["frames"] for event in progress} == {41}
    assert len(run.previews) > 2
    assert_shows(run, frames_in(saved(comfy, run, node))[-1])


def assert_shows(run: Run, frame: Tensor) -> None:
    """The last preview is this frame; ComfyUI makes previews 512 wide."""
    picture = Image.open(BytesIO(run.previews[-1].picture)).convert("L")
    height, width = frame.shape[:2]
    assert picture.size == (512, round(512 * height / width))
    grey = torch.from_numpy(np.asarray(picture.resize((width, height), Image.Resampling.BOX)) / 255)
    assert (grey - frame.mean(-1)).abs().mean() < 0.1


def test_an_interrupt_leaves_nothing_and_a_long_clip_goes_on(comfy):
    graph = Graph()
    latent = graph("EmptyHunyuanLatentVideo", width=64, height=64, length=265, batch_size=1)
    filmed = film(graph, latent, small(graph))
    node = save(graph, filmed)
    before, unfinished = left_behind(comfy), comfy.folder / "output" / "exact_vae_unfinished"

    def stop(event: Event) -> None:
        if event.kind == "exact_vae.progress" and event.data["frame"] > 20:
            comfy.interrupt()

    run = comfy.run(graph.prompt, timeout_s=300, on_event=stop)
    assert run.status == "interrupted" and left_behind(comfy) == before
    assert len([*unfinished.iterdir()]) == 1
    run = succeeded(comfy, graph, timeout_s=300)
    (event,) = told(run, filmed)["events"]
    assert "chunks had been decoded" in event and event.endswith("taken over from output/exact_vae_unfinished")
    assert len(frames_in(saved(comfy, run, node))) == 265 and not [*unfinished.iterdir()]


def test_a_decode_that_fails_saves_its_latents(comfy):
    graph = Graph()
    before = left_behind(comfy)
    save(graph, film(graph, empty(graph), small(graph), memory_limit="100KiB"))
    run = comfy.run(graph.prompt)
    assert run.status == "error" and "needs" in said(run)
    assert load_file(saved_latent(run))["latent_tensor"].shape == (1, 16, 3, 4, 4)
    assert left_behind(comfy) == before
