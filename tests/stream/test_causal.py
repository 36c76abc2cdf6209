"""Causal networks streamed over tiles, in space and in time, chunk by chunk: equal to the whole run."""

from __future__ import annotations

import pytest
import torch
from clips import streamed, whole
from tiny_nets import relative_error
from torch import Tensor

from vae_core.nets.wan import AutoencoderKLWanConfig, WanNetwork

EXACT = 1e-12
"""Relative, float64."""
EQUAL = 1e-5
"""Relative, float32."""


@pytest.fixture(scope="module")
def wan() -> WanNetwork:
    torch.manual_seed(0)
    config = AutoencoderKLWanConfig(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
    )
    return WanNetwork(config).eval()


def latents(h: int, w: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(1, 4, 4, h, w, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("h", "w", "tile"), [(6, 5, 2), (6, 5, 16), (1, 9, 5), (7, 7, 64)])
@torch.inference_mode()
def test_decode_over_tiles_and_chunks_is_the_whole_run(wan, h, w, tile):
    decode, z = wan.double().decode_chunk, latents(h, w, torch.float64)
    expected = whole(decode, z, (1, 3))
    for chunks in ((1, 3), (1, 1, 2)):
        assert relative_error(streamed(decode, z, chunks, tile), expected) < EXACT


@pytest.mark.parametrize("tile", [2, 7, 64])
@torch.inference_mode()
def test_encode_over_tiles_and_chunks_is_the_whole_run(wan, tile):
    encode = wan.double().encode_chunk
    x = torch.rand(1, 3, 9, 40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = whole(encode, x, (1, 8))
    for chunks in ((1, 8), (1, 4, 4)):
        assert relative_error(streamed(encode, x, chunks, tile), expected) < EXACT


@torch.inference_mode()
def test_in_float32_too(wan):
    decode, z = wan.float().decode_chunk, latents(6, 5, torch.float32)
    assert relative_error(streamed(decode, z, (1, 1, 2), 16), whole(decode, z, (1, 3))) < EQUAL


@torch.inference_mode()
def test_a_forgotten_cache_shows(wan):
    """The tests above would not notice a cache that is never read, if it did not matter."""
    decode, z = wan.double().decode_chunk, latents(6, 5, torch.float64)
    apart = torch.cat([whole(decode, z[:, :, :1], (1,)), whole(decode, z[:, :, 1:], (1, 2))], dim=2)
    together = whole(decode, z, (1, 3))
    assert relative_error(apart[:, :, :5], together[:, :, :5]) > 0.01
