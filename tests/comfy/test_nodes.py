"""The nodes on a real ComfyUI: what they make, how they stop and fail, and what they say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import ComfyServer, Event, Rejected
from graphs import Graph, kept, saved_latent, succeeded, told
from PIL import Image
from safetensors import safe_open
from skimage import data

import vae_core

NODES = {
    "ExactVAELoader": "Exact VAE Loader",
    "ExactVAEDecode": "VAE Decode (Exact)",
    "ExactVAEEncode": "VAE Encode (Exact)",
    "ExactVAEDecodeTiled": "VAE Decode Tiled (Exact)",
    "ExactVAEEncodeTiled": "VAE Encode Tiled (Exact)",
    "ExactVAEPlan": "VAE Plan",
    "ExactVAEVideoDecode": "Video Decode (Exact)",
    "ExactVAEVideoEncode": "Video Encode (Exact)",
}

EQUAL = 1e-5
"""Of pictures in [0, 1], float32: the same operations in another order."""

pytestmark = pytest.mark.usefixtures("taesd_weights")


@pytest.fixture(scope="module", autouse=True)
def pictures(comfy: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in (("cat.png", (448, 296)), ("odd.png", (203, 301)), ("large.png", (1536, 1024))):
        Image.fromarray(data.chelsea()).resize(size).save(folder / name)
        comfy.add_input(name, folder / name)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_is_imported_without_a_complaint(comfy):
    log = comfy.log()
    assert "IMPORT FAILED" not in log and "Cannot import" not in log
    assert "Traceback" not in log.partition("Starting server")[0]


@pytest.mark.parametrize("node", NODES)
def test_every_node_appears_with_its_texts(comfy, node):
    info = comfy.object_info(node)
    assert info["display_name"] == NODES[node] and info["description"] and info["category"] == "latent/exact vae"
    for inputs in (info["input"].get("required", {}), info["input"].get("optional", {})):
        assert all(spec[1]["tooltip"] for spec in inputs.values())
    assert info["python_module"] == "custom_nodes.exact-vae"
    for language in ("en", "zh"):
        assert comfy.get(f"/extensions/exact-vae/docs/{node}/{language}.md")


def test_translations_templates_and_browser_files_are_served(comfy):
    assert {"en", "zh"} <= comfy.get("/i18n").keys()
    assert set(NODES) <= comfy.get("/i18n")["zh"]["nodeDefs"].keys()
    assert len(comfy.get("/workflow_templates")["exact-vae"]) == 8
    assert "/extensions/exact-vae/main.js" in comfy.get("/extensions")


def test_streamed_equals_whole_and_the_picture_is_the_picture(comfy, taesd_weights: Path):
    graph = Graph()
    # In float32: left to itself, it is in bfloat16 where the CPU has it.
    vae, image = graph.tiny(dtype="fp32"), graph("LoadImage", image="cat.png")
    latent = graph("ExactVAEEncode", pixels=image, vae=vae)
    tiled = graph("ExactVAEEncodeTiled", pixels=image, vae=vae, tile_size=64)
    by_default = graph("ExactVAEDecode", samples=latent, vae=vae)
    streamed = graph("ExactVAEDecode", samples=tiled, vae=vae, memory_limit="40MiB")
    in_tiles = graph("ExactVAEDecodeTiled", samples=latent, vae=vae, tile_size=128)
    ids = [graph.keep(link) for link in (image, by_default, streamed, in_tiles)]
    run = succeeded(comfy, graph)
    original, *decoded = (kept(comfy, run, name) for name in ids)
    assert told(run, streamed)["tiles"] and told(run, streamed)["exact"]
    whole = whole_round_trip(taesd_weights / "taesd_decoder.safetensors", original)
    assert all((picture - whole).abs().max() < EQUAL for picture in decoded)
    assert psnr(whole, original) > 24, "TAESD's round trip of this photograph is 27 dB at full size"


def whole_round_trip(file: Path, images: torch.Tensor) -> torch.Tensor:
    """Encoded and decoded without a tile, and without ComfyUI; `b h w c` in [0, 1]."""
    vae = vae_core.load(file, dtype=torch.float32)
    latents = vae.encode(images.movedim(-1, 1) * 2 - 1, mode="whole")
    return (vae.decode(latents, mode="whole").movedim(1, -1) + 1) / 2


def test_padding_gives_the_size_back(comfy):
    graph = Graph()
    vae, image = graph.tiny(), graph("LoadImage", image="odd.png")
    latent = graph("ExactVAEEncode", pixels=image, vae=vae, fit="pad")
    decoded = graph("ExactVAEDecode", samples=latent, vae=vae)
    ids = [graph.keep(image), graph.keep(decoded)]
    run = succeeded(comfy, graph)
    original, again = (kept(comfy, run, name) for name in ids)
    assert original.shape == again.shape == (1, 301, 203, 3) and psnr(again, original) > 20
    assert told(run, latent)["notes"] == ["padded from 203×301 to 208×304"]


def test_the_loader_says_what_it_recognised(comfy):
    graph = Graph()
    # Said to be what it is, so that the loader is run anew and not answered from the cache.
    vae = graph("ExactVAELoader", vae_name="vae_approx/taesd_decoder.safetensors", variant="taesd")
    text = graph("PreviewAny", source=[vae[0], 1])
    run = succeeded(comfy, graph)
    assert "TAESD" in run.outputs[text[0]]["text"][0] and told(run, vae)["layout"] == "taesd pair"


def test_a_plan_runs_nothing_and_shows_its_rungs(comfy):
    graph = Graph()
    plan = graph("ExactVAEPlan", vae=graph.tiny(), width=4096, height=2048, memory_limit="1")
    run = succeeded(comfy, graph)
    rungs = told(run, plan)["rungs"]
    assert [rung["name"] for rung in rungs if rung["chosen"]] == ["depth first"] and not rungs[0]["fits"]


def test_progress_and_previews_are_sent_while_it_runs(comfy):
    graph = Graph()
    vae = graph.tiny()
    latent = graph("ExactVAEEncode", pixels=graph("LoadImage", image="large.png"), vae=vae)
    decoded = graph("ExactVAEDecode", samples=latent, vae=vae, memory_limit="100MiB")
    graph("PreviewImage", images=decoded)
    run = succeeded(comfy, graph)
    progress = [event for event in run.of("exact_vae.progress") if event["node"] == decoded[0]]
    shares = [event["done"] for event in progress]
    assert len(shares) > 3 and shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)
    assert progress[0]["seconds_left"] is None and progress[-1]["seconds_left"] == 0
    assert {event["what"] for event in progress[1:-1]} == {"depth first"} and all(e["pass"] for e in progress[1:-1])
    assert len(run.previews) > 2 and all(p.picture[:3] == b"\xff\xd8\xff" for p in run.previews)


@pytest.mark.parametrize(
    ("name", "how", "rung"), [("odd.png", {}, "whole"), ("cat.png", {"tile_size": 128}, "streamed")]
)
def test_the_last_preview_is_the_picture(comfy, name: str, how: dict, rung: str):
    graph = Graph()
    vae = graph.tiny()
    latent = graph("ExactVAEEncode", pixels=graph("LoadImage", image=name), vae=vae)
    node = "ExactVAEDecodeTiled" if how else "ExactVAEDecode"
    decoded = graph(node, samples=latent, vae=vae, memory_limit="2", **how)
    image = graph.keep(decoded)
    run = succeeded(comfy, graph)
    made = kept(comfy, run, image)[0]
    shown = Image.open(io.BytesIO(run.previews[-1].picture)).resize((made.shape[1], made.shape[0]))
    assert told(run, decoded)["rung"] == rung
    # ComfyUI enlarges previews to 512 px and stores them as JPEG.
    assert psnr(torch.from_numpy(np.asarray(shown) / 255), made) > 25


def test_previews_can_be_switched_off(comfy):
    comfy.post("/settings/ExactVAE.Preview", False)
    try:
        graph = Graph()
        vae = graph.tiny()
        latent = graph("EmptyLatentImage", width=512, height=520, batch_size=1)
        graph.keep(graph("ExactVAEDecode", samples=latent, vae=vae))
        assert succeeded(comfy, graph).previews == []
    finally:
        comfy.post("/settings/ExactVAE.Preview", True)


def test_an_interrupt_ends_it_within_a_tile_and_the_next_run_works(comfy):
    graph = Graph()
    vae = graph.tiny()
    latent = graph("EmptyLatentImage", width=4096, height=4096, batch_size=1)
    decoded = graph("ExactVAEDecodeTiled", samples=latent, vae=vae, tile_size=256)
    graph.keep(decoded)
    after: list[float] = []

    def stop(event: Event) -> None:
        if event.kind == "exact_vae.progress":
            if not after:
                comfy.interrupt()
            after.append(event.data["done"])

    run = comfy.run(graph.prompt, timeout_s=300, on_event=stop)
    assert run.status == "interrupted" and after[-1] < 0.5
    # The node looks for an interrupt after each of its 256 tiles, and tells the browser no more often.
    assert len(after) <= 4
    small = Graph()
    vae = small.tiny()
    small.keep(small("ExactVAEDecode", samples=small("EmptyLatentImage", width=64, height=72, batch_size=1), vae=vae))
    succeeded(comfy, small)


def test_a_decode_that_fails_saves_its_latents(comfy):
    graph = Graph()
    vae = graph.tiny(dtype="fp32")
    latent = graph("ExactVAEEncode", pixels=graph("LoadImage", image="cat.png"), vae=vae)
    whole = graph.keep(graph("ExactVAEDecode", samples=latent, vae=vae))
    expected = kept(comfy, succeeded(comfy, graph), whole)
    graph.keep(graph("ExactVAEDecode", samples=latent, vae=vae, memory_limit="1MiB"))
    run = comfy.run(graph.prompt)
    assert run.status == "error" and run.error["exception_type"].endswith("BudgetError")
    assert "needs" in run.error["exception_message"]
    file = saved_latent(run)
    assert file.parent.name == "latents"
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["prompt"]).keys() == graph.prompt.keys()
    comfy.add_input("rescued.latent", file)
    again = Graph()
    decoded = again.keep(
        again("ExactVAEDecode", samples=again("LoadLatent", latent="rescued.latent"), vae=again.tiny(dtype="fp32"))
    )
    assert (kept(comfy, succeeded(comfy, again), decoded) - expected).abs().max() < EQUAL


def test_latents_of_another_model_get_a_sentence(comfy):
    graph = Graph()
    latent = graph("EmptySD3LatentImage", width=256, height=256, batch_size=1)
    graph.keep(graph("ExactVAEDecode", samples=latent, vae=graph.tiny()))
    run = comfy.run(graph.prompt)
    assert run.status == "error" and "has 16, as latents of Stable Diffusion 3" in run.error["exception_message"]


@pytest.mark.parametrize(
    ("node", "inputs", "sentence"),
    [
        ("ExactVAEDecode", {"memory_limit": "lots"}, "'lots' is not understood; write auto"),
        ("ExactVAEDecode", {"precision": "fp8"}, "fp8"),
        ("ExactVAEDecodeTiled", {"tile_size": 8}, "8"),
    ],
)
def test_wrong_values_are_the_hosts_400(comfy, node, inputs, sentence):
    graph = Graph()
    latent = graph("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph.keep(graph(node, samples=latent, vae=graph.tiny(), **{"tile_size": 64} | inputs))
    with pytest.raises(Rejected) as rejected:
        comfy.queue(graph.prompt)
    assert sentence in json.dumps(rejected.value.answer, ensure_ascii=False)


def test_a_file_that_is_not_there_is_the_hosts_400_with_the_names_that_are(comfy):
    graph = Graph()
    latent = graph("EmptyLatentImage", width=64, height=64, batch_size=1)
    vae = graph("ExactVAELoader", vae_name="vae/gone.safetensors")
    graph.keep(graph("ExactVAEDecode", samples=latent, vae=vae))
    with pytest.raises(Rejected) as rejected:
        comfy.queue(graph.prompt)
    answer = json.dumps(rejected.value.answer)
    assert "vae/gone.safetensors" in answer and "vae_approx/taesd_decoder.safetensors" in answer


def test_flags_copies_and_other_names(taesd_weights: Path):
    """A copied pack in a folder of another name, beside a copy of itself under a third, with flags that concern it."""
    root, probe = Path(__file__).resolve().parents[2], Path(__file__).parent / "probe"
    models = {f"vae_approx/{file.name}": file for file in taesd_weights.iterdir()}
    with ComfyServer(
        packs={"Exact VAE (mine)": root, "probe": probe},
        models=models,
        copy_packs=True,
        arguments=["--bf16-vae", "--cache-none", "--disable-metadata"],
    ) as server:
        assert server.object_info("ExactVAEPlan")["python_module"] == "custom_nodes.Exact VAE (mine)"
        graph = Graph()
        vae = graph.tiny()
        latent = graph("EmptyLatentImage", width=64, height=64, batch_size=1)
        decoded = graph("ExactVAEDecode", samples=latent, vae=vae)
        image = graph.keep(decoded)
        run = succeeded(server, graph)
        assert told(run, vae)["dtype"] == told(run, decoded)["dtype"] == "bfloat16"
        assert torch.isfinite(kept(server, run, image)).all()
        graph.keep(graph("ExactVAEDecode", samples=latent, vae=vae, memory_limit="1MiB"))
        with safe_open(saved_latent(server.run(graph.prompt)), framework="pt") as opened:
            assert not opened.metadata()
