"""Causal networks streamed over tiles, in space and in time, chunk by chunk: equal to the whole run."""

from __future__ import annotations

import pytest
import torch
from clips import streamed, whole
from tiny_nets import relative_error

from vae_core.nets.wan import AutoencoderKLWanConfig, WanNetwork

SIZES = [(6, 5), (1, 9), (7, 7)]
TILES = [2, 5, 16, 64]


@pytest.fixture(scope="module")
def wan() -> WanNetwork:
    torch.manual_seed(0)
    config = AutoencoderKLWanConfig(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
    )
    return WanNetwork(config).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("h", "w"), SIZES)
@torch.inference_mode()
def test_decode_over_tiles_and_chunks_is_the_whole_run(wan, h, w, tile, dtype, tolerance):
    net = wan.to(dtype)
    z = torch.randn(1, 4, 4, h, w, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = whole(net.decode_chunk, z, (1, 3))
    for chunks in ((1, 3), (1, 1, 2)):
        assert relative_error(streamed(net.decode_chunk, z, chunks, tile), expected) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("tile", TILES)
@torch.inference_mode()
def test_encode_over_tiles_and_chunks_is_the_whole_run(wan, tile, dtype, tolerance):
    net = wan.to(dtype)
    x = torch.rand(1, 3, 9, 40, 56, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = whole(net.encode_chunk, x, (1, 8))
    for chunks in ((1, 8), (1, 4, 4)):
        assert relative_error(streamed(net.encode_chunk, x, chunks, tile), expected) < tolerance
