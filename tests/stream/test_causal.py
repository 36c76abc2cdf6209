"""Causal networks streamed over tiles, in space and in time, chunk by chunk: equal to the whole run."""

from __future__ import annotations

import pytest
import torch
from clips import streamed, whole
from tiny_nets import relative_error
from torch import Tensor

from vae_core.nets.cogvideox import AutoencoderKLCogVideoXConfig, CogVideoXNetwork
from vae_core.nets.trace import trace
from vae_core.nets.wan import AutoencoderKLWanConfig, WanNetwork
from vae_core.plan import Case, Planner

EXACT = 1e-12
"""Relative, float64."""
EQUAL = 1e-5
"""Relative, float32."""

Network = WanNetwork | CogVideoXNetwork


def network(name: str, dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    if name == "wan":
        plain = {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}
        return WanNetwork(AutoencoderKLWanConfig(base_dim=8, z_dim=4, num_res_blocks=1, **plain)).eval().to(dtype)
    shape = {"block_out_channels": (16, 16, 32, 32), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 8}
    return CogVideoXNetwork(AutoencoderKLCogVideoXConfig(**shape)).eval().to(dtype)


CHUNKS = {"wan": ((1, 3), (1, 1, 2)), "cogvideox": ((2, 2), (2, 2))}
"""Of four latents. Wan's results do not depend on how the latents after the first are cut; CogVideoX's do."""


def latents(h: int, w: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(1, 4, 4, h, w, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize(("h", "w", "tile"), [(3, 4, 2), (6, 5, 16), (1, 9, 5), (7, 7, 64)])
@torch.inference_mode()
def test_decode_over_tiles_and_chunks_is_the_whole_run(name, h, w, tile):
    decode, z = network(name).decode_chunk, latents(h, w)
    expected = whole(decode, z, CHUNKS[name][0])
    for chunks in set(CHUNKS[name]):
        assert relative_error(streamed(decode, z, chunks, tile), expected) < EXACT


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("tile", [2, 7, 64])
@torch.inference_mode()
def test_encode_over_tiles_and_chunks_is_the_whole_run(name, tile):
    encode = network(name).encode_chunk
    x = torch.rand(1, 3, 9, 40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cut = ((1, 8), (1, 4, 4)) if name == "wan" else ((9,), (5, 4))
    for chunks in cut:
        expected = whole(encode, x, cut[0] if name == "wan" else chunks)
        assert relative_error(streamed(encode, x, chunks, tile), expected) < EXACT


@pytest.mark.parametrize(("h", "w", "tile"), [(6, 5, 16), (1, 9, 5), (7, 7, 30), (7, 7, 64)])
@torch.inference_mode()
def test_depth_first_after_attention_is_the_whole_run(h, w, tile):
    decode, z = network("wan").decode_chunk, latents(h, w)
    expected = whole(decode, z, (1, 3))
    for chunks in CHUNKS["wan"]:
        assert relative_error(streamed(decode, z, chunks, tile, depth_first=True), expected) < EXACT


@pytest.mark.parametrize("tile", [2, 7, 64])
@torch.inference_mode()
def test_depth_first_before_attention_is_the_whole_run(tile):
    encode = network("wan").encode_chunk
    x = torch.rand(1, 3, 9, 40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for chunks in ((1, 8), (1, 4, 4)):
        made = streamed(encode, x, chunks, tile, depth_first=True)
        assert relative_error(made, whole(encode, x, (1, 8))) < EXACT


@pytest.mark.parametrize("name", CHUNKS)
def test_a_plan_counts_the_operations_of_every_frame(name):
    """In one tile, as many as the whole run; in several, no fewer."""
    net = network(name)
    traced = trace(lambda z: net.decode_chunk(z, name == "cogvideox"), (1, 4, 2, 6, 5))
    planner = Planner(Case(traced, itemsize=8))
    assert planner.plan(None, tile=4096).operations == traced.operations
    assert planner.plan(None, tile=8).operations >= traced.operations


@pytest.mark.parametrize("name", CHUNKS)
@torch.inference_mode()
def test_in_float32_too(name):
    decode, z = network(name, torch.float32).decode_chunk, latents(6, 5, torch.float32)
    chunks = CHUNKS[name][1]
    assert relative_error(streamed(decode, z, chunks, 16), whole(decode, z, chunks)) < EQUAL


@pytest.mark.parametrize("name", CHUNKS)
@torch.inference_mode()
def test_a_forgotten_cache_shows(name):
    """The tests above would not notice a cache that is never read, if it did not matter."""
    decode, z = network(name).decode_chunk, latents(6, 5)
    chunks = CHUNKS[name][0]
    together = whole(decode, z, chunks)
    after = whole(decode, z[:, :, chunks[0] :], (1, 2) if name == "wan" else (2,))
    assert relative_error(after[:, :, :4], together[:, :, -after.shape[2] :][:, :, :4]) > 0.01
