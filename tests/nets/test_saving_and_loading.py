"""`from_pretrained`, `from_single_file`, `save_pretrained` and `save_flax` of the model classes, and `vae_core.load`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_nets import tiny_net

import vae_core
from vae_core import checkpoint


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd", "taef2"])
@pytest.mark.parametrize("how", [{}, {"max_shard_size": 100_000}, {"safe_serialization": False}, {"variant": "fp16"}])
def test_a_folder_comes_back(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    net: Any = tiny_net(name)
    net.save_pretrained(tmp_path / "vae", **how)
    again = type(net).from_pretrained(tmp_path, subfolder="vae", variant=how.get("variant"))
    assert_same_weights(net, again)
    assert again.config == net.config
    assert not again.training


@pytest.mark.parametrize("name", ["sdxl", "flux1", "flux2", "taesd"])
def test_diffusers_reads_what_we_write_and_we_what_it_writes(name: str, tmp_path: Path) -> None:
    net: Any = tiny_net(name)
    net.save_pretrained(tmp_path / "ours")
    theirs = getattr(diffusers, net.network).from_pretrained(tmp_path / "ours")
    assert_same_weights(net, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_weights(net, type(net).from_pretrained(tmp_path / "theirs"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    net: Any = tiny_net("sdxl")
    net.save_pretrained(tmp_path)
    assert vae_core.AutoencoderKL.from_pretrained(tmp_path, torch_dtype=dtype).dtype == dtype
    assert vae_core.load(tmp_path, dtype=dtype).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_flax_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    net: Any = tiny_net("sd1", dtype)
    net.save_flax(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "FlaxAutoencoderKL"
    again = vae_core.AutoencoderKL.from_pretrained(tmp_path, torch_dtype=dtype)
    assert_same_weights(net, again)
    z = torch.randn(1, 4, 5, 6, dtype=dtype)
    with torch.inference_mode():
        assert torch.equal(again.decode(z).sample, net.decode(z).sample)


def test_a_single_file_and_overridden_fields(tmp_path: Path) -> None:
    net: Any = tiny_net("sdxl")
    checkpoint.save_ldm(tmp_path / "vae.safetensors", dict(net.config), net.state_dict())
    again = vae_core.AutoencoderKL.from_single_file(tmp_path / "vae.safetensors", scaling_factor=0.25)
    assert_same_weights(net, again)
    assert again.config.scaling_factor == 0.25


def test_the_wrong_class_is_named(tmp_path: Path) -> None:
    net: Any = tiny_net("taesd")
    net.save_pretrained(tmp_path)
    with pytest.raises(vae_core.InputError, match=r"AutoencoderTiny; load it with vae_core\.AutoencoderTiny"):
        vae_core.AutoencoderKL.from_pretrained(tmp_path)


def test_loading_gives_the_variant_that_is_asked_for(tmp_path: Path) -> None:
    net = vae_core.AutoencoderKL(**vae_core.VARIANTS["sd1"].config, force_upcast=True)
    checkpoint.save_ldm(tmp_path / "x.safetensors", None, net.state_dict())
    vae = vae_core.load(tmp_path / "x.safetensors", variant="sd1")
    assert vae.spec.name == "sd1" and vae.spec.scaling_factor == 0.18215
    vae = vae_core.load(tmp_path / "x.safetensors")
    assert vae.spec.name == "sdxl" and vae.checkpoint is not None
    assert {"sd1", "sd2", "sdxl"} <= set(vae.checkpoint.candidates)
