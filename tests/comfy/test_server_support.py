"""The support for tests of the nodes, proven on a real ComfyUI with its own nodes and none of ours."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import random_checkpoints
from comfy_server import ComfyServer, Event, Prompt, Rejected, Run
from PIL import Image, ImageStat
from safetensors.torch import load_file
from torch import Tensor

PACK_NAME = "a pack of 1 node"
PACK = """
class SupportProbe:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "probe", "run", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"words": ("STRING", {})}, "hidden": {"node_id": "UNIQUE_ID"}}

    def run(self, words, node_id):
        from server import PromptServer
        PromptServer.instance.send_progress_text(words, node_id)
        PromptServer.instance.send_sync("probe.said", {"words": words}, PromptServer.instance.client_id)
        return {"ui": {"words": [words]}}

NODE_CLASS_MAPPINGS = {"SupportProbe": SupportProbe}
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    (folder / "__init__.py").write_text(PACK)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "gradient.png"
    Image.linear_gradient("L").convert("RGB").resize((48, 32)).save(path)
    return path


@pytest.fixture(scope="module")
def server(pack, picture, sd1_checkpoint) -> Iterator[ComfyServer]:
    with ComfyServer(
        packs={PACK_NAME: pack},
        models={"checkpoints/folder of its own/sd1.safetensors": sd1_checkpoint},
        inputs={"gradient.png": picture},
        arguments=["--preview-method", "latent2rgb"],
    ) as server:
        yield server


COPY_PICTURE: Prompt = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "gradient.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copies/copy"}},
}


def text_to_image(steps: int, seed: int = 0) -> Prompt:
    """Down to a picture, and that picture encoded again: a value that is not finite would spread to all of the latent."""
    return {
        "1": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": os.path.join("folder of its own", "sd1.safetensors")},
        },
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a lighthouse"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        **decode_and_encode(samples=("4", 0), vae=("1", 2)),
    }


def decode_and_encode(samples: tuple[str, int], vae: tuple[str, int]) -> Prompt:
    return {
        "decoded": {"class_type": "VAEDecode", "inputs": {"samples": list(samples), "vae": list(vae)}},
        "picture": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "picture"}},
        "encoded": {"class_type": "VAEEncode", "inputs": {"pixels": ["decoded", 0], "vae": list(vae)}},
        "latent": {"class_type": "SaveLatent", "inputs": {"samples": ["encoded", 0], "filename_prefix": "latent"}},
    }


def saved_pictures(server: ComfyServer, run: Run, node: str) -> list[Image.Image]:
    return [Image.open(server.output(entry)) for entry in run.outputs[node]["images"]]


def saved_latent(server: ComfyServer, run: Run, node: str) -> Tensor:
    (entry,) = run.outputs[node]["latents"]
    return load_file(server.output(entry))["latent_tensor"]


def is_idle(server: ComfyServer) -> bool:
    return server.get("/queue") == {"queue_running": [], "queue_pending": []}


def test_a_workflow_runs(server, picture):
    run = server.run(COPY_PICTURE)
    assert (run.status, run.error) == ("success", None)
    (saved,) = saved_pictures(server, run, "2")
    assert saved.tobytes() == Image.open(picture).tobytes()
    assert run.executed == {"2": run.outputs["2"]}
    assert any(event.kind == "execution_start" for event in run.events)
    (entry,) = run.outputs["2"]["images"]
    view = f"/view?filename={entry['filename']}&subfolder=copies&type=output"
    assert server.get(view) == server.output(entry).read_bytes()
    assert server.run(COPY_PICTURE).cached == {"1", "2"}


def test_a_prompt_without_a_listener_runs(server):
    run = server.wait(server.queue(COPY_PICTURE))
    assert run.status == "success"
    assert run.events == ()


def test_inputs_and_models_join_a_running_server(server, picture, sd1_checkpoint):
    server.add_input("folder/later.png", picture)
    server.add_model("vae/later.safetensors", sd1_checkpoint)
    run = server.run({**COPY_PICTURE, "1": {"class_type": "LoadImage", "inputs": {"image": "folder/later.png"}}})
    assert run.status == "success", run.error
    assert "later.safetensors" in server.object_info("VAELoader")["input"]["required"]["vae_name"][0]


def test_a_prompt_is_rejected(server):
    prompt = {**COPY_PICTURE, "1": {"class_type": "LoadImage", "inputs": {"image": "nowhere.png"}}}
    with pytest.raises(Rejected, match="nowhere") as rejected:
        server.run(prompt)
    (error,) = rejected.value.answer["node_errors"]["1"]["errors"]
    assert error["type"] == "custom_validation_failed"
    with pytest.raises(Rejected, match="NoSuchNode"):
        server.queue({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_node_fails(server):
    prompt = {
        **text_to_image(steps=1),
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        **decode_and_encode(samples=("3", 0), vae=("1", 2)),
    }
    run = server.run(prompt)
    assert run.status == "error"
    assert run.error is not None
    assert (run.error["node_id"], run.error["node_type"]) == ("decoded", "VAEDecode")
    assert "channels" in run.error["exception_message"]


def test_a_picture_from_a_random_checkpoint(server):
    run = server.run(text_to_image(steps=2))
    assert run.status == "success", run.error
    (saved,) = saved_pictures(server, run, "picture")
    assert saved.size == (64, 64)
    assert ImageStat.Stat(saved.convert("L")).stddev[0] > 10, "more than one colour"
    latent = saved_latent(server, run, "latent")
    assert latent.shape == (1, 4, 8, 8)
    assert latent.isfinite().all()
    assert latent.std() > 0.1
    assert not re.search("unet missing|missing vae keys|invalid value", server.log(), re.IGNORECASE)


def test_progress_and_previews_arrive(server):
    run = server.run(text_to_image(steps=3, seed=1))
    steps = [data["value"] for data in run.of("progress") if data["node"] == "4"]
    assert steps == [1, 2, 3]
    assert any(data["nodes"].get("4", {}).get("state") == "running" for data in run.of("progress_state"))
    assert run.previews
    assert {preview.about["node_id"] for preview in run.previews} == {"4"}
    assert Image.open(io.BytesIO(run.previews[-1].picture)).format == "JPEG"


def test_a_prompt_is_interrupted(server):
    def interrupt(event: Event) -> None:
        if event.kind == "progress" and event.data["value"] == 2:
            server.interrupt()

    run = server.run(text_to_image(steps=10_000), on_event=interrupt)
    assert run.status == "interrupted"
    assert run.outputs == {}
    assert max(data["value"] for data in run.of("progress")) < 1000
    assert server.run(COPY_PICTURE).status == "success"


def test_what_takes_too_long_is_stopped(server):
    with pytest.raises(TimeoutError, match="did not end in time"):
        server.run(text_to_image(steps=10_000, seed=2), timeout_s=3)
    deadline = time.monotonic() + 30
    while not is_idle(server) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_idle(server)


def test_a_pack_in_a_folder_of_any_name(server, pack):
    assert server.object_info("SupportProbe")["python_module"] == f"custom_nodes.{PACK_NAME}"
    run = server.run({"1": {"class_type": "SupportProbe", "inputs": {"words": "Grüße"}}})
    assert run.executed == run.outputs == {"1": {"words": ["Grüße"]}}
    assert run.of("progress_text") == [{"node": "1", "text": "Grüße"}]
    assert run.of("probe.said") == [{"words": "Grüße"}]
    assert [file.name for file in pack.rglob("*")] == ["__init__.py"], "the server writes nothing into the pack"


def test_settings_are_kept(server):
    assert server.post("/settings/Probe.Switch", False) == (200, None)
    assert server.get("/settings")["Probe.Switch"] is False


@pytest.mark.parametrize(
    ("make", "empty", "latent_shape", "picture_size"),
    [
        ("sd1_vae", "EmptyLatentImage", (1, 4, 8, 8), (64, 64)),
        ("foreign_vae", "EmptyLatentImage", (1, 4, 8, 8), (32, 32)),
        ("foreign_video_vae", "EmptyHunyuanLatentVideo", (1, 16, 2, 8, 8), (64, 64)),
    ],
)
def test_random_vaes_decode_and_encode(server, request, make, empty, latent_shape, picture_size):
    server.add_model(f"vae/{make}.safetensors", request.getfixturevalue(make))
    frames = {"length": 5} if len(latent_shape) == 5 else {}
    run = server.run(
        {
            "1": {"class_type": "VAELoader", "inputs": {"vae_name": f"{make}.safetensors"}},
            "2": {"class_type": empty, "inputs": {"width": 64, "height": 64, "batch_size": 1, **frames}},
            **decode_and_encode(samples=("2", 0), vae=("1", 0)),
        }
    )
    assert run.status == "success", run.error
    pictures = saved_pictures(server, run, "picture")
    assert [saved.size for saved in pictures] == [picture_size] * frames.get("length", 1)
    latent = saved_latent(server, run, "latent")
    assert latent.shape == latent_shape
    assert latent.isfinite().all()
    assert "Missing VAE keys" not in server.log()


def test_the_same_seed_gives_the_same_file(tmp_path):
    files = [tmp_path / name for name in ("one", "same", "other")]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        random_checkpoints.foreign_vae(file, seed)
    one, same, other = (file.read_bytes() for file in files)
    assert one == same
    assert one != other


def test_the_session_s_server_has_the_published_weights(comfy, taesd_weights):
    assert (taesd_weights / "taesd_decoder.safetensors").is_file()
    run = comfy.run(
        {
            "1": {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}},
            "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            **decode_and_encode(samples=("2", 0), vae=("1", 0)),
        }
    )
    assert run.status == "success", run.error
    assert saved_latent(comfy, run, "latent").isfinite().all()


def fake_comfyui(folder: Path, code: str) -> Path:
    (folder / "main.py").write_text(code)
    return folder


def test_a_server_that_does_not_start_says_why(tmp_path, pack):
    broken = fake_comfyui(tmp_path, "import sys; sys.exit('no such thing as a start')")
    with pytest.raises(RuntimeError, match="no such thing as a start"), ComfyServer(comfyui=broken):
        pass


def test_a_copied_pack_has_no_hidden_files(tmp_path, pack):
    (tmp_path / "pack" / ".git").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text(PACK)
    listing = fake_comfyui(
        tmp_path, "import os, sys; sys.exit(repr(os.listdir(sys.argv[6] + '/custom_nodes/any.name')))"
    )
    with (
        pytest.raises(RuntimeError, match=r"\n\['__init__.py'\]"),
        ComfyServer(packs={"any.name": tmp_path / "pack"}, copy_packs=True, comfyui=listing),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_server_ends_with_its_parent(tmp_path):
    waits = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    starts = "import pathlib, sys, comfy_server as c; c.ComfyServer(comfyui=pathlib.Path(sys.argv[1])).__enter__()"
    folder = fake_comfyui(tmp_path, waits)
    support = {"PYTHONPATH": str(Path(random_checkpoints.__file__).parent), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", starts, str(folder)], env=os.environ | support)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child = Path("/proc", (tmp_path / "pid").read_text())
    while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
