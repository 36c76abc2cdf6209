"""Nodes of ComfyUI that encode with a VAE on the way to something else: with ours they make what they make with ComfyUI's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import random_conditioners
from comfy_server import ComfyServer, Run
from graphs import Graph, Link, said, succeeded
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import Tensor

EQUAL = 2e-5
"""Of float32, relative to the largest number: our operations and ComfyUI's, each in its own order."""

Tensors = Mapping[str, Tensor]
"""What ProbeTensors found in a CONDITIONING or LATENT, by the way there."""


@pytest.fixture(scope="module", autouse=True)
def files(
    comfy: ComfyServer,
    random_folder: Path,
    sd1_checkpoint: Path,
    sd1_vae: Path,
    foreign_video_vae: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    picture = tmp_path_factory.mktemp("pictures") / "small_cat.png"
    Image.fromarray(data.chelsea()).resize((128, 96)).save(picture)
    comfy.add_input("small_cat.png", picture)
    comfy.add_model("checkpoints/random_sd1.safetensors", sd1_checkpoint)
    comfy.add_model("vae/random_sd1_vae.safetensors", sd1_vae)
    comfy.add_model("vae/random_qwen_image.safetensors", foreign_video_vae)
    for name in ("taesd3", "taef1"):
        for file in random_conditioners.tiny_pair(random_folder, 16, name):
            comfy.add_model(f"vae_approx/{file.name}", file)
    made: dict[str, Callable[[Path], None]] = {
        "clip_vision/random_vision.pt": random_conditioners.clip_vision,
        "diffusion_models/random_sd3.pt": random_conditioners.sd3_model,
        "controlnet/random_sd3_control.pt": random_conditioners.sd3_control_net,
        "controlnet/random_sd3_inpaint.pt": lambda path: random_conditioners.sd3_control_net(path, control_channels=17),
        "diffusion_models/random_z_image.pt": random_conditioners.z_image_model,
        "model_patches/random_z_image_control.pt": random_conditioners.z_image_control,
        "model_patches/random_qwen_image_control.pt": random_conditioners.qwen_image_control,
    }
    for name, write in made.items():
        file = random_folder / Path(name).name
        write(file)
        comfy.add_model(name, file)


FILES = {
    "sd1": ("vae/random_sd1_vae.safetensors", "random_sd1_vae.safetensors"),
    "taesd3": ("vae_approx/taesd3_decoder.safetensors", "taesd3"),
    "taef1": ("vae_approx/taef1_decoder.safetensors", "taef1"),
}
"""What our loader calls a VAE, and what ComfyUI's does."""


def both(graph: Graph, name: str) -> tuple[Link, Link]:
    """The same VAE from our loader and from ComfyUI's."""
    ours, cores = FILES[name]
    # In float32, as ComfyUI's computes on a CPU; left to itself, a tiny one of ours is in bfloat16 where the CPU has it.
    return graph("ExactVAELoader", vae_name=ours, variant=name, dtype="fp32"), graph("VAELoader", vae_name=cores)


def picture(graph: Graph) -> Link:
    return graph("LoadImage", image="small_cat.png")


def clip(graph: Graph) -> Link:
    return [graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")[0], 1]


def tensors(comfy: ComfyServer, run: Run, probe: Link) -> Tensors:
    return load_file(comfy.output(run.outputs[probe[0]]["kept"][0]))


def assert_equal(mine: Tensors, cores: Tensors) -> None:
    assert mine.keys() == cores.keys()
    for name, one in cores.items():
        assert mine[name].shape == one.shape
        assert (mine[name] - one).abs().max() <= EQUAL * one.abs().max(), name


def need(comfy: ComfyServer, node: str) -> None:
    if node not in comfy.get("/object_info"):
        pytest.skip(f"this ComfyUI has no {node}")


# --- into a conditioning or a latent ------------------------------------------------------------------------------------


class Encoding(NamedTuple):
    vae: str
    inputs: Callable[[Graph], dict[str, Any]]
    encoded: tuple[str, ...] = (".0.1.concat_latent_image",)
    """Where the latents are in the node's first output."""


def of_vision(**inputs: Any) -> Encoding:
    """A node that takes CLIP's view of the picture as well."""

    def all_inputs(graph: Graph) -> dict[str, Any]:
        vision = graph("CLIPVisionLoader", clip_name="random_vision.pt")
        return inputs | {"clip_vision": vision, "init_image": picture(graph), "width": 64, "height": 48}

    return Encoding("sd1", all_inputs)


ENCODES = {
    "SVD_img2vid_Conditioning": of_vision(video_frames=2, motion_bucket_id=127, fps=6, augmentation_level=0.0),
    "SV3D_Conditioning": of_vision(video_frames=2, elevation=10.0),
    "StableZero123_Conditioning": of_vision(batch_size=2, elevation=10.0, azimuth=20.0),
    "StableZero123_Conditioning_Batched": of_vision(
        batch_size=2, elevation=10.0, azimuth=20.0, elevation_batch_increment=1.0, azimuth_batch_increment=2.0
    ),
    # These two enlarge the picture to a megapixel, whose sides the first leaves indivisible.
    "TextEncodeQwenImageEdit": Encoding(
        "taesd3",
        lambda graph: {"clip": clip(graph), "prompt": "a cat", "image": picture(graph)},
        (".0.1.reference_latents.0",),
    ),
    "TextEncodeQwenImageEditPlus": Encoding(
        "taesd3",
        lambda graph: {
            "clip": clip(graph),
            "prompt": "a cat",
            "image1": picture(graph),
            "image3": graph("ImageInvert", image=picture(graph)),
        },
        (".0.1.reference_latents.0", ".0.1.reference_latents.1"),
    ),
    "StableCascade_StageC_VAEEncode": Encoding(
        "sd1", lambda graph: {"image": picture(graph), "compression": 10}, (".samples",)
    ),
}


@pytest.mark.parametrize("node", ENCODES)
def test_what_a_node_encodes_with_ours_is_what_it_encodes_with_cores(comfy, node):
    need(comfy, node)
    graph, case = Graph(), ENCODES[node]
    inputs, outputs = case.inputs(graph), comfy.object_info(node)["output"]
    probes = []
    for vae in both(graph, case.vae):
        made = graph(node, vae=vae, **inputs)
        probes.append([graph("ProbeTensors", value=[made[0], slot]) for slot in range(len(outputs))])
    run = succeeded(comfy, graph, timeout_s=300)
    mine, cores = ([tensors(comfy, run, probe) for probe in half] for half in probes)
    assert all(cores[0][name].std() > 0.01 for name in case.encoded)
    for pair in zip(mine, cores, strict=True):
        assert_equal(*pair)


# --- into what a sampler does -------------------------------------------------------------------------------------------


def sampled(graph: Graph, model: Link, positive: Link, negative: Link) -> Link:
    """The probe of what one step makes of noise, 8 by 8 cells."""
    latent = graph(
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=graph("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        seed=1,
        steps=1,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return graph("ProbeTensors", value=latent)


def assert_sampled_alike(comfy: ComfyServer, graph: Graph, plain: Link, mine: Link, cores: Link) -> None:
    """And other than `plain`, which was sampled without the picture: else nothing would be shown."""
    run = succeeded(comfy, graph, timeout_s=300)
    without, ours, theirs = (tensors(comfy, run, probe) for probe in (plain, mine, cores))
    assert_equal(ours, theirs)
    change = without[".samples"] - theirs[".samples"]
    assert change.abs().max() > 0.01 * theirs[".samples"].abs().max()


@pytest.mark.parametrize("node", ["ControlNetApplyAdvanced", "ControlNetApplySD3", "ControlNetInpaintingAliMamaApply"])
def test_a_control_net_that_takes_latents_is_given_ours(comfy, node):
    graph = Graph()
    model = graph("UNETLoader", unet_name="random_sd3.pt", weight_dtype="default")
    text = graph("CLIPTextEncode", clip=clip(graph), text="a cat")
    inpaints = node == "ControlNetInpaintingAliMamaApply"
    net = graph("ControlNetLoader", control_net_name=f"random_sd3_{'inpaint' if inpaints else 'control'}.pt")
    inputs = {"positive": text, "negative": text, "control_net": net, "image": picture(graph)}
    inputs |= {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    if inpaints:
        inputs["mask"] = graph("LoadImageMask", image="small_cat.png", channel="red")
    probes = [sampled(graph, model, text, text)]
    for vae in both(graph, "taesd3"):
        made = graph(node, vae=vae, **inputs)
        probes.append(sampled(graph, model, made, [made[0], 1]))
    assert_sampled_alike(comfy, graph, *probes)


@pytest.mark.parametrize("node", ["ZImageFunControlnet", "QwenImageDiffsynthControlnet"])
def test_a_patch_of_z_image_is_given_ours(comfy, node):
    # Without it, ModelPatchLoader knows patches of Qwen-Image alone, and those want latents with a time axis.
    need(comfy, "ZImageFunControlnet")
    graph = Graph()
    model = graph("UNETLoader", unet_name="random_z_image.pt", weight_dtype="default")
    patch = graph("ModelPatchLoader", name="random_z_image_control.pt")
    text = graph("CLIPTextEncode", clip=clip(graph), text="a cat")
    probes = [sampled(graph, model, text, text)]
    for vae in both(graph, "taef1"):
        # The picture is encoded here, and while sampling once more in the size of what is sampled.
        patched = graph(node, model=model, model_patch=patch, vae=vae, image=picture(graph), strength=1.0)
        probes.append(sampled(graph, patched, text, text))
    assert_sampled_alike(comfy, graph, *probes)


def test_a_patch_of_qwen_image_is_given_ours(comfy):
    """What the patch adds to its model is looked at, without the model: its 60 blocks hold 20 billion numbers."""
    graph = Graph()
    model = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    patch = graph("ModelPatchLoader", name="random_qwen_image_control.pt")
    ours = graph("ExactVAELoader", vae_name="vae/random_qwen_image.safetensors", variant="qwen-image", dtype="fp32")
    probes = []
    for vae in (ours, graph("VAELoader", vae_name="random_qwen_image.safetensors")):
        inputs = {"model": model, "model_patch": patch, "vae": vae, "image": picture(graph), "strength": 1.0}
        patched = graph("QwenImageDiffsynthControlnet", **inputs)
        probes.append(graph("ProbePatch", model=patched, width=64, height=32))
    run = succeeded(comfy, graph, timeout_s=300)
    mine, cores = (tensors(comfy, run, probe) for probe in probes)
    assert cores["encoded"].shape == (1, 128 * 96 // 256, 3072) and cores["encoded anew"].shape == (1, 8, 3072)
    assert all(tensor.std() > 0.01 for tensor in cores.values())
    assert_equal(mine, cores)


# --- into a checkpoint --------------------------------------------------------------------------------------------------


def test_what_imageonlycheckpointsave_writes_with_ours_is_loaded_by_core(comfy):
    graph = Graph()
    model = graph("CheckpointLoaderSimple", ckpt_name="random_sd1.safetensors")
    vision = graph("CLIPVisionLoader", clip_name="random_vision.pt")
    ours, _ = both(graph, "sd1")
    graph("ImageOnlyCheckpointSave", model=model, clip_vision=vision, vae=ours, filename_prefix="image_only")
    succeeded(comfy, graph, timeout_s=300)
    (file,) = comfy.folder.rglob("image_only_*.safetensors")
    comfy.add_model("checkpoints/saved_image_only.safetensors", file)
    graph = Graph()
    ours, cores = both(graph, "sd1")
    saved = graph("CheckpointLoaderSimple", ckpt_name="saved_image_only.safetensors")
    encoded = [graph("VAEEncode", pixels=picture(graph), vae=vae) for vae in (ours, cores, [saved[0], 2])]
    probes = [graph("ProbeTensors", value=latent) for latent in encoded]
    run = succeeded(comfy, graph, timeout_s=300)
    mine, cores, loaded = (tensors(comfy, run, probe) for probe in probes)
    assert_equal(mine, cores)
    assert_equal(loaded, cores)


# --- VAEs of another kind -----------------------------------------------------------------------------------------------


OTHER_KINDS: dict[str, tuple[str, Callable[[Graph], dict[str, Any]]]] = {
    "VAEEncodeAudio": (
        "encodes pixels `b c h w` of 3 channels",
        lambda graph: {"audio": graph("EmptyAudio", duration=0.1, sample_rate=44100, channels=2)},
    ),
    "VAEDecodeAudio": (
        "decodes latents `b z h w` of 4 channels",
        lambda graph: {"samples": graph("EmptyLatentAudio", seconds=1.0, batch_size=1)},
    ),
    "VAEDecodeHunyuan3D": (
        "decodes latents `b z h w` of 4 channels",
        lambda graph: {
            "samples": graph("EmptyLatentHunyuan3Dv2", resolution=64, batch_size=1),
            "num_chunks": 1000,
            "octree_resolution": 16,
        },
    ),
}


@pytest.mark.parametrize("node", OTHER_KINDS)
def test_where_a_vae_of_another_kind_is_wanted_ours_says_what_it_takes(comfy, node):
    """ComfyUI's own image VAE says "tuple index out of range" there."""
    said_of_it, inputs = OTHER_KINDS[node]
    graph = Graph()
    ours, _ = both(graph, "sd1")
    graph("PreviewAny", source=graph(node, vae=ours, **inputs(graph)))
    run = comfy.run(graph.prompt)
    assert run.status == "error" and f"Stable Diffusion 1.x {said_of_it}" in said(run)
