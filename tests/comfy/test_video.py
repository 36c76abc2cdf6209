"""Video on a real ComfyUI: files written and read, our video VAEs in ComfyUI's nodes, and ComfyUI's in ours."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_checkpoints
import random_conditioners
import torch
from comfy_server import ComfyServer, Event, Run
from graphs import Graph, Link, kept, said, saved_latent, succeeded, told
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import Tensor

from vae_core.media import open_sink, open_source

ROOT = Path(__file__).resolve().parents[2]

EQUAL = 2e-5
"""Of float32, relative to the largest number: our operations and ComfyUI's, each in its own order."""

WIDTH, HEIGHT, FRAMES, FPS = 96, 80, 9, 12

Tensors = Mapping[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def files(
    comfy: ComfyServer,
    random_folder: Path,
    wan_vae: Path,
    foreign_video_vae: Path,
    sd1_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("videos")
    cat = torch.from_numpy(data.chelsea().copy()).movedim(-1, 0) / 127.5 - 1
    sound = folder / "tone.wav"
    _write_tone(sound)
    with open_sink(folder / "clip.mp4", fps=FPS, crf=1, audio_from=sound) as sink:
        for i in range(FRAMES):
            sink.write(cat[:, None, 60 : 60 + HEIGHT, 100 + 4 * i : 100 + 4 * i + WIDTH])
    comfy.add_input("clip.mp4", folder / "clip.mp4")
    Image.fromarray(data.chelsea()).resize((64, 48)).save(folder / "small_cat.png")
    comfy.add_input("small_cat.png", folder / "small_cat.png")
    comfy.add_model("checkpoints/random_sd1.safetensors", sd1_checkpoint)
    comfy.add_model("vae/random_wan_21.safetensors", wan_vae)
    for name in ("wan_2.1_vae", "qwen_image_vae"):
        comfy.add_model(f"vae/{name}.safetensors", foreign_video_vae)
    random_conditioners.ltx_vae(random_folder / "random_ltx.pt")
    comfy.add_model("vae/random_ltx.pt", random_folder / "random_ltx.pt")
    random_checkpoints.wan_vae(random_folder / "small_wan.safetensors", width=8)
    random_checkpoints.cogvideox_vae(random_folder / "small_cogvideox.safetensors")
    random_checkpoints.cogvideox_folder(random_folder / "small_cogvideox_folder")
    random_checkpoints.qwen_folder(random_folder / "small_qwen_layered", channels=4)
    for name in ("small_wan.safetensors", "small_cogvideox.safetensors"):
        comfy.add_model(f"vae/{name}", random_folder / name)
    for name in ("small_cogvideox_folder", "small_qwen_layered"):
        comfy.add_model(f"diffusers/{name}", random_folder / name)


def _write_tone(file: Path) -> None:
    levels = (np.sin(np.arange(48_000) / 48_000 * 2 * np.pi * 440) * 16_000).astype("<i2")
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(48_000)
        out.writeframes(levels.tobytes())


def both(graph: Graph) -> tuple[Link, Link]:
    """The same VAE of Wan from our loader and from ComfyUI's."""
    ours = graph("ExactVAELoader", vae_name="vae/random_wan_21.safetensors", dtype="fp32")
    return ours, graph("VAELoader", vae_name="random_wan_21.safetensors")


def small(graph: Graph, name: str = "vae/small_wan.safetensors") -> Link:
    return graph("ExactVAELoader", vae_name=name, dtype="fp32")


def video(graph: Graph) -> Link:
    return graph("LoadVideo", file="clip.mp4")


def frames(graph: Graph) -> Link:
    return graph("GetVideoComponents", video=video(graph))


def film(graph: Graph, samples: Link, vae: Link, **inputs: Any) -> Link:
    return graph(
        "ExactVAEVideoDecode", **{"samples": samples, "vae": vae, "fps": 12.0, "format": "mp4 (h264)"} | inputs
    )


def save(graph: Graph, video: Link) -> str:
    return graph("SaveVideo", video=video, filename_prefix="video/exact", format="auto", codec="auto")[0]


def saved(comfy: ComfyServer, run: Run, node: str) -> Path:
    return comfy.output(run.outputs[node]["images"][0])


def frames_in(file: Path) -> Tensor:
    """As IMAGE."""
    with open_source(file) as source:
        frames = source.read(1000)
    assert frames is not None
    return frames.movedim(0, -1).add(1).div(2)


def tensors(comfy: ComfyServer, run: Run, probe: Link) -> Tensors:
    return load_file(comfy.output(run.outputs[probe[0]]["kept"][0]))


def equal(mine: Tensors, cores: Tensors) -> bool:
    assert mine.keys() == cores.keys()
    assert all(mine[name].shape == tensor.shape for name, tensor in cores.items())
    return all(bool((mine[name] - one).abs().max() <= EQUAL * one.abs().max()) for name, one in cores.items())


def left_behind(comfy: ComfyServer) -> set[str]:
    """Files of ours in ComfyUI's temporary folder, unfinished ones too."""
    return {file.name for file in (comfy.folder / "temp").iterdir() if "exact_vae" in file.name}


# --- our VAE in ComfyUI's nodes -----------------------------------------------------------------------------------------


def test_ours_is_cores_in_cores_own_nodes(comfy):
    graph = Graph()
    ours, cores = both(graph)
    image, kept_ids, probes = frames(graph), [], []
    sizes = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    for vae in (ours, cores):
        latent = graph("VAEEncode", pixels=image, vae=vae)
        probes.append(graph("ProbeTensors", value=latent))
        kept_ids.append(graph.keep(graph("VAEDecode", samples=latent, vae=vae)))
    tiled = graph("VAEEncodeTiled", pixels=image, vae=ours, **sizes)
    probes.append(graph("ProbeTensors", value=tiled))
    kept_ids.append(graph.keep(graph("VAEDecodeTiled", samples=tiled, vae=ours, **sizes)))
    run = succeeded(comfy, graph, timeout_s=600)
    mine, core, in_tiles = (tensors(comfy, run, probe) for probe in probes)
    assert core[".samples"].shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8)
    assert equal(mine, core) and equal(in_tiles, core)
    mine, core, in_tiles = (kept(comfy, run, node) for node in kept_ids)
    assert core.shape == (FRAMES, HEIGHT, WIDTH, 3) and core.std() > 0.01
    assert (mine - core).abs().max() < EQUAL and (in_tiles - core).abs().max() < EQUAL


def test_sizes_that_do_not_divide_are_cropped_as_core_does(comfy):
    graph = Graph()
    image = graph("ImageScale", image=frames(graph), upscale_method="area", width=75, height=61, crop="disabled")
    image = graph("ImageFromBatch", image=image, batch_index=0, length=7)
    probes = [graph("ProbeTensors", value=graph("VAEEncode", pixels=image, vae=vae)) for vae in both(graph)]
    run = succeeded(comfy, graph, timeout_s=600)
    mine, core = (tensors(comfy, run, probe) for probe in probes)
    assert core[".samples"].shape == (1, 16, 2, 7, 9) and equal(mine, core)


SIZE = {"width": 32, "height": 32, "length": 9, "batch_size": 1}

Inputs = Callable[[Graph], dict[str, Any]]


def text(graph: Graph) -> dict[str, Any]:
    clip = [graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")[0], 1]
    made = graph("CLIPTextEncode", clip=clip, text="a cat")
    return {"positive": made, "negative": made}


def picture(graph: Graph) -> Link:
    return graph("LoadImage", image="small_cat.png")


def empty(graph: Graph) -> Link:
    return graph("EmptyHunyuanLatentVideo", **SIZE)


TAKES_A_VAE: dict[str, Inputs] = {
    "WanImageToVideo": lambda g: text(g) | SIZE | {"start_image": picture(g)},
    "WanFirstLastFrameToVideo": lambda g: text(g) | SIZE | {"start_image": picture(g), "end_image": picture(g)},
    "WanVaceToVideo": lambda g: (
        text(g) | SIZE | {"strength": 1.0, "control_video": frames(g), "reference_image": picture(g)}
    ),
    "WanFunControlToVideo": lambda g: text(g) | SIZE | {"start_image": picture(g), "control_video": frames(g)},
    "Wan22FunControlToVideo": lambda g: text(g) | SIZE | {"ref_image": picture(g), "control_video": frames(g)},
    "WanFunInpaintToVideo": lambda g: text(g) | SIZE | {"start_image": picture(g), "end_image": picture(g)},
    "WanCameraImageToVideo": lambda g: text(g) | SIZE | {"start_image": picture(g)},
    "WanPhantomSubjectToVideo": lambda g: text(g) | SIZE | {"images": frames(g)},
    "WanSoundImageToVideo": lambda g: (
        text(g) | SIZE | {"ref_image": picture(g), "control_video": frames(g), "ref_motion": frames(g)}
    ),
    "WanHuMoImageToVideo": lambda g: text(g) | SIZE | {"ref_image": picture(g)},
    "WanAnimateToVideo": lambda g: (
        text(g)
        | SIZE
        | {"continue_motion_max_frames": 5, "video_frame_offset": 0, "reference_image": picture(g)}
        | {"pose_video": frames(g), "background_video": frames(g)}
    ),
    "WanTrackToVideo": lambda g: (
        text(g) | SIZE | {"tracks": "[]", "temperature": 220.0, "topk": 2, "start_image": picture(g)}
    ),
    "WanMoveTrackToVideo": lambda g: text(g) | SIZE | {"strength": 1.0, "start_image": picture(g)},
    "HunyuanImageToVideo": lambda g: (
        {"positive": text(g)["positive"], "start_image": picture(g), "guidance_type": "v1 (concat)"} | SIZE
    ),
    "CosmosImageToVideoLatent": lambda g: SIZE | {"start_image": picture(g), "end_image": picture(g)},
    "CosmosPredict2ImageToVideoLatent": lambda g: SIZE | {"start_image": picture(g)},
    "Kandinsky5ImageToVideo": lambda g: text(g) | SIZE | {"start_image": picture(g)},
    "LTXVImgToVideoInplace": lambda g: {"latent": empty(g), "image": picture(g), "strength": 1.0, "bypass": False},
    "TextEncodeQwenImageEdit": lambda g: {
        "clip": [g("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")[0], 1],
        "prompt": "a cat",
        "image": picture(g),
    },
}


@pytest.mark.parametrize("node", TAKES_A_VAE)
def test_what_a_node_makes_with_ours_is_what_it_makes_with_cores(comfy, wan_vae, node):
    if node not in comfy.get("/object_info"):
        pytest.skip(f"this ComfyUI has no {node}")
    if node == "TextEncodeQwenImageEdit" and wan_vae.stat().st_size > 100_000_000:
        pytest.skip("it encodes a megapixel, which takes a VAE of the published width many minutes")
    graph = Graph()
    inputs, outputs = TAKES_A_VAE[node](graph), comfy.object_info(node)["output"]
    slots = [slot for slot, kind in enumerate(outputs) if kind in ("CONDITIONING", "LATENT")]
    probes = []
    for vae in both(graph):
        made = graph(node, vae=vae, **inputs)
        probes.append([graph("ProbeTensors", value=[made[0], slot]) for slot in slots])
    run = succeeded(comfy, graph, timeout_s=600)
    mine, cores = ([tensors(comfy, run, probe) for probe in half] for half in probes)
    assert all(equal(*pair) for pair in zip(mine, cores, strict=True))


WANTS_ANOTHER_VAE: dict[str, Inputs] = {
    "LTXVImgToVideo": lambda g: (  # of 128 channels
        text(g) | SIZE | {"width": 64, "height": 64, "image": picture(g), "strength": 1.0}
    ),
    "LTXVAddGuide": lambda g: text(g) | {"latent": empty(g), "image": picture(g), "frame_idx": 0, "strength": 1.0},
    "Wan22ImageToVideoLatent": lambda g: SIZE | {"start_image": picture(g)},  # of 48 channels
    "VAEEncodeForInpaint": lambda g: {  # for pictures
        "pixels": frames(g),
        "mask": g("SolidMask", value=1.0, width=WIDTH, height=HEIGHT),
        "grow_mask_by": 6,
    },
}


@pytest.mark.parametrize("node", WANTS_ANOTHER_VAE)
def test_a_node_that_wants_another_vae_takes_ours_no_more_than_cores(comfy, node):
    found = []
    for which in (0, 1):
        graph = Graph()
        made = graph(node, vae=both(graph)[which], **WANTS_ANOTHER_VAE[node](graph))
        graph("ProbeTensors", value=[made[0], comfy.object_info(node)["output"].index("LATENT")])
        run = comfy.run(graph.prompt, timeout_s=300)
        found.append((run.status, run.error and run.error["exception_type"]))
    assert found[0] == found[1]


def test_what_vaesave_writes_of_ours_is_loaded_by_core(comfy):
    graph = Graph()
    ours, _ = both(graph)
    graph("VAESave", vae=ours, filename_prefix="vae/of_wan")
    succeeded(comfy, graph)
    graph = Graph()
    probes = [
        graph("ProbeTensors", value=graph("VAEEncode", pixels=frames(graph), vae=vae))
        for vae in (graph("VAELoader", vae_name="of_wan_00001_.safetensors"), both(graph)[1])
    ]
    run = succeeded(comfy, graph, timeout_s=600)
    assert equal(*(tensors(comfy, run, probe) for probe in probes))


# --- ComfyUI's VAE in our nodes -----------------------------------------------------------------------------------------


def test_cores_wan_is_adopted(comfy):
    graph = Graph()
    _, cores = both(graph)
    image = frames(graph)
    latent = graph("VAEEncode", pixels=image, vae=cores)
    mine, of_video = (
        graph("ExactVAEEncode", pixels=image, vae=cores),
        graph("ExactVAEVideoEncode", vae=cores, video=video(graph)),
    )
    decoded = graph("ExactVAEDecode", samples=latent, vae=cores)
    filmed = film(graph, latent, cores, outputs="both")
    ids = [graph.keep(link) for link in (graph("VAEDecode", samples=latent, vae=cores), decoded, [filmed[0], 1])]
    probes = [graph("ProbeTensors", value=link) for link in (latent, mine, of_video)]
    run = succeeded(comfy, graph, timeout_s=600)
    for link in (mine, of_video, decoded, filmed):
        assert told(run, link)["by"] == "exact" and told(run, link)["frames"] == FRAMES
    core, ours, in_film = (kept(comfy, run, node) for node in ids)
    assert (ours - core).abs().max() < EQUAL and torch.equal(in_film, ours)
    core, ours, of_file = (tensors(comfy, run, probe) for probe in probes)
    assert equal(ours, core)
    # ComfyUI's way from YUV to RGB is up to 4 levels off.
    assert (of_file[".samples"] - core[".samples"]).abs().max() < 0.1 * core[".samples"].abs().max()


def test_a_video_vae_that_we_lack_is_run_by_comfyui_and_said_so(comfy):
    graph = Graph()
    vae, clip = graph("VAELoader", vae_name="random_ltx.pt"), video(graph)
    image = frames(graph)
    core = graph("VAEEncode", pixels=image, vae=vae)
    encoded = [graph("ExactVAEEncode", pixels=image, vae=vae), graph("ExactVAEVideoEncode", vae=vae, video=clip)]
    cores = graph("VAEDecode", samples=core, vae=vae)
    decoded = graph("ExactVAEDecode", samples=core, vae=vae)
    filmed = film(graph, core, vae, fps=[encoded[1][0], 1], audio=[encoded[1][0], 2], outputs="both", crf=0)
    tiled = graph("ExactVAEDecodeTiled", samples=core, vae=vae, tile_size=96)
    node, probes = save(graph, filmed), [graph("ProbeTensors", value=link) for link in (core, *encoded)]
    ids = [graph.keep(link) for link in (cores, decoded, [filmed[0], 1], tiled)]
    run = succeeded(comfy, graph, timeout_s=600)
    latent, *ours = (tensors(comfy, run, probe) for probe in probes)
    assert latent[".samples"].shape == (1, 128, 2, HEIGHT // 32, WIDTH // 32)
    assert all(torch.equal(one[".samples"], latent[".samples"]) for one in ours)
    core_image, mine, in_film, _ = (kept(comfy, run, name) for name in ids)
    assert core_image.shape == (FRAMES, HEIGHT // 32 * 32, WIDTH, 3) and core_image.std() > 0.01
    assert torch.equal(mine, core_image) and torch.equal(in_film, core_image)
    with open_source(saved(comfy, run, node)) as source:
        assert (source.frames, source.fps, source.has_audio) == (FRAMES, FPS, True)
    for link in (*encoded, decoded, filmed, tiled):
        said_of_it = told(run, link)
        assert said_of_it["by"] == "comfyui" and said_of_it["frames"] == FRAMES and said_of_it["images"] == 1
        assert "run by ComfyUI's own code" in said_of_it["notes"][0] and said_of_it["exact"] == (link is not tiled)


# --- files --------------------------------------------------------------------------------------------------------------


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


# --- the example workflows ----------------------------------------------------------------------------------------------


def example(comfy: ComfyServer, name: str) -> dict[str, Any]:
    """A graph in API format, of nodes and inputs that this ComfyUI has."""
    graph = json.loads((ROOT / "examples" / "api_format" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph.values():
        kinds = comfy.object_info(node["class_type"])["input"]
        known = kinds.get("required", {}) | kinds.get("optional", {})
        assert kinds.get("required", {}).keys() <= node["inputs"].keys() <= known.keys(), node["class_type"]
    return graph


def from_noise(graph: dict[str, Any], latent: str, decode: str) -> dict[str, Any]:
    """Without the diffusion model, whose weights are not here: what it starts from is decoded."""
    graph[decode]["inputs"]["samples"] = [latent, 0]
    wanted: list[str] = [name for name, node in graph.items() if node["class_type"].startswith("Save")]
    for name in wanted:
        wanted += [v[0] for v in graph[name]["inputs"].values() if isinstance(v, list) and v[0] not in wanted]
    return {name: graph[name] for name in wanted}


def test_the_example_of_text_to_video(comfy):
    graph = example(comfy, "wan_text_to_video")
    assert "wan" in comfy.object_info("CLIPLoader")["input"]["required"]["type"][0]
    graph["7"]["inputs"] |= {"width": 48, "height": 32, "length": 5}
    run = comfy.run(from_noise(graph, "7", "9"), timeout_s=300)
    assert run.status == "success", said(run)
    with open_source(saved(comfy, run, "10")) as source:
        assert (source.width, source.height, source.frames, source.fps) == (48, 32, 5, 16)


def test_the_example_of_a_video_round_trip(comfy):
    run = comfy.run(example(comfy, "video_round_trip"), timeout_s=300)
    assert run.status == "success", said(run)
    with open_source(saved(comfy, run, "5")) as source:
        assert (source.width, source.height, source.frames, source.fps) == (WIDTH, HEIGHT, FRAMES, FPS)
        assert source.has_audio


def test_the_example_of_qwen_image(comfy):
    graph = example(comfy, "qwen_image")
    assert "qwen_image" in comfy.object_info("CLIPLoader")["input"]["required"]["type"][0]
    graph["7"]["inputs"] |= {"width": 48, "height": 32}
    run = comfy.run(from_noise(graph, "7", "9"), timeout_s=300)
    assert run.status == "success", said(run)
    assert Image.open(saved(comfy, run, "10")).size == (48, 32)
    assert told(run, ["9", 0])["title"] == "Qwen-Image"
