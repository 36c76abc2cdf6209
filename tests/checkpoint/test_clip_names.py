"""Names of a video VAE's tensors: the makers' become ours and ours become the makers', all of them, in networks of any size."""

from __future__ import annotations

import pytest
import random_checkpoints
import torch
from clip_networks import SIZE_NAMES, SIZES, on_meta, spelled

from vae_core.checkpoint.keymaps import COGVIDEOX_ORIGINAL, WAN_ORIGINAL, Numbering
from vae_core.spec import COGVIDEOX, WAN


@pytest.mark.parametrize("name, keymap, size", SIZES, ids=SIZE_NAMES)
def test_names_go_there_and_back(name, keymap, size):
    state = on_meta(name, size).state_dict()
    theirs = spelled(keymap, state)
    assert len(theirs) == len(state)
    at = Numbering(theirs)
    back = {keymap.ours(key, tuple(tensor.shape), at)[0]: tensor for key, tensor in theirs.items()}
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in state.items()}


# wan/modules/vae.py of Wan-Video/Wan2.1, as ARCHITECTURES.md 3.3 lists them.
WAN_NAMES = {
    "conv1.weight": "quant_conv.weight",
    "conv2.bias": "post_quant_conv.bias",
    "encoder.conv1.weight": "encoder.conv_in.weight",
    "encoder.downsamples.0.residual.0.gamma": "encoder.down_blocks.0.norm1.gamma",
    "encoder.downsamples.0.residual.2.weight": "encoder.down_blocks.0.conv1.weight",
    "encoder.downsamples.1.residual.3.gamma": "encoder.down_blocks.1.norm2.gamma",
    "encoder.downsamples.1.residual.6.bias": "encoder.down_blocks.1.conv2.bias",
    "encoder.downsamples.2.resample.1.weight": "encoder.down_blocks.2.resample.1.weight",
    "encoder.downsamples.3.shortcut.weight": "encoder.down_blocks.3.conv_shortcut.weight",
    "encoder.downsamples.5.resample.1.bias": "encoder.down_blocks.5.resample.1.bias",
    "encoder.downsamples.5.time_conv.weight": "encoder.down_blocks.5.time_conv.weight",
    "encoder.downsamples.6.shortcut.bias": "encoder.down_blocks.6.conv_shortcut.bias",
    "encoder.downsamples.8.time_conv.bias": "encoder.down_blocks.8.time_conv.bias",
    "encoder.downsamples.10.residual.6.weight": "encoder.down_blocks.10.conv2.weight",
    "encoder.middle.0.residual.0.gamma": "encoder.mid_block.resnets.0.norm1.gamma",
    "encoder.middle.1.norm.gamma": "encoder.mid_block.attentions.0.norm.gamma",
    "encoder.middle.1.to_qkv.weight": "encoder.mid_block.attentions.0.to_qkv.weight",
    "encoder.middle.1.proj.bias": "encoder.mid_block.attentions.0.proj.bias",
    "encoder.middle.2.residual.6.weight": "encoder.mid_block.resnets.1.conv2.weight",
    "encoder.head.0.gamma": "encoder.norm_out.gamma",
    "encoder.head.2.weight": "encoder.conv_out.weight",
    "decoder.conv1.bias": "decoder.conv_in.bias",
    "decoder.middle.0.residual.0.gamma": "decoder.mid_block.resnets.0.norm1.gamma",
    "decoder.middle.2.residual.2.bias": "decoder.mid_block.resnets.1.conv1.bias",
    "decoder.upsamples.0.residual.0.gamma": "decoder.up_blocks.0.resnets.0.norm1.gamma",
    "decoder.upsamples.2.residual.6.weight": "decoder.up_blocks.0.resnets.2.conv2.weight",
    "decoder.upsamples.3.resample.1.weight": "decoder.up_blocks.0.upsamplers.0.resample.1.weight",
    "decoder.upsamples.3.time_conv.weight": "decoder.up_blocks.0.upsamplers.0.time_conv.weight",
    "decoder.upsamples.4.residual.2.weight": "decoder.up_blocks.1.resnets.0.conv1.weight",
    "decoder.upsamples.4.shortcut.weight": "decoder.up_blocks.1.resnets.0.conv_shortcut.weight",
    "decoder.upsamples.7.time_conv.bias": "decoder.up_blocks.1.upsamplers.0.time_conv.bias",
    "decoder.upsamples.10.residual.3.gamma": "decoder.up_blocks.2.resnets.2.norm2.gamma",
    "decoder.upsamples.11.resample.1.bias": "decoder.up_blocks.2.upsamplers.0.resample.1.bias",
    "decoder.upsamples.14.residual.6.bias": "decoder.up_blocks.3.resnets.2.conv2.bias",
    "decoder.head.0.gamma": "decoder.norm_out.gamma",
    "decoder.head.2.bias": "decoder.conv_out.bias",
}
# sat/vae_modules/cp_enc_dec.py of THUDM/CogVideo, as ARCHITECTURES.md 3.2 lists them.
COGVIDEOX_NAMES = {
    "encoder.conv_in.conv.weight": "encoder.conv_in.conv.weight",
    "encoder.down.0.block.0.norm1.weight": "encoder.down_blocks.0.resnets.0.norm1.weight",
    "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
    "encoder.down.2.downsample.conv.bias": "encoder.down_blocks.2.downsamplers.0.conv.bias",
    "encoder.mid.block_1.conv1.conv.weight": "encoder.mid_block.resnets.0.conv1.conv.weight",
    "encoder.norm_out.weight": "encoder.norm_out.weight",
    "decoder.mid.block_2.norm2.conv_b.conv.bias": "decoder.mid_block.resnets.1.norm2.conv_b.conv.bias",
    "decoder.up.3.block.0.norm1.norm_layer.weight": "decoder.up_blocks.0.resnets.0.norm1.norm_layer.weight",
    "decoder.up.0.block.3.conv2.conv.weight": "decoder.up_blocks.3.resnets.3.conv2.conv.weight",
    "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.2.upsamplers.0.conv.weight",
    "decoder.up.2.block.0.nin_shortcut.bias": "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
    "decoder.norm_out.conv_y.conv.weight": "decoder.norm_out.conv_y.conv.weight",
    "decoder.conv_out.conv.bias": "decoder.conv_out.conv.bias",
}


@pytest.mark.parametrize(
    "name, keymap, listed",
    [(WAN, WAN_ORIGINAL, WAN_NAMES), (COGVIDEOX, COGVIDEOX_ORIGINAL, COGVIDEOX_NAMES)],
    ids=["wan", "cogvideox"],
)
def test_names_of_the_makers(name, keymap, listed):
    state = on_meta(name, {}).state_dict()
    theirs = spelled(keymap, state)
    at, back = Numbering(state), Numbering(theirs)
    assert {keymap.theirs(ours, state[ours], at)[0]: ours for ours in listed.values()} == listed
    assert {key: keymap.ours(key, tuple(theirs[key].shape), back)[0] for key in listed} == listed


def test_all_names_of_wan_as_a_second_list_has_them():
    meta = {key: torch.empty(shape, device="meta") for key, shape in random_checkpoints._wan(96).items()}
    written = spelled(WAN_ORIGINAL, on_meta(WAN, {}).state_dict())
    assert {key: tensor.shape for key, tensor in written.items()} == {key: tensor.shape for key, tensor in meta.items()}
