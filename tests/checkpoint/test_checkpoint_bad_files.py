"""Wrong files: each is refused with one sentence that names the file and the fault, and no code of a file ever runs."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
import torch
from checkpoint_files import flax_names, flux2, header_only, kl, raw_safetensors, save, state_of, taesd_halves, tiny

from vae_core.checkpoint import Checkpoint, assign, open_checkpoint, save_diffusers, save_flax, save_ldm
from vae_core.errors import CheckpointError, StateDictError, UnknownModelError
from vae_core.spec import KL

Make = Callable[[Path], Path]
BAD: dict[str, tuple[Make, type[CheckpointError], str]] = {}


def bad(error: type[CheckpointError], words: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        BAD[make.__name__] = (make, error, words)
        return make

    return add


@pytest.mark.parametrize("name", BAD)
def test_is_refused(tmp_path, name):
    make, error, words = BAD[name]
    path = make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint = open_checkpoint(path)
        assign(kl(32, 64), checkpoint)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert words in message
    assert str(tmp_path) in message and "\n" not in message
    assert not (tmp_path / "ran").exists()


# --- safetensors headers ----------------------------------------------------------------------------------------------


def entry(shape: Any, begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@bad(CheckpointError, "is empty (0 bytes)")
def empty(folder: Path) -> Path:
    (folder / "a.safetensors").touch()
    return folder / "a.safetensors"


@bad(CheckpointError, "is cut short: 3 bytes")
def shorter_than_a_header(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(b"\x10\x00\x00")
    return folder / "a.safetensors"


@bad(CheckpointError, "is cut short: its header should take")
def header_cut_short(folder: Path) -> Path:
    path = save(folder / "a.safetensors", state_of(kl(32, 64)))
    path.write_bytes(path.read_bytes()[:300])
    return path


@bad(CheckpointError, "announces a header of")
def header_longer_than_the_format_allows(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 40)
    return folder / "a.safetensors"


@bad(CheckpointError, "is cut short: its tensors take")
def data_cut_short(folder: Path) -> Path:
    path = save(folder / "a.safetensors", state_of(kl(32, 64)))
    path.write_bytes(path.read_bytes()[:-100])
    return path


@bad(CheckpointError, "bytes after its last tensor")
def data_too_long(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2], 0, 8)}, bytes(12))


@bad(CheckpointError, "is not valid JSON")
def header_is_no_json(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", b'{"a": ')


@bad(CheckpointError, "is not valid JSON")
def header_is_no_utf8(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", b'{"\xff": 1}')


@bad(CheckpointError, "is not valid JSON")
def header_nests_without_end(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", b'{"a":' * 200_000)


@bad(CheckpointError, "names `a` twice")
def duplicate_keys(folder: Path) -> Path:
    one = json.dumps(entry([1], 0, 4))
    return raw_safetensors(folder / "a.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4))


@bad(CheckpointError, "unknown dtype 'F31'")
def unknown_dtype(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([1], 0, 4, "F31")}, bytes(4))


@bad(CheckpointError, "takes 16 bytes, and its data_offsets hold 8")
def shape_that_lies(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2, 2], 0, 8)}, bytes(8))


@bad(CheckpointError, "takes 4000000000000 bytes")
def shape_that_is_huge(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([10**6, 10**6], 0, 8)}, bytes(8))


@bad(CheckpointError, "not a list of sizes")
def negative_shape(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([-2, -1], 0, 8)}, bytes(8))


@bad(CheckpointError, "not [begin, end]")
def negative_offsets(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2], -8, 0)}, bytes(8))


@bad(CheckpointError, "not [begin, end]")
def reversed_offsets(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([2], 8, 0)}, bytes(8))


@bad(CheckpointError, "`b` overlaps the tensor before it at byte 4")
def overlapping_tensors(folder: Path) -> Path:
    header = {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}
    return raw_safetensors(folder / "a.safetensors", header, bytes(12))


@bad(CheckpointError, "a gap of 4 bytes before `b`")
def gap_in_the_data(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))


@bad(CheckpointError, "lacks one of dtype, shape, data_offsets")
def entry_without_a_shape(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4))


@bad(CheckpointError, "`__metadata__`")
def metadata_that_is_no_text(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {"__metadata__": {"format": 1}, "a": entry([1], 0, 4)}, bytes(4))


@bad(UnknownModelError, "it holds no tensors")
def no_tensors(folder: Path) -> Path:
    return raw_safetensors(folder / "a.safetensors", {})


# --- not weights at all -----------------------------------------------------------------------------------------------


def text_file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@bad(CheckpointError, "is a web page")
def html_page(folder: Path) -> Path:
    return text_file(folder, "vae.safetensors", "\n<!DOCTYPE html><html><body>Sign in</body></html>")


@bad(CheckpointError, "is a Git LFS pointer")
def lfs_pointer(folder: Path) -> Path:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 334643268\n"
    return text_file(folder, "vae.safetensors", text)


@bad(CheckpointError, "is a JSON text")
def error_reply(folder: Path) -> Path:
    return text_file(folder, "vae.ckpt", '{"error": "Repository not found"}')


@bad(CheckpointError, "no kind of file that holds a VAE")
def unknown_extension(folder: Path) -> Path:
    return text_file(folder, "vae.onnx", "something else")


@bad(UnknownModelError, "looks like a GGUF file")
def gguf(folder: Path) -> Path:
    (folder / "vae.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(64))
    return folder / "vae.gguf"


@bad(CheckpointError, "does not exist")
def missing_path(folder: Path) -> Path:
    return folder / "nowhere.safetensors"


@bad(CheckpointError, "holds no weights")
def folder_without_weights(folder: Path) -> Path:
    text_file(folder, "readme.txt", "hello")
    return folder


@bad(CheckpointError, "holds several weight files (a.safetensors, b.safetensors)")
def folder_with_several_files(folder: Path) -> Path:
    for name in "ab":
        save(folder / f"{name}.safetensors", {"x": torch.zeros(1)})
    return folder


# --- pickles ----------------------------------------------------------------------------------------------------------


class RunsOnLoading:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@bad(CheckpointError, "nothing of it was run")
def pickle_with_code(folder: Path) -> Path:
    torch.save({"state_dict": state_of(kl(32, 64)), "x": RunsOnLoading(folder / "ran")}, folder / "a.ckpt")
    return folder / "a.ckpt"


@bad(CheckpointError, "nothing of it was run")
def pickle_with_code_before_zip(folder: Path) -> Path:
    content = {"x": RunsOnLoading(folder / "ran")}
    torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


@bad(CheckpointError, "nothing of it was run")
def pickle_with_code_named_safetensors(folder: Path) -> Path:
    torch.save({"x": RunsOnLoading(folder / "ran")}, folder / "a.safetensors")
    return folder / "a.safetensors"


@bad(CheckpointError, "no torch archive")
def archive_cut_short(folder: Path) -> Path:
    torch.save(state_of(kl(32, 64)), folder / "a.pt")
    (folder / "a.pt").write_bytes((folder / "a.pt").read_bytes()[:-2000])
    return folder / "a.pt"


@bad(CheckpointError, "no torch archive")
def noise_named_ckpt(folder: Path) -> Path:
    (folder / "a.ckpt").write_bytes(bytes(range(256)) * 8)
    return folder / "a.ckpt"


@bad(CheckpointError, "holds a list")
def pickled_list(folder: Path) -> Path:
    torch.save([torch.zeros(1)], folder / "a.pt")
    return folder / "a.pt"


@bad(CheckpointError, "`encoder.conv_in.weight` is a list and no plain tensor")
def values_that_are_no_tensors(folder: Path) -> Path:
    torch.save(state_of(kl(32, 64)) | {"encoder.conv_in.weight": [1.0, 2.0]}, folder / "a.pt")
    return folder / "a.pt"


# --- networks that are not whole --------------------------------------------------------------------------------------


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    state = state_of(kl(32, 64))
    change(state)
    return save(folder / "a.safetensors", state)


@bad(StateDictError, "`encoder.mid_block.resnets.0.conv1.bias` is missing")
def missing_key(folder: Path) -> Path:
    return changed(folder, lambda state: state.pop("encoder.mid_block.resnets.0.conv1.bias"))


@bad(StateDictError, "`encoder.conv_in.weight` is missing")
def missing_key_that_shows_the_configuration(folder: Path) -> Path:
    return changed(folder, lambda state: state.pop("encoder.conv_in.weight"))


@bad(StateDictError, "`decoder.extra.weight` is in the file and not in the network")
def surplus_key(folder: Path) -> Path:
    return changed(folder, lambda state: state.update({"decoder.extra.weight": torch.zeros(1)}))


@bad(StateDictError, "`decoder.mid_block.resnets.1.conv2.weight` is [64, 64, 1, 1] in the file and [64, 64, 3, 3]")
def wrong_shape(folder: Path) -> Path:
    return changed(folder, lambda s: s.update({"decoder.mid_block.resnets.1.conv2.weight": torch.zeros(64, 64, 1, 1)}))


@bad(StateDictError, "holds the encoder of a VAE and not its decoder")
def encoder_alone(folder: Path) -> Path:
    return save(folder / "a.safetensors", {k: t for k, t in state_of(kl(32, 64)).items() if k.startswith("encoder.")})


@bad(StateDictError, "both stand for `encoder.mid_block.attentions.0.to_q.weight`")
def two_spellings_of_one_tensor(folder: Path) -> Path:
    old = "encoder.mid_block.attentions.0.query.weight"
    return changed(folder, lambda state: state.update({old: torch.zeros(64, 64)}))


@bad(StateDictError, "its decoder is (32, 32) wide and its encoder (32, 64)")
def decoder_of_another_width(folder: Path) -> Path:
    state = state_of(flux2(32, 64, decoder_block_out_channels=(32, 32)))
    return save(folder / "a.safetensors", {k: t for k, t in state.items() if not k.startswith("bn.")})


@bad(StateDictError, "has `encoder.down_blocks.0.resnets.999999999.*` and not all")
def number_beyond_reason(folder: Path) -> Path:
    name = "encoder.down_blocks.0.resnets.999999999.conv1.weight"
    return changed(folder, lambda state: state.update({name: torch.zeros(1)}))


@bad(StateDictError, "its shapes give latent_channels 1099511627776")
def width_without_bytes(folder: Path) -> Path:
    shapes = {key: tuple(tensor.shape) for key, tensor in state_of(kl(32, 64)).items()}
    return header_only(folder / "a.safetensors", shapes | {"decoder.conv_in.weight": (0, 1 << 40, 3, 3)})


@bad(StateDictError, "its metadata `exact_vae` says latent_channels 5")
def own_metadata_that_contradicts(folder: Path) -> Path:
    return save_ldm(folder / "a.safetensors", {"latent_channels": 5}, state_of(kl(32, 64)))[0]


@bad(StateDictError, "no square patch of 8")
def batch_norm_of_another_size(folder: Path) -> Path:
    return save(folder / "a.safetensors", state_of(flux2(32, 64)) | {"bn.running_mean": torch.zeros(24)})


@bad(CheckpointError, "is stored as int8: quantised")
def quantised_weights(folder: Path) -> Path:
    weight = {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3, dtype=torch.int8)}
    return changed(folder, lambda state: state.update(weight))


@bad(CheckpointError, "x_decoder.safetensors is looked for beside it")
def taesd_encoder_alone(folder: Path) -> Path:
    return save(folder / "x_encoder.safetensors", taesd_halves(state_of(tiny()))[0])


@bad(CheckpointError, "'decoder' is no part of the file's name")
def taesd_decoder_of_another_name(folder: Path) -> Path:
    return save(folder / "x.safetensors", taesd_halves(state_of(tiny()))[1])


@bad(CheckpointError, "which holds no TAESD decoder")
def taesd_with_two_encoders(folder: Path) -> Path:
    for half in ("encoder", "decoder"):
        save(folder / f"x_{half}.safetensors", taesd_halves(state_of(tiny()))[0])
    return folder / "x_encoder.safetensors"


# --- folders ----------------------------------------------------------------------------------------------------------


def diffusers_folder(folder: Path, **config: Any) -> Path:
    save(folder / "diffusion_pytorch_model.safetensors", state_of(kl(32, 64)))
    (folder / "config.json").write_text(json.dumps({"_class_name": KL, **config}))
    return folder


@bad(UnknownModelError, "is the config of UNet2DConditionModel")
def config_of_another_class(folder: Path) -> Path:
    return diffusers_folder(folder, _class_name="UNet2DConditionModel")


@bad(UnknownModelError, "is the config of ['x']")
def config_of_a_class_that_is_no_name(folder: Path) -> Path:
    return diffusers_folder(folder, _class_name=["x"])


@bad(CheckpointError, "is not valid JSON")
def config_that_is_no_json(folder: Path) -> Path:
    diffusers_folder(folder)
    (folder / "config.json").write_text("{not json")
    return folder


@bad(CheckpointError, "is a JSON list")
def config_that_is_a_list(folder: Path) -> Path:
    diffusers_folder(folder)
    (folder / "config.json").write_text("[]")
    return folder / "config.json"


@bad(CheckpointError, "is no config of a VAE")
def config_of_nothing(folder: Path) -> Path:
    diffusers_folder(folder)
    (folder / "config.json").write_text('{"architectures": ["x"]}')
    return folder


@bad(CheckpointError, "is no config.json and no *.index.json")
def another_json(folder: Path) -> Path:
    return text_file(diffusers_folder(folder), "tokenizer.json", "{}")


@bad(StateDictError, "says latent_channels 16, and the tensors have 4")
def config_that_contradicts_the_tensors(folder: Path) -> Path:
    return diffusers_folder(folder, latent_channels=16)


@bad(StateDictError, "says AutoencoderTiny")
def config_of_another_vae(folder: Path) -> Path:
    return diffusers_folder(folder, _class_name="AutoencoderTiny")


@bad(CheckpointError, "`scaling_factor` is nan, and should be a finite number above 0")
def config_with_nan(folder: Path) -> Path:
    return diffusers_folder(folder, scaling_factor=float("nan"))


@bad(CheckpointError, "`scaling_factor` is 0")
def config_with_a_scale_of_zero(folder: Path) -> Path:
    return diffusers_folder(folder, scaling_factor=0)


@bad(CheckpointError, "`shift_factor` is inf")
def config_with_infinity(folder: Path) -> Path:
    return diffusers_folder(folder, shift_factor=float("inf"))


@bad(CheckpointError, "`norm_num_groups` is -1, and should be a positive integer")
def config_with_negative_groups(folder: Path) -> Path:
    return diffusers_folder(folder, norm_num_groups=-1)


@bad(CheckpointError, "`layers_per_block` is True")
def config_with_a_flag_for_a_number(folder: Path) -> Path:
    return diffusers_folder(folder, layers_per_block=True)


@bad(CheckpointError, "`block_out_channels` is 'wide', and should be a list of positive integers")
def config_with_a_text_for_a_list(folder: Path) -> Path:
    return diffusers_folder(folder, block_out_channels="wide")


@bad(CheckpointError, "`latents_std` is")
def config_with_a_std_of_zero(folder: Path) -> Path:
    return diffusers_folder(folder, latents_std=[1, 1, 0, 1])


@bad(CheckpointError, "`latents_mean` has 3 entries for 4 latent channels")
def config_with_statistics_of_another_length(folder: Path) -> Path:
    return diffusers_folder(folder, latents_mean=[0, 0, 0], latents_std=[1, 1, 1])


@bad(CheckpointError, "`down_block_types` is")
def config_with_other_blocks(folder: Path) -> Path:
    return diffusers_folder(folder, down_block_types=["AttnDownEncoderBlock2D"] * 2)


@bad(CheckpointError, "32 channels cannot be split into norm_num_groups 24")
def config_with_groups_that_do_not_divide(folder: Path) -> Path:
    return diffusers_folder(folder, norm_num_groups=24)


def index(folder: Path, weight_map: Any) -> Path:
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@bad(CheckpointError, "names the shard b.safetensors, which is not in")
def index_with_a_missing_shard(folder: Path) -> Path:
    save(folder / "a.safetensors", {"x": torch.zeros(1)})
    return index(folder, {"x": "a.safetensors", "y": "b.safetensors"})


@bad(CheckpointError, "says that `y` is in a.safetensors, and it is not")
def index_with_a_missing_key(folder: Path) -> Path:
    save(folder / "a.safetensors", {"x": torch.zeros(1)})
    return index(folder, {"x": "a.safetensors", "y": "a.safetensors"})


@bad(CheckpointError, "`x` is in two shards, a.safetensors and b.safetensors")
def index_with_a_tensor_in_two_shards(folder: Path) -> Path:
    save(folder / "a.safetensors", {"x": torch.zeros(1)})
    save(folder / "b.safetensors", {"x": torch.zeros(1), "y": torch.zeros(1)})
    return index(folder, {"x": "a.safetensors", "y": "b.safetensors"})


@bad(CheckpointError, "which is no plain file name")
def index_that_leads_elsewhere(folder: Path) -> Path:
    return index(folder, {"x": "../a.safetensors"})


@bad(CheckpointError, "has no `weight_map`")
def index_without_a_map(folder: Path) -> Path:
    return index(folder, [])


# --- Flax -------------------------------------------------------------------------------------------------------------


def array(shape: Any, dtype: Any, raw: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, raw)))


def flax_file(folder: Path, content: Any) -> Path:
    (folder / "diffusion_flax_model.msgpack").write_bytes(msgpack.packb(content) or b"")
    return folder / "diffusion_flax_model.msgpack"


@bad(CheckpointError, "is cut short")
def flax_cut_short(folder: Path) -> Path:
    flat = {
        key: array(list(t.shape), "float32", t.numpy().tobytes()) for key, t in flax_names(state_of(kl(32, 64))).items()
    }
    path = flax_file(folder, flat)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@bad(CheckpointError, "should take 32 bytes and does not")
def flax_shape_that_lies(folder: Path) -> Path:
    return flax_file(folder, {"a": array([2, 4], "float32", bytes(8))})


@bad(CheckpointError, "unknown dtype 'float8'")
def flax_unknown_dtype(folder: Path) -> Path:
    return flax_file(folder, {"a": array([2], "float8", bytes(2))})


@bad(CheckpointError, "has the shape [-1, -8]")
def flax_negative_shape(folder: Path) -> Path:
    return flax_file(folder, {"a": array([-1, -8], "float32", bytes(32))})


@bad(CheckpointError, "is not (shape, dtype, bytes)")
def flax_array_that_is_none(folder: Path) -> Path:
    return flax_file(folder, {"a": msgpack.ExtType(1, msgpack.packb(7))})


@bad(CheckpointError, "does not add up to its shape")
def flax_chunks_that_lie(folder: Path) -> Path:
    chunks = {"0": array([2], "float32", bytes(8))}
    return flax_file(folder, {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": chunks}})


@bad(CheckpointError, "nest more than")
def flax_that_nests_without_end(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a" * 5000 + b"\xc0")
    return folder / "a.msgpack"


@bad(CheckpointError, "bytes follow its end")
def flax_with_a_tail(folder: Path) -> Path:
    path = flax_file(folder, {"a": array([1], "float32", bytes(4))})
    path.write_bytes(path.read_bytes() + b"\x00\x00")
    return path


@bad(CheckpointError, "holds a list and not a map")
def flax_that_is_a_list(folder: Path) -> Path:
    return flax_file(folder, [1, 2])


@bad(CheckpointError, "no value begins with its next byte")
def flax_that_is_no_msgpack(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a\xc1")
    return folder / "a.msgpack"


@bad(CheckpointError, "stands twice")
def flax_with_a_key_twice(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x82\xa1a\x01\xa1a\x01")
    return folder / "a.msgpack"


@bad(CheckpointError, "the key b'a' is no text")
def flax_with_a_key_of_bytes(folder: Path) -> Path:
    return flax_file(folder, {b"a": 1})


@bad(CheckpointError, "is not allowed for map key")
def flax_with_a_number_for_a_key(folder: Path) -> Path:
    return flax_file(folder, {1: 1})


@bad(CheckpointError, "exceeds max_ext_len(100)")
def flax_length_that_lies(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + bytes(91))
    return folder / "a.msgpack"


@bad(CheckpointError, "1000000 exceeds max_array_len(64)")
def flax_list_that_lies(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\x81\xa1a\xdd\x00\x0f\x42\x40" + bytes(91))
    return folder / "a.msgpack"


@bad(CheckpointError, "1000000 exceeds max_map_len(65536)")
def flax_map_that_lies(folder: Path) -> Path:
    (folder / "a.msgpack").write_bytes(b"\xdf\x00\x0f\x42\x40" + bytes(91))
    return folder / "a.msgpack"


@bad(CheckpointError, "has the shape [0, 9223372036854775808]")
def flax_size_beyond_any_machine(folder: Path) -> Path:
    return flax_file(folder, {"a": array([0, 1 << 63], "float32", b"")})


@bad(CheckpointError, "`encoder.scale` is a complex")
def flax_complex_number(folder: Path) -> Path:
    return flax_file(folder, {"encoder": {"scale": msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))}})


def test_a_layer_number_beyond_reason_costs_no_time(tmp_path):
    extra = {f"decoder.layers.999999999.conv.0.{leaf}": torch.zeros(16, 16, 3, 3) for leaf in ("weight", "bias")}
    opened = open_checkpoint(save(tmp_path / "a.safetensors", state_of(tiny()) | extra))
    with pytest.raises(StateDictError, match=r"`decoder\.layers\.999999999\.conv\.0\.bias` is in the file and not in"):
        assign(tiny(), opened)


def test_there_are_enough_of_them():
    assert len(BAD) >= 25


@pytest.mark.parametrize("kind", ["safetensors", "archive", "flax"])
def test_a_file_that_vanishes_between_opening_and_reading(tmp_path, kind):
    config, state = {"block_out_channels": (32, 64)}, state_of(kl(32, 64))
    if kind == "flax":
        path = save_flax(tmp_path, config, state)[1]
    else:
        path = save_ldm(tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt"), config, state)[0]
    opened: Checkpoint = open_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        list(opened.tensors())


@pytest.mark.parametrize("widths", [(64, 32), (64, 64), ()])
def test_a_file_that_changes_between_opening_and_reading(tmp_path, widths):
    path = save(tmp_path / "a.safetensors", state_of(kl(32, 64)))
    opened = open_checkpoint(path)
    path.write_bytes(save(tmp_path / "b.safetensors", state_of(kl(*widths))).read_bytes() if widths else b"")
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))}: .*changed since it was opened"):
        list(opened.tensors())


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("kind", ["safetensors", "archive", "flax", "config"])
def test_damage_anywhere_is_either_harmless_or_refused(tmp_path, kind, seed):
    model, config = kl(8, 8, norm_num_groups=4), {"block_out_channels": (8, 8), "norm_num_groups": 4}
    state = state_of(model)
    if kind == "flax":
        path = save_flax(tmp_path, config, state)[1]
    elif kind == "config":
        path = save_diffusers(tmp_path, KL, config, state)[0]
    else:
        path = save_ldm(tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt"), config, state)[0]
    random = Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 3, 20))):
        at = random.randrange(min(len(content), 4000))
        content[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
    path.write_bytes(content)
    with suppress(CheckpointError):
        assign(model, open_checkpoint(path))
