"""What is written is read by diffusers, by the code under test, and by nobody before it is whole."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import msgpack
import pytest
import torch
from checkpoint_files import REFERENCE, assert_same, flax_names, flux2, kl, ldm, state_of, taesd_halves, tiny
from safetensors import safe_open
from safetensors.torch import load_file

from vae_core.checkpoint import open_checkpoint, save_diffusers, save_flax, save_ldm, save_taesd_pair
from vae_core.errors import ConfigError, InputError, MissingPackageError
from vae_core.spec import KL, KL_FLUX2, TINY

CONFIG = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 16,
    "scaling_factor": 0.7,
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return state_of(kl(32, 64))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("weights", [None, "fp16"])
@pytest.mark.parametrize("limit", [None, 200_000])
def test_diffusers_loads_our_folders(tmp_path, state, safe, weights, limit):
    folder = tmp_path / "new" / "vae"
    written = save_diffusers(folder, KL, CONFIG, state, weights=weights, max_shard_bytes=limit, safe_serialization=safe)
    theirs = REFERENCE[KL].from_pretrained(folder, variant=weights, use_safetensors=safe, local_files_only=True)
    assert all(torch.equal(state[key], tensor) for key, tensor in theirs.state_dict().items())
    assert theirs.config.norm_num_groups == 16
    opened = open_checkpoint(folder, weights=weights)
    assert {name: opened.config[name] for name in CONFIG} == CONFIG
    assert_same(opened, state)
    assert set(opened.files) <= set(written) | set(folder.glob("*.index*.json"))
    assert (len(list(folder.glob("*-of-*"))) > 1) == (limit is not None)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_what_is_written_has_the_permissions_of_any_new_file(tmp_path, state):
    (tmp_path / "any").touch()
    ordinary = (tmp_path / "any").stat().st_mode
    for file in (*save_diffusers(tmp_path, KL, CONFIG, state), *save_ldm(tmp_path / "a.safetensors", CONFIG, state)):
        assert file.stat().st_mode == ordinary, file  # safetensors alone gives 0600


def test_shards_respect_the_limit(tmp_path, state):
    save_diffusers(tmp_path, KL, CONFIG, state, max_shard_bytes=200_000)
    for shard in tmp_path.glob("*-of-*"):
        tensors = load_file(shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 200_000


def test_a_rewritten_folder_holds_no_weights_that_would_be_read_instead(tmp_path, state):
    save_diffusers(tmp_path, KL, CONFIG, state, max_shard_bytes=200_000)
    save_diffusers(tmp_path, KL, CONFIG, state, weights="fp16")
    other = {key: tensor + 1 for key, tensor in state.items()}
    save_diffusers(tmp_path, KL, CONFIG, other, safe_serialization=False, overwrite=True)
    assert names(tmp_path) == [
        "config.json",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.fp16.safetensors",
    ]
    assert_same(open_checkpoint(tmp_path / "diffusion_pytorch_model.bin"), other)


@pytest.mark.parametrize("kind", ["diffusers", "ldm", "flax", "taesd"])
def test_what_is_there_is_kept_unless_told_otherwise(tmp_path, state, kind):
    small = state_of(tiny()) if kind == "taesd" else state

    def write(overwrite: bool = False) -> object:
        if kind == "diffusers":
            return save_diffusers(tmp_path, KL, CONFIG, small, overwrite=overwrite)
        if kind == "ldm":
            return save_ldm(tmp_path / "a.safetensors", CONFIG, small, overwrite=overwrite)
        if kind == "flax":
            return save_flax(tmp_path, CONFIG, small, overwrite=overwrite)
        return save_taesd_pair(tmp_path, {}, small, overwrite=overwrite)

    write()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"already"):
        write()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    write(overwrite=True)
    assert names(tmp_path) == sorted(path.name for path in before)


def test_an_interrupted_write_leaves_nothing(tmp_path, state, monkeypatch):
    from vae_core.checkpoint import save

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_diffusers(tmp_path, KL, CONFIG, state)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.ckpt"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_custom_configuration_survives_ldm(tmp_path, state, name, prefix):
    save_ldm(tmp_path / name, CONFIG, state, prefix=prefix)
    opened = open_checkpoint(tmp_path / name)
    assert opened.layout == "ldm"
    assert {key: opened.config[key] for key in CONFIG} == CONFIG
    assert_same(opened, state)


def test_ldm_names_and_shapes(tmp_path):
    model = kl(32, 32, 64, layers=2)
    state = state_of(model)
    save_ldm(tmp_path / "vae.safetensors", {"block_out_channels": (32, 32, 64)}, state)
    written, expected = load_file(tmp_path / "vae.safetensors"), ldm(state, 3)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())
    with safe_open(tmp_path / "vae.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_diffusers_converter_reads_our_ldm_file(tmp_path):
    model = kl(32, 64, layers=2)
    model.save_config(tmp_path / "config")
    save_ldm(tmp_path / "vae.safetensors", dict(model.config), state_of(model))
    theirs = REFERENCE[KL].from_single_file(
        str(tmp_path / "vae.safetensors"), config=str(tmp_path / "config"), local_files_only=True
    )
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in state_of(model).items())


def test_a_noted_variant_survives_ldm(tmp_path):
    # Written with full-size names only: 32 channels wide, so that no published row fits; the note then does no harm.
    state = state_of(kl(32, 64))
    save_ldm(tmp_path / "vae.safetensors", {"block_out_channels": (32, 64)}, state, variant="sd2")
    with safe_open(tmp_path / "vae.safetensors", "pt") as file:
        assert json.loads(file.metadata()["exact_vae"])["_variant"] == "sd2"
    assert open_checkpoint(tmp_path / "vae.safetensors").variant.name == "custom"


def test_flux2_in_the_names_of_its_makers(tmp_path):
    state = state_of(flux2(32, 64))
    save_ldm(tmp_path / "ae.safetensors", {"block_out_channels": (32, 64)}, state)
    written = load_file(tmp_path / "ae.safetensors")
    assert {"encoder.quant_conv.weight", "decoder.post_quant_conv.bias", "bn.running_var"} <= written.keys()
    assert_same(open_checkpoint(tmp_path / "ae.safetensors"), state)


def test_flux2_folder(tmp_path):
    model = flux2(32, 64, decoder_block_out_channels=(32, 32))
    save_diffusers(tmp_path, KL_FLUX2, dict(model.config), state_of(model))
    theirs = REFERENCE[KL_FLUX2].from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(theirs.bn.running_mean, model.bn.running_mean)
    assert_same(open_checkpoint(tmp_path), state_of(model))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_taesd_pair(tmp_path, suffix):
    state = state_of(tiny())
    written = save_taesd_pair(tmp_path, {}, state, name="taesdxl", suffix=suffix)
    assert [path.name for path in written] == [f"taesdxl_{half}{suffix}" for half in ("encoder", "decoder")]
    if suffix == ".safetensors":
        for path, part in zip(written, taesd_halves(state), strict=True):
            assert load_file(path).keys() == part.keys()
    for path in written:
        assert_same(open_checkpoint(path), state)


def test_taesd_without_metadata_is_what_upstream_reads(tmp_path):
    written = save_taesd_pair(tmp_path, {}, state_of(tiny()), suffix=".pth")
    loaded = torch.load(written[1], weights_only=True)
    assert "1.weight" in loaded.get("state_dict", loaded)


def test_tiny_folder(tmp_path, recwarn):
    model = tiny()
    config = {**dict(model.config), "pool_mid_blocks": False}
    save_diffusers(tmp_path, TINY, config, state_of(model))
    theirs = REFERENCE[TINY].from_pretrained(tmp_path, local_files_only=True)
    assert all(torch.equal(theirs.state_dict()[key], tensor) for key, tensor in state_of(model).items())
    assert "pool_mid_blocks" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_flax(tmp_path, state, dtype):
    cast = {key: tensor.to(dtype) for key, tensor in state.items()}
    save_flax(tmp_path, CONFIG, cast)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "FlaxAutoencoderKL"
    opened = open_checkpoint(tmp_path)
    assert opened.config["norm_num_groups"] == 16
    assert_same(opened, cast)


def test_flax_as_msgpack_itself_reads_it(tmp_path, state):
    save_flax(tmp_path, CONFIG, state)

    def leaf(code: int, payload: bytes) -> torch.Tensor:
        shape, name, raw = msgpack.unpackb(payload)
        assert code == 1 and name in (b"float32", "float32")
        return torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(shape)

    tree = msgpack.unpackb((tmp_path / "diffusion_flax_model.msgpack").read_bytes(), ext_hook=leaf, strict_map_key=True)
    for key, tensor in flax_names(state).items():
        node = tree
        for part in key.split("."):
            node = node[part]
        assert torch.equal(node, tensor), key


def test_flax_without_msgpack_writes_nothing(tmp_path, state, monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(MissingPackageError, match=r"writing Flax weights needs the package msgpack"):
        save_flax(tmp_path, CONFIG, state)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", ["quant convolutions", "batch norm", "dtype"])
def test_flax_refuses_what_its_class_cannot_hold(tmp_path, state, number):
    if number == "quant convolutions":
        state = {key: tensor for key, tensor in state.items() if not key.startswith("quant_conv")}
    elif number == "batch norm":
        state = state | {"bn.running_mean": torch.zeros(16)}
    else:
        state = {key: tensor.double() for key, tensor in state.items()}
    with pytest.raises(InputError, match="float64" if number == "dtype" else number):
        save_flax(tmp_path, CONFIG, state)
    assert names(tmp_path) == []


def test_other_refusals(tmp_path, state):
    with pytest.raises(InputError, match=r"should end in one of \.safetensors"):
        save_ldm(tmp_path / "a.gguf", CONFIG, state)
    with pytest.raises(InputError, match="has no LDM layout"):
        save_ldm(tmp_path / "a.safetensors", {}, state_of(tiny()))
    with pytest.raises(InputError, match="only AutoencoderTiny"):
        save_taesd_pair(tmp_path, CONFIG, state)
    with pytest.raises(ConfigError, match="cannot be written as JSON"):
        save_diffusers(tmp_path, KL, CONFIG | {"scaling_factor": float("nan")}, state)
    with pytest.raises(InputError, match="cannot be part of a file name"):
        save_diffusers(tmp_path, KL, CONFIG, state, weights="*")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=re.escape("the folder cannot be made")):
        save_diffusers(tmp_path / "file", KL, CONFIG, state)
    assert names(tmp_path) == ["file"]
