"""Our video VAEs in ComfyUI's nodes, and ComfyUI's in ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from comfy_server import ComfyServer, Run
from graphs import Graph, Link, kept, succeeded, told
from safetensors.torch import load_file
from torch import Tensor
from videos import FPS, FRAMES, HEIGHT, SIZE, WIDTH, empty, film, frames, save, saved, video

from vae_core.media import open_source

pytestmark = pytest.mark.usefixtures("video_files")

EQUAL = 2e-5
"""Of float32, relative to the largest number: our operations and ComfyUI's, each in its own order."""

Tensors = Mapping[str, Tensor]


def both(graph: Graph) -> tuple[Link, Link]:
    """The same VAE of Wan from our loader and from ComfyUI's."""
    ours = graph("ExactVAELoader", vae_name="vae/random_wan_21.safetensors", dtype="fp32")
    return ours, graph("VAELoader", vae_name="random_wan_21.safetensors")


def tensors(comfy: ComfyServer, run: Run, probe: Link) -> Tensors:
    return load_file(comfy.output(run.outputs[probe[0]]["kept"][0]))


def equal(mine: Tensors, cores: Tensors) -> bool:
    assert mine.keys() == cores.keys()
    assert all(mine[name].shape == tensor.shape for name, tensor in cores.items())
    return all(bool((mine[name] - one).abs().max() <= EQUAL * one.abs().max()) for name, one in cores.items())


# --- our VAE in ComfyUI's nodes ---------------------------------------------------------------------------------------


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


Inputs = Callable[[Graph], dict[str, Any]]


def text(graph: Graph) -> dict[str, Any]:
    clip = [graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")[0], 1]
    made = graph("CLIPTextEncode", clip=clip, text="a cat")
    return {"positive": made, "negative": made}


def picture(graph: Graph) -> Link:
    return graph("LoadImage", image="small_cat.png")


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


# --- ComfyUI's VAE in our nodes ---------------------------------------------------------------------------------------


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
