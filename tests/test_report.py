"""What a run tells afterwards: in one line, in the log, and as plain values."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from faults import FailingAllocations
from tiny_nets import tiny_net

import vae_core
from vae_core.spec import VARIANTS


def a_vae() -> vae_core.VAE:
    return vae_core.VAE.of(tiny_net("sdxl"), VARIANTS["sdxl"])


def test_a_report(caplog: pytest.LogCaptureFixture) -> None:
    vae = a_vae()
    assert vae.last_report is None
    with caplog.at_level(logging.INFO, logger="vae_core"):
        vae.decode(torch.randn(1, 4, 9, 14), tile=32)
    report = vae.last_report
    assert report is not None
    assert [record.message for record in caplog.records] == [report.line()]
    assert report.line().startswith("decode 1×4×9×14 in float32 on cpu: streamed, tiles of ")
    assert "predicted" in report.line() and report.line().endswith(" s")
    assert report.retries == 0 and report.events == ()
    assert report.measured_device_bytes is None and (report.measured_host_bytes or 0) >= 0
    assert 0 < sum(report.seconds_by_pass.values()) <= report.seconds
    assert "GroupNorm · silu · Conv2d" in report.seconds_by_pass
    read = json.loads(json.dumps(report.to_dict()))
    assert read["plan"]["rung"] == "streamed" and read["shape"] == [1, 4, 9, 14] and read["retries"] == 0


def test_mishaps_are_told(caplog: pytest.LogCaptureFixture) -> None:
    vae, z = a_vae(), torch.randn(1, 4, 9, 14)
    with FailingAllocations(lambda number: False) as counter:
        vae.decode(z, tile=32)
    for part in range(3, 12):  # some allocations fail where no smaller tiles help, and which ones depends on the CPU
        caplog.clear()
        failing = (counter.number // part, counter.number * 2 // part)
        with FailingAllocations(failing.__contains__):
            vae.decode(z, tile=32)
        report = vae.last_report
        assert report is not None and report.retries == 2 and report.line().endswith("2 retries")
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [*report.events]
        if all("memory ran out; went on with tiles of" in event for event in report.events):
            return
    pytest.fail("no pair of failing allocations was met with smaller tiles")


def test_encode_and_blend() -> None:
    vae = a_vae()
    vae.encode(torch.zeros(1, 3, 16, 24))
    assert vae.last_report is not None and vae.last_report.direction == "encode"
    vae.decode(torch.zeros(1, 4, 16, 24), mode="blend", tile=64)
    assert vae.last_report is None, "overlap-and-blend has no plan to report on"
