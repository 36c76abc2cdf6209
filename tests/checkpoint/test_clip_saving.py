"""Saving a video VAE: what is written is read by diffusers and by us, in the names that the makers and ComfyUI know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import random_checkpoints
import torch
from checkpoint_files import REFERENCE, assert_same, build, save
from clip_networks import small, spelled
from safetensors import safe_open
from safetensors.torch import load_file

from vae_core.checkpoint import (
    comfyui_names,
    open_checkpoint,
    save_diffusers,
    save_flax,
    save_ldm,
    save_taesd_pair,
)
from vae_core.checkpoint.keymaps import COGVIDEOX_ORIGINAL, WAN_ORIGINAL
from vae_core.errors import InputError
from vae_core.spec import COGVIDEOX, QWEN, WAN


@pytest.mark.parametrize("name", [WAN, QWEN, COGVIDEOX])
def test_diffusers_loads_our_folders(tmp_path, name, caplog):
    state = small(name, **({"input_channels": 4} if name == QWEN else {}))
    config = dict(open_checkpoint(save(tmp_path / "x.safetensors", state), network=name).config)
    save_diffusers(tmp_path / "vae", name, config, state)
    written = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert written["_class_name"] == name and "clip_output" not in written
    theirs = REFERENCE[name].from_pretrained(tmp_path / "vae", local_files_only=True)
    assert "not expected" not in caplog.text
    assert all(torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items())
    again = open_checkpoint(tmp_path / "vae")
    assert again.variant.network == name and dict(again.config) == config
    assert_same(again, state)


@pytest.mark.parametrize("file", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("name", [WAN, QWEN, COGVIDEOX])
def test_one_file_in_the_names_of_the_makers(tmp_path, name, file):
    state = small(name)
    keymap = COGVIDEOX_ORIGINAL if name == COGVIDEOX else WAN_ORIGINAL
    config = {"norm_eps": 1e-5} if name == COGVIDEOX else {"latents_std": (2.0,) * 16}
    config |= {"input_channels": 3} if name == QWEN else {}
    save_ldm(tmp_path / file, config, state)
    opened = open_checkpoint(tmp_path / file)
    assert opened.layout == "original" and opened.variant.network == name
    assert {key: opened.config[key] for key in config} == config
    assert_same(opened, state)
    if file.endswith(".safetensors"):
        assert load_file(tmp_path / file).keys() == spelled(keymap, state).keys()
        with safe_open(tmp_path / file, "pt") as written:
            assert json.loads(written.metadata()["exact_vae"])["_class_name"] == name


def test_diffusers_converter_reads_our_file_of_wan(tmp_path):
    state = small(WAN)
    save_ldm(tmp_path / "wan.safetensors", None, state)
    build(WAN, {"base_dim": 8}).save_config(tmp_path / "config")
    theirs = REFERENCE[WAN].from_single_file(
        str(tmp_path / "wan.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    assert all(torch.equal(tensor, state[key]) for key, tensor in theirs.state_dict().items())


def test_names_for_comfyui():
    wan, cogvideox = small(WAN), small(COGVIDEOX)
    assert comfyui_names(wan).keys() == random_checkpoints._wan(8).keys()
    assert comfyui_names(cogvideox).keys() == cogvideox.keys()


@pytest.mark.parametrize("name", [WAN, COGVIDEOX])
def test_layouts_that_a_clip_has_not(tmp_path, name):
    with pytest.raises(InputError, match="FlaxAutoencoderKL is for pictures"):
        save_flax(tmp_path, {}, small(name))
    with pytest.raises(InputError, match="only AutoencoderTiny"):
        save_taesd_pair(tmp_path, {}, small(name))
    assert not any(Path(tmp_path).iterdir())
