"""VAE Plan, and which plan a run takes when other models fill the device."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks.fake_cuda import fake_cuda, on_fake_cuda


def planned(exact: Any, vae: Any, **inputs: Any) -> tuple[dict[str, Any], str]:
    output = exact.node("ExactVAEPlan").plan(vae, **inputs)
    (told,) = json.loads(json.dumps(output["ui"]["exact_vae"]))
    return told, output["result"][0]


def test_shows_every_rung_and_marks_the_one_taken(exact, sdxl):
    told, table = planned(exact, sdxl, width=1024, height=512, memory_limit="64MiB")
    (chosen,) = [rung for rung in told["rungs"] if rung["chosen"]]
    assert chosen["fits"] and chosen["exact"] and chosen["device_bytes"] <= told["limit_bytes"] == 64 * 2**20
    assert not next(r for r in told["rungs"] if r["name"] == "whole")["fits"]
    assert told["error"] is None
    (w, h), (_, most) = told["grid_px"], chosen["tiles"]
    assert w in (1024, h) and w * h <= most * most, "as wide as the picture, or square"
    assert chosen["name"] in table and "→" in table


def test_a_whole_run_has_no_grid(exact, sdxl):
    told, _ = planned(exact, sdxl, width=64, height=64, direction="encode", batch_size=2)
    assert told["grid_px"] is None and told["images"] == 2 and told["direction"] == "encode"


def test_nothing_fits_is_a_sentence_and_no_error(exact, sdxl):
    told, table = planned(exact, sdxl, width=4096, height=4096, memory_limit="1MiB")
    assert "needs" in told["error"] and told["error"] in table
    assert told["rungs"] and not any(rung["fits"] or rung["chosen"] for rung in told["rungs"])


def test_a_chosen_tile_is_planned_with(exact, sdxl):
    told, _ = planned(exact, sdxl, width=512, height=512, tile_size=128)
    assert [r["tiles"][1] for r in told["rungs"] if r["chosen"]] == [128]


class Patcher:
    """Of ComfyUI's ModelPatcher, what planning asks: how much of the model is on the device already."""

    def loaded_size(self) -> int:
        return 0


@pytest.fixture
def on_a_device(exact, monkeypatch) -> Any:
    """SDXL, full size and without data, on a CUDA device of which so much is free, and so much more if other models leave."""
    host, hosting = exact.part("nodes.host"), exact.part("nodes.hosted")
    with torch.device("meta"):
        net = exact.part("vae_core").AutoencoderKL(**exact.part("vae_core").VARIANTS["sdxl"].config).to(torch.bfloat16)
    opened = exact.part("vae_core.checkpoint").open_state_dict(hosting.weights_of(net), "a VAE", variant="sdxl")
    hosted = hosting.Hosted(opened)
    hosted.vae.device = torch.device("cuda:0")
    monkeypatch.setattr(exact.part("vae_core.execution"), "total_bytes", lambda device: 8 << 30)

    def plan(free: int, others: int, px: int = 1024, **how: Any) -> Any:
        monkeypatch.setattr(host, "free_bytes", lambda device: free)
        monkeypatch.setattr(host, "reclaimable_bytes", lambda device, patcher: others)
        settings = exact.part("vae_core.execution").How(**how)
        return hosted.plan("decode", px, px, 1, settings, Patcher())

    return plan


MIB = 2**20


def test_nobody_has_to_leave_where_the_whole_run_fits(on_a_device):
    assert on_a_device(4096 * MIB, 0).rung == "whole"
    assert on_a_device(4096 * MIB, 9000 * MIB).device_bytes <= 4096 * MIB * 0.9


def test_nobody_has_to_leave_for_a_run_that_streams_as_fast(on_a_device):
    # On the device alone, which costs as much as the whole run, within a few tiles.
    plan = on_a_device(4000 * MIB, 9000 * MIB, px=2048)
    assert plan.rung == "streamed" and plan.host_bytes < MIB and plan.device_bytes <= 4000 * MIB


def test_others_leave_where_the_run_would_else_be_much_slower_or_refused(on_a_device):
    starved = on_a_device(350 * MIB, 0, px=2048)
    assert starved.host_bytes
    helped = on_a_device(350 * MIB, 9000 * MIB, px=2048)
    assert helped.device_bytes > 350 * MIB and helped.chosen.cost < starved.chosen.cost / 2
    assert on_a_device(100 * MIB, 9000 * MIB).device_bytes > 100 * MIB


def test_others_leave_only_as_far_as_a_users_limit(on_a_device):
    assert on_a_device(100 * MIB, 9000 * MIB, memory_limit=500 * MIB).device_bytes <= 500 * MIB


def test_a_clip_is_planned_for_as_the_chunk_that_needs_most(exact, monkeypatch):
    """Wan 2.1 in its published width, without data."""
    host, hosting, core = exact.part("nodes.host"), exact.part("nodes.hosted"), exact.part("vae_core")
    with torch.device("meta"):
        net = core.AutoencoderKLWan().to(torch.bfloat16)
    hosted = hosting.Hosted(exact.part("vae_core.checkpoint").open_state_dict(hosting.weights_of(net), "a VAE"))
    hosted.vae.device = torch.device("cuda:0")
    monkeypatch.setattr(exact.part("vae_core.execution"), "total_bytes", lambda device: 8 << 30)
    monkeypatch.setattr(host, "free_bytes", lambda device: 2 << 30)
    monkeypatch.setattr(host, "reclaimable_bytes", lambda device, patcher: 0)
    how = exact.part("vae_core.execution").How()
    short, long = (hosted.plan("decode", 832, 480, 1, how, Patcher(), frames) for frames in (17, 81))
    assert short.device_bytes == long.device_bytes <= 2 << 30, "memory does not grow with the clip"
    assert long.chosen.operations > 4 * short.chosen.operations


def test_weights_that_comfyui_has_left_behind_come_along_for_the_run(exact, folders):
    """On fake CUDA tensors, which raise where an operation mixes devices: a module that is half on the device."""
    hosting, models = exact.part("nodes.hosted"), exact.part("vae_core.models")
    with torch.device("meta"):
        net = models.AutoencoderKL(
            block_out_channels=(32, 32), norm_num_groups=8, mid_block_add_attention=False, use_quant_conv=False
        )
    with fake_cuda():
        on_fake_cuda(net, torch.bfloat16)
        for module in net.encoder.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(weight.shape), requires_grad=False)
        opened = exact.part("vae_core.checkpoint").open_state_dict(hosting.weights_of(net), "a VAE")
        hosted = hosting.Hosted(opened)
        hosted.vae.device = torch.device("cuda:0")
        with hosted.bound() as vae:
            assert {p.device.type for p in vae.net.parameters()} == {"cuda"}
            assert (
                vae.net.decode(torch.empty(1, 4, 8, 8, dtype=torch.bfloat16, device="cuda")).sample.device.type
                == "cuda"
            )
            assert vae.net.encode(torch.empty(1, 3, 64, 64, device="cuda")).latent_dist.mean.device.type == "cuda"
        assert {p.device.type for p in vae.net.parameters()} == {"meta"}
        assert {p.device.type for p in net.encoder.parameters()} == {"cpu"}, "the module itself is ComfyUI's to move"
