"""Exact VAE Loader: what it offers of ComfyUI's folders, and what it says of a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_nets import tiny_net

from vae_core.checkpoint import save_ldm

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".sft")


@pytest.fixture
def models(exact: Any, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with a file, diffusers folders, a pipeline, a TAESD pair and a full checkpoint; ComfyUI's folders are it."""
    net = tiny_net("sdxl")
    for kind in ("vae", "vae_approx", "checkpoints"):
        (tmp_path / kind).mkdir()
    save_ldm(tmp_path / "vae" / "sdxl_vae.safetensors", dict(net.config), net.state_dict())
    save_ldm(
        tmp_path / "checkpoints" / "full.safetensors", dict(net.config), net.state_dict(), prefix="first_stage_model."
    )
    shutil.copytree(folders / "flux1", tmp_path / "vae" / "more" / "flux one")
    shutil.copytree(folders / "sdxl", tmp_path / "diffusers" / "pipeline" / "vae")
    (tmp_path / "diffusers" / "pipeline" / "model_index.json").write_text("{}")
    shutil.copytree(folders / "taesd", tmp_path / "vae_approx", dirs_exist_ok=True)
    host = exact.part("nodes.host")

    def files(kind: str) -> list[str]:
        root = tmp_path / kind
        return [p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.suffix in SUFFIXES]

    monkeypatch.setattr(host, "roots", lambda kind: [tmp_path / "elsewhere", tmp_path / kind])
    monkeypatch.setattr(host, "files", files)
    return tmp_path


NAMES = [
    "vae/sdxl_vae.safetensors",
    "vae_approx/taesd_decoder.safetensors",
    "checkpoints/full.safetensors",
    "vae/more/flux one",
    "diffusers/pipeline",
]


def test_offers_files_folders_pipelines_and_one_entry_for_a_pair(exact, models):
    assert exact.part("nodes.loader").names() == NAMES
    assert exact.nodes["ExactVAELoader"].INPUT_TYPES()["required"]["vae_name"][0] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_loads_all_that_it_offers_and_says_why(exact, models, name):
    output = exact.node("ExactVAELoader").load(name)
    vae, description = output["result"]
    told = output["ui"]["exact_vae"][0]
    assert told["kind"] == "loader" and told["why"] and description.splitlines()[1:] == told["why"]
    assert told["dtype"] == "float32"
    channels = vae.latent_channels
    assert exact.node("ExactVAEDecode").decode({"samples": torch.zeros(1, channels, 4, 4)}, vae)["result"][0].shape == (
        1,
        32,
        32,
        3,
    )


def test_a_name_that_is_not_there_gets_a_sentence(exact, models):
    node = exact.nodes["ExactVAELoader"]
    assert node.VALIDATE_INPUTS("vae/sdxl_vae.safetensors") is True
    for name in ("vae/../../etc/passwd", "vae/other.safetensors", "checkpoints"):
        said = node.VALIDATE_INPUTS(name)
        assert name in said and "vae/sdxl_vae.safetensors" in said
        with pytest.raises(Exception, match="is not in ComfyUI's model folders"):
            exact.node("ExactVAELoader").load(name)


def test_a_changed_file_is_loaded_again(exact, models):
    node, name = exact.nodes["ExactVAELoader"], "vae/sdxl_vae.safetensors"
    before = node.IS_CHANGED(name)
    assert node.IS_CHANGED(name, variant="sdxl", dtype="auto") == before
    (models / name).write_bytes((models / name).read_bytes() + b" ")
    assert node.IS_CHANGED(name) != before
    assert node.IS_CHANGED("diffusers/pipeline") != node.IS_CHANGED("vae/more/flux one")


def test_a_file_that_is_no_vae_is_refused_with_its_name(exact, models):
    (models / "vae" / "broken.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(Exception, match=r"broken\.safetensors"):
        exact.node("ExactVAELoader").load("vae/broken.safetensors")


def test_weights_in_a_chosen_format(exact, models):
    vae = exact.node("ExactVAELoader").load("vae/sdxl_vae.safetensors", dtype="bf16")["result"][0]
    assert {p.dtype for p in vae.first_stage_model.parameters()} == {torch.bfloat16}
