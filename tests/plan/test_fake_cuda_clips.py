"""Plans of clips keep their word on a CUDA device, shown without one: full-size networks on fake tensors, under the meter.

`python -m benchmarks.clip_memory` makes the whole table; here is a part of it.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clip_memory import NAMES, SIZES, Row, Subject
from benchmarks.fake_cuda import FakeCudaMeter, fake_cuda, one_tile_of_each_kind
from benchmarks.memory import MIB, meta_net
from vae_core.clips import cut
from vae_core.execution import Direction
from vae_core.nets.trace import trace
from vae_core.spec import VARIANTS

SIX_GIB_MIB = 6 * 1024


def check(row: Row) -> None:
    assert row.device_measured_mib <= row.budget_mib, row
    assert 1.0 <= row.device_ratio <= 1.15, row
    # Besides Fields, a few tenths of a MiB of the clip's own chunk.
    assert row.host_measured_mib - 0.1 <= row.host_predicted_mib <= 1.15 * row.host_measured_mib + 0.1, row


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name, width, height", [("wan21", 1280, 720), ("cogvideox-5b", 720, 480)])
def test_full_size_on_a_6_gib_device(name: str, width: int, height: int, direction: Direction) -> None:
    """Exact, and no more operations than diffusers' plain run takes."""
    meta = meta_net(name)
    with fake_cuda():
        subject = Subject(name, "bf16", meta)
        row = subject.row(direction, width, height, SIX_GIB_MIB)
        ours = sum(trace.operations for trace in subject.run(direction, width, height, 17, SIX_GIB_MIB).traces)
    check(row)
    assert ours * row.operations_to_plain <= 1.0 * theirs(name, direction, width, height, 17)


@pytest.mark.parametrize(
    ("name", "size", "direction", "gib", "operations"),
    [
        ("qwen-image", 4096, "decode", 3, 1.05),
        ("qwen-image", 2048, "encode", 1, 1.05),
        pytest.param("wan21", 720, "decode", 1, 1.25, marks=pytest.mark.slow),
    ],
)
def test_depth_first_where_memory_is_short(
    name: str, size: int, direction: Direction, gib: float, operations: float
) -> None:
    """Before or after the attention within each frame: halos cost less than Fields on the host would."""
    meta = meta_net(name)
    with fake_cuda():
        row = Subject(name, "bf16", meta).row(direction, 1280 if size == 720 else size, size, gib * 1024)
    check(row)
    assert row.rung == "depth first in part" and row.operations_to_plain <= operations


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_a_lone_frame_is_not_multiplied_with_zeros(direction: Direction) -> None:
    """A picture through Qwen-Image: at most four tenths of the operations that diffusers' run takes."""
    meta: Any = meta_net("qwen-image")
    shape = (1, 16, 1, 64, 64) if direction == "decode" else (1, 3, 1, 512, 512)
    chunk = meta.decode_chunk if direction == "decode" else meta.encode_chunk
    ours = sum(p.operations for p in trace(lambda x: chunk(x, True), shape, keeps=False).passes)
    assert ours <= 0.4 * theirs("qwen-image", direction, 512, 512, 1)


def theirs(name: str, direction: Direction, width: int, height: int, frames: int) -> int:
    """Operations of diffusers' run of the whole clip, attention apart, which is the same work and not counted in theirs."""
    row = VARIANTS[name]
    with torch.device("meta"):
        net: Any = getattr(diffusers, row.network)(**row.config).eval()
        latents = frames // 4 + 1
        z = torch.empty(1, 16, latents, height // 8, width // 8)
        x = torch.empty(1, 3, frames, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.decode(z) if direction == "decode" else net.encode(x)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        ("wan21", (3, 5)),
        *(pytest.param(name, (9, 33, 129), marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_device_memory_does_not_grow_with_the_clip(name: str, clips: tuple[int, ...]) -> None:
    """Clips of so many latents."""
    meta, peaks = meta_net(name), []
    width, height = SIZES[name][0]
    with fake_cuda():
        subject = Subject(name, "bf16", meta)
        for latents in clips:
            run = subject.run("decode", width, height, subject.net.frames_of(latents), 3 * 1024)
            x = torch.empty(run.outlook.shape, dtype=subject.dtype)
            with one_tile_of_each_kind(), FakeCudaMeter(subject.net) as meter:
                for made in run.through(cut(x, run.outlook.lengths)):
                    del made
            peaks.append(meter.peak["cuda"] / MIB)
    assert max(peaks) <= 1.02 * min(peaks)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_size_and_budget(name: str, dtype: str, direction: Direction) -> None:
    meta = meta_net(name)
    with fake_cuda():
        subject = Subject(name, dtype, meta)
        for width, height in SIZES[name]:
            for row in subject.rows(direction, width, height, [gib * 1024 for gib in (1.5, 2, 3, 4, 6, 8, 12, 16, 24)]):
                check(row)
