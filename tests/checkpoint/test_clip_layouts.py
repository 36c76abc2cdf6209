"""Layouts of a video VAE: files and folders of each kind, opened, and every tensor compared with the network it came from."""

from __future__ import annotations

import pytest
import random_checkpoints
import torch
from checkpoint_files import assert_same, save
from clip_networks import on_meta, small, spelled
from safetensors.torch import load_file

from vae_core.checkpoint import assign, open_checkpoint, open_state_dict
from vae_core.checkpoint.keymaps import COGVIDEOX_ORIGINAL, WAN_ORIGINAL
from vae_core.spec import COGVIDEOX, QWEN, WAN

ORIGINAL = {WAN: WAN_ORIGINAL, COGVIDEOX: COGVIDEOX_ORIGINAL}


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "model."])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("name", [WAN, COGVIDEOX])
def test_single_files(tmp_path, name, layout, prefix):
    state = small(name)
    stored = spelled(ORIGINAL[name], state) if layout == "original" else state
    file = save(tmp_path / "x.safetensors", {f"{prefix}{key}": tensor for key, tensor in stored.items()})
    opened = open_checkpoint(file)
    assert opened.layout == layout and opened.variant.network == name and opened.ignored == {}
    assert_same(opened, state)
    target = on_meta(name, opened.config)
    assign(target, opened)
    assert all(torch.equal(tensor, state[key]) for key, tensor in target.state_dict().items())


@pytest.mark.parametrize("nesting", [None, "state_dict"])
@pytest.mark.parametrize("name, file", [(WAN, "Wan2.1_VAE.pth"), (COGVIDEOX, "3d-vae.pt")])
def test_the_makers_own_files(tmp_path, name, file, nesting):
    state = small(name)
    stored = spelled(ORIGINAL[name], state)
    if name == COGVIDEOX:
        stored |= {"loss.logvar": torch.zeros(()), "loss.discriminator.blocks.0.0.conv_res.weight": torch.zeros(2, 3)}
    torch.save({nesting: stored} if nesting else stored, tmp_path / file)
    opened = open_checkpoint(tmp_path / file)
    assert set(opened.ignored.values()) == ({"part of the training loss"} if name == COGVIDEOX else set())
    assert_same(opened, state)


def test_the_vae_of_a_full_checkpoint(tmp_path):
    state = small(WAN)
    stored = {f"vae.{key}": tensor for key, tensor in spelled(WAN_ORIGINAL, state).items()}
    others = {
        "model.diffusion_model.blocks.0.self_attn.q.weight": torch.zeros(4, 4),
        "text_encoders.umt5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4),
    }
    opened = open_checkpoint(save(tmp_path / "all_in_one.safetensors", stored | others))
    assert opened.layout == "original in a full checkpoint" and set(opened.ignored) == {"model.*", "text_encoders.*"}
    assert_same(opened, state)


@pytest.mark.parametrize("kind", ["wan", "qwen", "cogvideox"])
def test_random_folders(tmp_path, kind):
    write = getattr(random_checkpoints, f"{kind}_folder")
    write(tmp_path / "vae", seed=3)
    opened = open_checkpoint(tmp_path / "vae")
    name = {"wan": WAN, "qwen": QWEN, "cogvideox": COGVIDEOX}[kind]
    assert opened.layout == "diffusers folder" and opened.variant.network == name
    assert not any("does not take" in reason for reason in opened.why)
    assign(on_meta(name, opened.config), opened)
    write(tmp_path / "again", seed=3)
    assert_same(opened, load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("name", ["wan.safetensors", "cog.safetensors", "3d-vae.pt"])
def test_random_files(tmp_path, name):
    (random_checkpoints.wan_vae if name.startswith("wan") else random_checkpoints.cogvideox_vae)(tmp_path / name)
    opened = open_checkpoint(tmp_path / name)
    assert opened.layout == "original" and opened.dtype is torch.float16
    assign(on_meta(opened.variant.network, opened.config), opened)


def test_tensors_in_memory():
    state = small(COGVIDEOX)
    opened = open_state_dict(lambda: spelled(COGVIDEOX_ORIGINAL, state), "the VAE of this checkpoint")
    assert_same(opened, state)
