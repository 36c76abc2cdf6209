"""Wrong files: each is refused with one sentence that names the file and the fault, and no code of a file ever runs."""

from __future__ import annotations

import re
from contextlib import suppress
from random import Random

import pytest
import torch
from bad_files import BAD
from checkpoint_files import kl, save, state_of, tiny

from vae_core.checkpoint import Checkpoint, assign, open_checkpoint, save_diffusers, save_flax, save_ldm
from vae_core.errors import CheckpointError, StateDictError
from vae_core.spec import KL


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
