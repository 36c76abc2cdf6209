"""Our VAE in ComfyUI's nodes, and ComfyUI's VAEs in ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import ComfyServer
from graphs import Graph, Link, kept, succeeded, told
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from tiny_nets import tiny_net

import vae_core
from vae_core.checkpoint import save_diffusers

EQUAL = 2e-5
"""Of pictures in [0, 1], float32: our operations and ComfyUI's, each in its own order."""


@pytest.fixture(scope="module", autouse=True)
def files(
    comfy: ComfyServer,
    taesd_weights: Path,
    sd1_checkpoint: Path,
    sd1_vae: Path,
    foreign_vae: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(data.chelsea()).resize((128, 96)).save(folder / "small_cat.png")
    comfy.add_input("small_cat.png", folder / "small_cat.png")
    comfy.add_model("checkpoints/random_sd1.safetensors", sd1_checkpoint)
    comfy.add_model("vae/random_sd1_vae.safetensors", sd1_vae)
    comfy.add_model("vae/stage_a.safetensors", foreign_vae)
    net = tiny_net("flux1")
    save_diffusers(folder / "small_flux1", net.network, dict(net.config), net.state_dict())
    comfy.add_model("vae/small_flux1", folder / "small_flux1")


def picture(graph: Graph) -> Link:
    return graph("LoadImage", image="small_cat.png")


def ours(graph: Graph) -> Link:
    return graph("ExactVAELoader", vae_name="checkpoints/random_sd1.safetensors", variant="sd1", dtype="fp32")


def sixteen_channels(graph: Graph) -> Link:
    """FLUX.1's VAE in small widths, in a diffusers folder: nodes for video models want 16 channels."""
    return graph("ExactVAELoader", vae_name="vae/small_flux1")


# --- ours in theirs -----------------------------------------------------------------------------------------------------


def test_ours_decodes_and_encodes_in_core_nodes_as_cores_own_does(comfy, sd1_checkpoint: Path):
    graph = Graph()
    image, mask = picture(graph), graph("SolidMask", value=1.0, width=128, height=96)
    checkpoint = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    ids = []
    for vae in (ours(graph), [checkpoint[0], 2]):
        latent = graph("VAEEncode", pixels=image, vae=vae)
        inpaint = graph("VAEEncodeForInpaint", pixels=image, vae=vae, mask=mask, grow_mask_by=6)
        ids += [graph.keep(graph("VAEDecode", samples=samples, vae=vae)) for samples in (latent, inpaint)]
    run = succeeded(comfy, graph, timeout_s=300)
    mine, my_inpaint, cores, cores_inpaint = (kept(comfy, run, name) for name in ids)
    assert mine.shape == (1, 96, 128, 3)
    assert (mine - cores).abs().max() < EQUAL
    # What is masked is grey, here all of it. Of one colour core's latents are off by 3e-3 (ComfyUI 0.8.0, torch 2.14): of an IMAGE,
    # whose channels lie innermost, torch's group norm adds up each channel in float32, one by one.
    grey = round_trip_in_float64(sd1_checkpoint, torch.zeros(1, 3, 96, 128))
    assert (my_inpaint - grey).abs().max() < EQUAL and (cores_inpaint - grey).abs().max() < 5e-3


def round_trip_in_float64(file: Path, pixels: torch.Tensor) -> torch.Tensor:
    """Without ComfyUI: pixels `b c h w` in [-1, 1] to `b h w c` in [0, 1]."""
    vae = vae_core.load(file, variant="sd1", dtype=torch.float64)
    return (vae.decode(vae.encode(pixels.double())).movedim(1, -1) + 1) / 2


def test_ours_is_exact_in_cores_tiled_nodes(comfy):
    graph = Graph()
    vae, image = ours(graph), picture(graph)
    sizes = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    whole = graph.keep(graph("VAEDecode", samples=graph("VAEEncode", pixels=image, vae=vae), vae=vae))
    latent = graph("VAEEncodeTiled", pixels=image, vae=vae, **sizes)
    tiled = graph.keep(graph("VAEDecodeTiled", samples=latent, vae=vae, **sizes))
    run = succeeded(comfy, graph, timeout_s=300)
    assert (kept(comfy, run, tiled) - kept(comfy, run, whole)).abs().max() < EQUAL


def test_what_vaesave_writes_of_ours_is_loaded_by_core_and_by_us(comfy):
    graph = Graph()
    graph("VAESave", vae=ours(graph), filename_prefix="vae/of_sd1")
    graph("VAESave", vae=graph.tiny(dtype="fp32"), filename_prefix="vae/of_tiny")
    succeeded(comfy, graph)
    graph = Graph()
    image, ids = picture(graph), []
    for name, source in (("of_sd1", ours(graph)), ("of_tiny", graph.tiny(dtype="fp32"))):
        file = f"{name}_00001_.safetensors"
        vaes = (
            graph("VAELoader", vae_name=file),
            graph("ExactVAELoader", vae_name=f"vae/{file}", dtype="fp32"),
            source,
        )
        for vae in vaes:
            latent = graph("VAEEncode", pixels=image, vae=vae)
            ids.append(graph.keep(graph("VAEDecode", samples=latent, vae=vae)))
    run = succeeded(comfy, graph, timeout_s=300)
    made = [kept(comfy, run, name) for name in ids]
    for first in (0, 3):
        assert (made[first] - made[first + 2]).abs().max() < EQUAL
        assert (made[first + 1] - made[first + 2]).abs().max() < EQUAL


def conditioning(graph: Graph) -> Link:
    checkpoint = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    return graph("CLIPTextEncode", clip=[checkpoint[0], 1], text="a cat")


FRAMES = {"width": 64, "height": 64, "length": 5, "batch_size": 1}

# WanVaceToVideo is not among them: it wants latents with a time axis, which no image VAE gives. Video VAEs:
# test_video_core_nodes.py.
TAKES_A_VAE: dict[str, Callable[[Graph, Link, Link, Link], dict[str, Any]]] = {
    "InpaintModelConditioning": lambda g, vae, text, image: {
        "positive": text,
        "negative": text,
        "vae": vae,
        "pixels": image,
        "mask": g("SolidMask", value=1.0, width=128, height=96),
        "noise_mask": True,
    },
    "InstructPixToPixConditioning": lambda g, vae, text, image: {
        "positive": text,
        "negative": text,
        "vae": vae,
        "pixels": image,
    },
    "WanImageToVideo": lambda g, vae, text, image: (
        FRAMES | {"positive": text, "negative": text, "vae": vae, "start_image": image}
    ),
    "WanFirstLastFrameToVideo": lambda g, vae, text, image: (
        FRAMES | {"positive": text, "negative": text, "vae": vae, "start_image": image, "end_image": image}
    ),
    "Wan22FunControlToVideo": lambda g, vae, text, image: (
        FRAMES | {"positive": text, "negative": text, "vae": vae, "ref_image": image}
    ),
    "HunyuanImageToVideo": lambda g, vae, text, image: (
        FRAMES | {"positive": text, "vae": vae, "start_image": image, "guidance_type": "v1 (concat)"}
    ),
}


@pytest.mark.parametrize("node", TAKES_A_VAE)
def test_core_nodes_that_take_a_vae_take_ours(comfy, node):
    graph = Graph()
    vae, text, image = sixteen_channels(graph), conditioning(graph), picture(graph)
    made = graph(node, **TAKES_A_VAE[node](graph, vae, text, image))
    outputs = comfy.object_info(node)["output"]
    graph("SaveLatent", samples=[made[0], outputs.index("LATENT")], filename_prefix=f"latents/{node}")
    run = succeeded(comfy, graph, timeout_s=300)
    (entry,) = run.outputs[str(len(graph.prompt))]["latents"]
    assert torch.isfinite(load_file(comfy.output(entry))["latent_tensor"]).all()


def test_a_copy_with_a_patcher_of_its_own_works(comfy):
    graph = Graph()
    vae, image = ours(graph), picture(graph)
    copied = graph("ProbeCopyVAE", vae=vae)
    ids = []
    for one in (vae, copied):
        latent = graph("VAEEncode", pixels=image, vae=one)
        ids += [graph.keep(graph(node, samples=latent, vae=one)) for node in ("VAEDecode", "ExactVAEDecode")]
    run = succeeded(comfy, graph, timeout_s=300)
    first, *others = (kept(comfy, run, name) for name in ids)
    assert all((other - first).abs().max() < EQUAL for other in others)


def test_what_checkpointsave_writes_with_ours_is_loaded_by_core(comfy):
    graph = Graph()
    checkpoint = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    prefix = "exact_vae_test"
    graph("CheckpointSave", model=checkpoint, clip=[checkpoint[0], 1], vae=ours(graph), filename_prefix=prefix)
    succeeded(comfy, graph, timeout_s=300)
    (file,) = comfy.folder.rglob(f"{prefix}_*.safetensors")
    comfy.add_model("checkpoints/saved_with_ours.safetensors", file)
    graph = Graph()
    image, saved = picture(graph), graph("CheckpointLoaderSimple", ckpt_name="saved_with_ours.safetensors")
    ids = []
    for vae in (ours(graph), [saved[0], 2]):
        ids.append(graph.keep(graph("VAEDecode", samples=graph("VAEEncode", pixels=image, vae=vae), vae=vae)))
    run = succeeded(comfy, graph, timeout_s=300)
    mine, cores = (kept(comfy, run, name) for name in ids)
    assert (mine - cores).abs().max() < EQUAL


def test_a_training_set_is_made_with_ours(comfy):
    if "MakeTrainingDataset" not in comfy.get("/object_info"):
        pytest.skip("this ComfyUI has no MakeTrainingDataset")
    graph = Graph()
    checkpoint = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    inputs = {"images": picture(graph), "vae": ours(graph), "clip": [checkpoint[0], 1], "texts": "a cat"}
    graph("SaveLatent", samples=graph("MakeTrainingDataset", **inputs), filename_prefix="latents/set")
    succeeded(comfy, graph, timeout_s=300)


def test_stable_cascades_super_resolution_node_takes_ours(comfy):
    graph = Graph()
    made = graph("StableCascade_SuperResolutionControlnet", image=picture(graph), vae=ours(graph))
    graph("SaveLatent", samples=[made[0], 1], filename_prefix="latents/cascade")
    graph("PreviewAny", source=made)
    succeeded(comfy, graph)


# --- theirs in ours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["checkpoint", "vae", "taesd"])
def test_cores_vaes_are_adopted(comfy, source):
    graph = Graph()
    vae = {
        "checkpoint": lambda: [graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")[0], 2],
        "vae": lambda: graph("VAELoader", vae_name="random_sd1_vae.safetensors"),
        "taesd": lambda: graph("VAELoader", vae_name="taesd"),
    }[source]()
    image = picture(graph)
    limit = "30MiB" if source == "taesd" else "500MiB"
    latents = [graph("VAEEncode", pixels=image, vae=vae), graph("ExactVAEEncode", pixels=image, vae=vae)]
    latents.append(graph("ExactVAEEncodeTiled", pixels=image, vae=vae, tile_size=64))
    runs = [graph("ExactVAEDecode", samples=latent, vae=vae, memory_limit=limit) for latent in latents]
    ids = [graph.keep(link) for link in (graph("VAEDecode", samples=latents[0], vae=vae), *runs)]
    run = succeeded(comfy, graph, timeout_s=300)
    cores, *made = (kept(comfy, run, name) for name in ids)
    assert all((one - cores).abs().max() < EQUAL for one in made)
    for link in runs:
        assert told(run, link)["by"] == "exact" and told(run, link)["exact"]
        assert told(run, link)["device_bytes"] <= told(run, link)["limit_bytes"]


def test_an_adopted_vae_is_planned_for(comfy):
    graph = Graph()
    vae = graph("VAELoader", vae_name="random_sd1_vae.safetensors")
    plan = graph("ExactVAEPlan", vae=vae, width=1024, height=1024, memory_limit="1")
    rungs = told(succeeded(comfy, graph), plan)["rungs"]
    assert next(rung["name"] for rung in rungs if rung["chosen"]).startswith("streamed")


def test_a_family_that_we_lack_is_run_by_comfyui_and_said_so(comfy):
    graph = Graph()
    vae, image = graph("VAELoader", vae_name="stage_a.safetensors"), picture(graph)
    latent, mine = (graph(node, pixels=image, vae=vae) for node in ("VAEEncode", "ExactVAEEncode"))
    ids = [graph.keep(graph("VAEDecode", samples=latent, vae=vae))]
    decoded = graph("ExactVAEDecode", samples=mine, vae=vae)
    tiled = graph("ExactVAEDecodeTiled", samples=mine, vae=vae, tile_size=128)
    ids += [graph.keep(decoded), graph.keep(tiled)]
    run = succeeded(comfy, graph, timeout_s=300)
    cores, ours, _ = (kept(comfy, run, i) for i in ids)
    assert torch.equal(ours, cores)
    assert told(run, decoded)["by"] == "comfyui" and told(run, decoded)["exact"] and told(run, mine)["by"] == "comfyui"
    assert "run by ComfyUI's own code" in told(run, decoded)["notes"][0] and not told(run, tiled)["exact"]


def test_no_plan_is_made_for_a_family_that_we_lack(comfy):
    graph = Graph()
    graph("ExactVAEPlan", vae=graph("VAELoader", vae_name="stage_a.safetensors"), width=512, height=512)
    run = comfy.run(graph.prompt)
    assert run.status == "error" and "ComfyUI runs itself" in run.error["exception_message"]


def test_text_to_image_ends_in_our_decode(comfy):
    graph = Graph()
    checkpoint = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    text = graph("CLIPTextEncode", clip=[checkpoint[0], 1], text="a cat")
    latent = graph(
        "KSampler",
        model=checkpoint,
        positive=text,
        negative=text,
        latent_image=graph("EmptyLatentImage", width=128, height=96, batch_size=2),
        seed=1,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )
    vae = [checkpoint[0], 2]
    ids = [graph.keep(graph(node, samples=latent, vae=vae)) for node in ("VAEDecode", "ExactVAEDecode")]
    run = succeeded(comfy, graph, timeout_s=300)
    cores, mine = (kept(comfy, run, name) for name in ids)
    assert mine.shape == (2, 96, 128, 3) and (mine - cores).abs().max() < EQUAL
