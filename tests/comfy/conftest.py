"""Tests against a real ComfyUI, marked `comfy` without being told so. Run them in one process, or each starts a server:

COMFYUI_PATH=… COMFYUI_PYTHON=… python -m pytest -n0 tests/comfy
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import random_checkpoints
from comfy_server import ComfyServer
from videos import write_inputs, write_models

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WEIGHTS = ROOT.parent / "shared" / "weights"


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfy)
            if "COMFYUI_PATH" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="COMFYUI_PATH does not name a ComfyUI checkout"))


@pytest.fixture(scope="session")
def comfy() -> Iterator[ComfyServer]:
    """A server with this checkout as a pack and, where they are beside it, the published weights of TAESD."""
    models = {file.relative_to(WEIGHTS).as_posix(): file for file in WEIGHTS.glob("vae_approx/*.safetensors")}
    with ComfyServer(packs={"exact-vae": ROOT, "probe": HERE / "probe"}, models=models) as server:
        yield server


@pytest.fixture(scope="session")
def taesd_weights() -> Path:
    """The folder of the published TAESD and TAESDXL files, which the `comfy` server lists under vae_approx."""
    folder = WEIGHTS / "vae_approx"
    if not folder.is_dir():
        pytest.skip(f"the published weights are not in {folder}")
    return folder


@pytest.fixture(scope="session")
def random_folder() -> Iterator[Path]:
    # Not pytest's tmp_path, which keeps the files of the last three sessions.
    with tempfile.TemporaryDirectory(prefix="random-checkpoints-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def sd1_checkpoint(random_folder: Path) -> Path:
    path = random_folder / "random_sd1_checkpoint.safetensors"
    random_checkpoints.sd1_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def sd1_vae(random_folder: Path) -> Path:
    path = random_folder / "random_sd1_vae.safetensors"
    random_checkpoints.sd1_vae(path)
    return path


@pytest.fixture(scope="session")
def foreign_vae(random_folder: Path) -> Path:
    path = random_folder / "random_stage_a.safetensors"
    random_checkpoints.foreign_vae(path)
    return path


@pytest.fixture(scope="session")
def foreign_video_vae(random_folder: Path) -> Path:
    path = random_folder / "random_wan_vae.safetensors"
    random_checkpoints.foreign_video_vae(path)
    return path


@pytest.fixture(scope="session")
def wan_vae(random_folder: Path) -> Path:
    """Wan 2.1's, as narrow as this ComfyUI loads it: of old it took every one for the published width."""
    reads_width = 'sd["decoder.head.0.gamma"]' in (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd.py").read_text()
    path = random_folder / "wan_2.1_vae.safetensors"
    random_checkpoints.wan_vae(path, seed=1, width=8 if reads_width else 96)
    return path


@pytest.fixture(scope="session")
def video_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def video_models(random_folder: Path) -> Path:
    write_models(random_folder)
    return random_folder


@pytest.fixture(scope="module")
def video_files(
    comfy: ComfyServer,
    video_inputs: Path,
    video_models: Path,
    wan_vae: Path,
    foreign_video_vae: Path,
    sd1_checkpoint: Path,
) -> None:
    """What the tests of video need, in ComfyUI's folders; each module links its own, as others have a small_cat.png too."""
    for name in ("clip.mp4", "small_cat.png"):
        comfy.add_input(name, video_inputs / name)
    comfy.add_model("checkpoints/random_sd1.safetensors", sd1_checkpoint)
    comfy.add_model("vae/random_wan_21.safetensors", wan_vae)
    for name in ("wan_2.1_vae", "qwen_image_vae"):
        comfy.add_model(f"vae/{name}.safetensors", foreign_video_vae)
    for name in ("random_ltx.pt", "small_wan.safetensors", "small_cogvideox.safetensors"):
        comfy.add_model(f"vae/{name}", video_models / name)
    for name in ("small_cogvideox_folder", "small_qwen_layered"):
        comfy.add_model(f"diffusers/{name}", video_models / name)
