"""Strict loading of a video VAE: every tensor has to be there once, and fit."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import header_only, save
from clip_networks import full, on_meta, small, spelled

from vae_core.checkpoint import assign, open_checkpoint
from vae_core.checkpoint.keymaps import WAN_ORIGINAL
from vae_core.errors import StateDictError
from vae_core.spec import COGVIDEOX, QWEN, WAN

WRONG = {
    "missing": ("decoder.upsamples.4.shortcut.weight", None, "resnets.0.conv_shortcut.weight` is missing;"),
    "missing, shows the configuration": (
        "decoder.head.2.weight",
        None,
        "`decoder.conv_out.weight` is missing; the file",
    ),
    "surplus": (
        "decoder.upsamples.3.residual.9.weight",
        (8,),
        "residual.9.weight` is in the file and not in the network;",
    ),
    "wrong shape": (
        "encoder.middle.1.to_qkv.weight",
        (96, 32),
        r"to_qkv.weight` is \[96, 32\] in the file and \[96, 32, 1, 1\] in the network;",
    ),
    "wrong dimensions": ("encoder.conv1.weight", (8, 3, 3, 3), "where 5 dimensions are expected"),
    "odd width": (
        "encoder.downsamples.3.residual.2.weight",
        (17, 8, 3, 3, 3),
        "17 channels, which is no multiple of 8",
    ),
    "other levels": ("decoder.upsamples.16.residual.0.gamma", (8, 1, 1, 1), "its encoder has 4 levels and its decoder"),
}


@pytest.mark.parametrize("key, shape, sentence", WRONG.values(), ids=WRONG)
def test_every_tensor_has_to_be_there_and_fit(tmp_path, key, shape, sentence):
    stored = spelled(WAN_ORIGINAL, small(WAN))
    stored.pop(key, None)
    if shape is not None:
        stored[key] = torch.zeros(shape)
    path = save(tmp_path / "x.safetensors", stored)
    with pytest.raises(StateDictError, match=sentence) as error:
        opened = open_checkpoint(path)
        assign(on_meta(WAN, opened.config), opened)
    assert str(path) in str(error.value)


def test_two_keys_for_one_tensor(tmp_path):
    stored = spelled(WAN_ORIGINAL, small(WAN)) | {"quant_conv.weight": torch.zeros(32, 32, 1, 1, 1)}
    with pytest.raises(StateDictError, match=r"both stand for `quant_conv\.weight`"):
        open_checkpoint(save(tmp_path / "x.safetensors", stored))


def test_half_of_a_network(tmp_path):
    stored = {key: tensor for key, tensor in small(COGVIDEOX).items() if key.startswith("decoder.")}
    with pytest.raises(StateDictError, match="holds the decoder of a VAE and not its encoder"):
        open_checkpoint(save(tmp_path / "x.safetensors", stored))


def test_the_variant_that_would_fit_is_named(tmp_path):
    opened = open_checkpoint(header_only(tmp_path / "x.safetensors", full("qwen-image")), variant="qwen-image")
    with pytest.raises(StateDictError, match="its sizes are those of variant 'wan21': build that one"):
        assign(on_meta(QWEN, {"input_channels": 4}), opened)
