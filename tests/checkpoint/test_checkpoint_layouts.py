"""Each layout: a file written in it, opened, and every tensor compared with the network it came from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from checkpoint_files import (
    assert_same,
    build,
    flax_names,
    flux2,
    kl,
    ldm,
    old_attention,
    save,
    state_of,
    taesd_halves,
    tiny,
)

from vae_core.checkpoint import assign, open_checkpoint
from vae_core.errors import CheckpointError, MissingPackageError
from vae_core.spec import KL, KL_FLUX2, TINY

SHAPES = {
    "two levels": ((32, 64), 1),
    "three levels": ((32, 32, 64), 2),
    "four levels": ((32, 64, 64, 64), 2),
}


def in_pipeline(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """A full checkpoint: the VAE under a prefix, beside parts of other networks and a scalar."""
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
        "model.diffusion_model.out.2.bias": torch.zeros(4),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.zeros(8),
        "alphas_cumprod": torch.zeros(10),
    }
    return others | {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize("widths, layers", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("projection", ["conv2d", "conv1d", "linear"])
def test_ldm(tmp_path, widths, layers, projection):
    state = state_of(kl(*widths, layers=layers))
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", ldm(state, len(widths), projection)))
    assert opened.layout == "ldm" and opened.ignored == {}
    assert opened.config["block_out_channels"] == widths and opened.config["layers_per_block"] == layers
    assert_same(opened, state)
    assert build(KL, opened.config).state_dict().keys() == state.keys()


@pytest.mark.parametrize("widths, layers", SHAPES.values(), ids=SHAPES)
def test_diffusers_single_file(tmp_path, widths, layers):
    state = state_of(kl(*widths, layers=layers))
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", state))
    assert opened.layout == "diffusers"
    assert_same(opened, state)
    assert_same(open_checkpoint(save(tmp_path / "old.safetensors", old_attention(state))), state)


def test_config_fields_that_shapes_show(tmp_path):
    fields = {
        "in_channels": 4,
        "out_channels": 1,
        "latent_channels": 6,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
    }
    state = state_of(kl(32, 64, **fields))
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", ldm(state, 2)))
    assert {name: opened.config[name] for name in fields} == fields
    assert opened.config["scaling_factor"] == 0.18215 and opened.config["norm_num_groups"] == 32
    assert opened.variant.name == "custom" and opened.variant.network == KL
    assert_same(opened, state)


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "model.first_stage_model."])
def test_only_the_vae_of_a_full_checkpoint_is_read(tmp_path, prefix):
    state = state_of(kl(32, 64))
    inside = ldm(state, 2) | {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    opened = open_checkpoint(save(tmp_path / "sd.safetensors", in_pipeline(inside, prefix)))
    assert opened.layout == "ldm in a full checkpoint"
    assert opened.ignored[f"{prefix}loss.logvar"] == "part of the training loss"
    assert opened.ignored["cond_stage_model.*"] == "another part of the checkpoint (tensors: 1)"
    assert_same(opened, state)


def test_the_prefix_vae_wins_over_first_stage_model(tmp_path):
    # As in diffusers, load_single_file: convert_ldm_vae_checkpoint.
    first, second = state_of(kl(32, 64)), state_of(kl(32, 32, 64))
    both = {f"first_stage_model.{key}": t for key, t in ldm(first, 2).items()}
    both |= {f"vae.{key}": t for key, t in ldm(second, 3).items()}
    assert_same(open_checkpoint(save(tmp_path / "both.safetensors", both)), second)


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.pth", "a.bin", "misnamed.safetensors"])
@pytest.mark.parametrize("nesting", [(), ("state_dict",), ("model",), ("module", "state_dict"), ("anything",)])
def test_torch_archives(tmp_path, name, nesting):
    state = state_of(kl(32, 64))
    content = ldm(state, 2)
    for key in reversed(nesting):
        content = {key: content, "epoch": 3} if key != "anything" else {key: content}
    torch.save(content, tmp_path / name)
    opened = open_checkpoint(tmp_path / name)
    assert opened.layout == "ldm"
    assert_same(opened, state)


def test_torch_archive_from_before_zip(tmp_path):
    state = state_of(kl(32, 64))
    torch.save({"state_dict": ldm(state, 2)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert_same(open_checkpoint(tmp_path / "old.ckpt"), state)


def test_training_state_beside_the_tensors_is_ignored_by_name(tmp_path):
    state = state_of(kl(32, 64))
    torch.save({**ldm(state, 2), "epoch": 3, "global_step": 12}, tmp_path / "a.ckpt")
    opened = open_checkpoint(tmp_path / "a.ckpt")
    assert opened.ignored == {"epoch": "no tensor (int)", "global_step": "no tensor (int)"}
    assert_same(opened, state)


class ModelCheckpoint:
    """Stands for pytorch-lightning's callback, an object of which every SD 1.x .ckpt holds."""

    def __init__(self):
        self.best = np.float64(0.5)


def test_lightning_bookkeeping_is_passed_over(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setattr(ModelCheckpoint, "__module__", name)
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", ModelCheckpoint, raising=False)
    state = state_of(kl(32, 64))
    callbacks = {ModelCheckpoint: {"best": np.float64(0.5), "object": ModelCheckpoint()}}
    torch.save({"state_dict": ldm(state, 2), "callbacks": callbacks}, tmp_path / "sd-v1-4.ckpt")
    monkeypatch.undo()
    allowed = set(torch.serialization.get_safe_globals())
    assert_same(open_checkpoint(tmp_path / "sd-v1-4.ckpt"), state)
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_flux2_in_the_file_of_its_makers(tmp_path):
    state = state_of(flux2(32, 64, decoder_block_out_channels=(32, 32)))
    stored = ldm(state, 2)
    for key in [key for key in stored if "quant_conv" in key]:
        half = "decoder" if key.startswith("post") else "encoder"
        stored[f"{half}.{key}"] = stored.pop(key)
    opened = open_checkpoint(save(tmp_path / "ae.safetensors", stored))
    assert opened.variant.network == KL_FLUX2 and opened.config["decoder_block_out_channels"] == (32, 32)
    assert opened.config["patch_size"] == (2, 2) and opened.config["batch_norm_eps"] == 1e-4
    assert_same(opened, state)


def test_flux2_in_diffusers_names(tmp_path):
    model = flux2(32, 64)
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", state_of(model)))
    assert opened.config["decoder_block_out_channels"] is None
    assert_same(opened, state_of(model))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "200KB"])
def test_folders_written_by_diffusers(tmp_path, safe, variant, shard):
    model = kl(32, 64, norm_num_groups=16, scaling_factor=0.7, shift_factor=0.25, sample_size=64)
    model.save_pretrained(tmp_path / "vae", safe_serialization=safe, variant=variant, max_shard_size=shard)
    config = tmp_path / "vae" / "config.json"
    for path, subfolder in ((tmp_path, None), (tmp_path, "vae"), (tmp_path / "vae", None), (config, None)):
        opened = open_checkpoint(path, subfolder=subfolder, weights=variant)
        assert opened.layout == "diffusers folder" and opened.files[-1] == config
        assert opened.config["norm_num_groups"] == 16 and opened.config["scaling_factor"] == 0.7
        assert opened.config["shift_factor"] == 0.25 and opened.variant.name == "custom"
    assert_same(open_checkpoint(tmp_path / "vae"), state_of(model))
    for index in (tmp_path / "vae").glob("*.index*.json"):
        assert_same(open_checkpoint(index), state_of(model))


def test_weights_asked_for_by_name(tmp_path):
    model = kl(32, 64)
    model.save_pretrained(tmp_path)
    model.half().save_pretrained(tmp_path, variant="fp16")
    assert open_checkpoint(tmp_path).dtype is torch.float32
    assert open_checkpoint(tmp_path, weights="fp16").dtype is torch.float16
    with pytest.raises(CheckpointError, match=r"holds no diffusion_pytorch_model\.ema\.safetensors"):
        open_checkpoint(tmp_path, weights="ema")


def test_config_json_beside_a_single_file(tmp_path):
    model = kl(32, 64, norm_num_groups=16)
    save(tmp_path / "any name.safetensors", ldm(state_of(model), 2))
    config = {"_class_name": KL, "norm_num_groups": 16, "block_out_channels": [32, 64], "colour": "red"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path / "any name.safetensors")
    assert opened.config["norm_num_groups"] == 16 and opened.files[-1].name == "config.json"
    assert any("colour" in sentence for sentence in opened.why)


@pytest.mark.parametrize(
    "config",
    [{"_class_name": "UNet2DConditionModel"}, {"_class_name": KL, "latent_channels": 16}, {"some": "thing"}],
    ids=["another class", "another VAE", "no config"],
)
def test_config_json_of_something_else_beside_a_single_file(tmp_path, config):
    save(tmp_path / "mine.safetensors", state_of(kl(32, 64)))
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = open_checkpoint(tmp_path / "mine.safetensors")
    assert opened.files == (tmp_path / "mine.safetensors",)
    assert any("is not used" in sentence for sentence in opened.why)


@pytest.mark.parametrize("named", ["encoder", "decoder"])
@pytest.mark.parametrize("suffixes", [(".safetensors", ".safetensors"), (".pth", ".safetensors"), (".pth", ".pth")])
def test_taesd_pair(tmp_path, named, suffixes):
    state = state_of(tiny())
    for half, part, suffix in zip(("encoder", "decoder"), taesd_halves(state), suffixes, strict=True):
        path = tmp_path / f"my_{half}_v1{suffix}"
        torch.save(part, path) if suffix == ".pth" else save(path, part)
    opened = open_checkpoint(next(tmp_path.glob(f"*{named}*")))
    assert opened.layout == "taesd pair" and len(opened.files) == 2
    assert_same(opened, state)
    assert_same(open_checkpoint(tmp_path), state)


def test_pooled_taesd(tmp_path):
    # diffusers does not know taef2's pooled blocks: three tensors more in each block of the lowest resolution.
    state = state_of(tiny(latent_channels=32))
    for block in (
        "encoder.layers.11",
        "encoder.layers.12",
        "encoder.layers.13",
        *(f"decoder.layers.{n}" for n in (2, 3, 4)),
    ):
        state[f"{block}.pool.0.weight"] = torch.randn(64, 16, 1, 1)
        state[f"{block}.pool.1.weight"] = torch.randn(64)
        state[f"{block}.pool.1.bias"] = torch.randn(64)
        state[f"{block}.pool.3.weight"] = torch.randn(16, 64, 1, 1)
    for half, part in zip(("encoder", "decoder"), taesd_halves(state), strict=True):
        save(tmp_path / f"taef2_{half}.safetensors", part)
    opened = open_checkpoint(tmp_path / "taef2_decoder.safetensors")
    assert opened.config["pool_mid_blocks"] is True
    assert_same(opened, state)


def test_tiny_in_one_file(tmp_path):
    state = state_of(tiny(num_encoder_blocks=(1, 2, 3, 1), num_decoder_blocks=(2, 1, 3, 1)))
    encoder, decoder = taesd_halves(state)
    layouts = {
        "diffusers": state,
        "taesd module": {f"encoder.{k}": t for k, t in encoder.items()}
        | {f"decoder.{k}": t for k, t in decoder.items()},
        "comfyui taesd": {f"taesd_encoder.{k}": t for k, t in encoder.items()}
        | {f"taesd_decoder.{k}": t for k, t in decoder.items()}
        | {"vae_scale": torch.tensor(0.5), "vae_shift": torch.tensor(0.0)},
    }
    for layout, content in layouts.items():
        opened = open_checkpoint(save(tmp_path / "tiny.safetensors", content))
        assert opened.layout == layout
        assert opened.config["num_encoder_blocks"] == (1, 2, 3, 1)
        assert opened.config["num_decoder_blocks"] == (2, 1, 3, 1)
        assert_same(opened, state)


def test_tiny_folder_written_by_diffusers(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    opened = open_checkpoint(tmp_path)
    assert opened.layout == "diffusers folder" and opened.variant.network == TINY
    assert not any("ignored" in sentence for sentence in opened.why)
    assert_same(opened, state_of(model))


def packed(tensor: torch.Tensor, dtype: torch.dtype, kind: int = 1) -> msgpack.ExtType:
    raw = tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
    name = str(dtype).removeprefix("torch.").encode()
    return msgpack.ExtType(kind, msgpack.packb((tuple(tensor.shape), name, raw), use_bin_type=True))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *path, leaf = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def chunked(tensor: torch.Tensor, dtype: torch.dtype, pieces: int) -> dict[str, Any]:
    chunks = tensor.flatten().tensor_split(pieces)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(tensor.shape)},
        "chunks": {str(i): packed(chunk, dtype) for i, chunk in enumerate(chunks)},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("params", [True, False], ids=["under params", "bare"])
def test_flax_packed_by_msgpack(tmp_path: Path, dtype, params):
    model = kl(32, 64, norm_num_groups=16)
    flat: dict[str, Any] = {}
    for key, tensor in flax_names(state_of(model)).items():
        flat[key] = chunked(tensor, dtype, 3) if key == "encoder.conv_in.kernel" else packed(tensor, dtype)
    tree = nested(flat)
    (tmp_path / "diffusion_flax_model.msgpack").write_bytes(msgpack.packb({"params": tree} if params else tree) or b"")
    config = {"_class_name": "FlaxAutoencoderKL", "norm_num_groups": 16, "block_out_channels": [32, 64], "dtype": "x"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "diffusion_flax_model.msgpack"):
        opened = open_checkpoint(path)
        assert opened.layout == "flax" and opened.config["norm_num_groups"] == 16 and opened.dtype is dtype
        assert_same(opened, {key: tensor.to(dtype) for key, tensor in state_of(model).items()})


def test_flax_without_msgpack_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "diffusion_flax_model.msgpack").write_bytes(msgpack.packb({}) or b"")
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(MissingPackageError) as error:
        open_checkpoint(tmp_path / "diffusion_flax_model.msgpack")
    assert str(error.value) == 'reading Flax weights needs the package msgpack: pip install "exact-vae[flax]"'


def test_tensors_are_cast_and_placed(tmp_path):
    model = flux2(32, 64).half()
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", state_of(model)))
    assert opened.dtype is torch.float16
    read = dict(opened.tensors(torch.bfloat16, "cpu"))
    assert read["encoder.conv_in.weight"].dtype is torch.bfloat16
    assert read["bn.num_batches_tracked"].dtype is torch.int64
    target = flux2(32, 64)
    assign(target, opened, dtype=torch.float32)
    assert target.bn.num_batches_tracked.dtype is torch.int64


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count of resident memory")
def test_opening_reads_the_header_alone_and_loading_copies_nothing(tmp_path):
    def resident_mib() -> float:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    state = ldm(state_of(kl(32, 64)), 2)
    mib = 64
    big = {f"model.diffusion_model.{i}": torch.zeros(mib << 16) for i in range(4)}  # 4 × 16 MiB
    path = save(tmp_path / "full.safetensors", big | {f"vae.{key}": tensor for key, tensor in state.items()})
    del big
    before = resident_mib()
    read = dict(open_checkpoint(path).tensors())
    assert resident_mib() - before < 16
    assert read
