"""Devices: limits, memory that is there, errors that say it ran out, number formats, builds with known problems."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

import vae_core
from vae_core.device import builds, default_dtype, dtypes, known_problems, memory, parse_limit, ran_out_of
from vae_core.device.builds import PROBLEMS, Build
from vae_core.spec import VARIANTS, Spec
from vae_core.stream.homes import scratch_folder

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def spec(name: str) -> Spec:
    net = vae_core.models.CLASSES[VARIANTS[name].network]
    with torch.device("meta"):
        return Spec.of(VARIANTS[name], net(**VARIANTS[name].config).config)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_limits() -> None:
    for value, count in ((512, 512), ("2GiB", 2 << 30), ("50%", 500), ("12.5 %", 125), ("100%", 1000)):
        assert parse_limit(value, 1000) == count
    for bad in ("0%", "101%", "%", "-5%", "half", "0", 0, -1, "5 apples"):
        with pytest.raises(vae_core.InputError, match="memory limit"):
            parse_limit(bad, 1000)


def test_memory_that_is_there() -> None:
    assert 0 < memory.free_bytes(CPU) <= memory.total_bytes(CPU)
    assert memory.disk_bytes(Path("/no/such/folder")) > 0


def test_control_groups_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemAvailable:   8388608 kB\n"}
    monkeypatch.setattr(memory, "_read", files.get)
    assert memory.host_bytes() == 8 << 30
    files |= {"/sys/fs/cgroup/memory.max": f"{3 << 30}\n", "/sys/fs/cgroup/memory.current": f"{1 << 30}\n"}
    assert memory.host_bytes() == 2 << 30
    assert memory.total_bytes(CPU) == 3 << 30
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.host_bytes() == 8 << 30


def test_which_memory_ran_out() -> None:
    def real() -> RuntimeError:
        try:
            torch.empty(1 << 50)
        except RuntimeError as error:
            return error
        raise AssertionError("a petabyte was there")

    assert ran_out_of(real(), CPU) == "device"
    assert ran_out_of(real(), CUDA) == "host"
    assert ran_out_of(MemoryError(), CPU) == "device"
    assert ran_out_of(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), CUDA) == "device"
    assert ran_out_of(RuntimeError("CUDA error: out of memory"), CUDA) == "device"
    assert ran_out_of(OSError(errno.ENOSPC, "No space left on device"), CPU) == "disk"
    for other in (RuntimeError("shapes do not match"), OSError(errno.EACCES, "no"), ValueError("DefaultCPU")):
        assert ran_out_of(other, CUDA) is None


def test_temporary_files_do_not_go_to_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vae_core.stream import homes

    monkeypatch.delenv("EXACT_VAE_SCRATCH", raising=False)
    monkeypatch.setattr(homes, "_in_memory", lambda folder: True)
    assert scratch_folder().parts[-2:] == (".cache", "exact-vae")
    monkeypatch.setenv("EXACT_VAE_SCRATCH", str(tmp_path))
    assert scratch_folder() == tmp_path
    monkeypatch.undo()
    assert homes._in_memory(Path("/dev/shm")) is (Path("/dev/shm").is_dir() and "/dev/shm tmpfs" in mounts())


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


# --- number formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "half", "decode", "encode"),
    [
        ("sdxl", {torch.bfloat16, torch.float16}, torch.bfloat16, torch.float32),
        ("sdxl", {torch.float16}, torch.float32, torch.float32),  # a GPU before Ampere: SDXL overflows float16
        ("sd1", {torch.float16}, torch.float16, torch.float32),
        ("flux1", set(), torch.float32, torch.float32),
        ("taesd", {torch.bfloat16}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_formats(
    name: str, half: set[torch.dtype], decode: torch.dtype, encode: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "_is_fast", lambda dtype, device: dtype in half)
    assert default_dtype(CUDA, spec(name), "decode") == decode
    assert default_dtype(CUDA, spec(name), "encode") == encode


@pytest.mark.parametrize(
    ("capabilities", "fast"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, False), ({"avx2": True}, False)]
)
def test_a_cpu_decodes_in_bfloat16_only_where_it_computes_in_it(
    capabilities: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    vae = vae_core.load_embedded(device="cpu")
    assert vae.dtype == (torch.bfloat16 if fast else torch.float32)
    assert vae.encode_dtype == torch.float32
    assert vae.decode(torch.zeros(1, 4, 2, 2)).dtype == vae.dtype
    assert vae.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
    asked = vae_core.load_embedded(device="cpu", dtype=torch.float16)
    assert asked.dtype == asked.encode_dtype == torch.float16


# --- builds -----------------------------------------------------------------------------------------------------------


def test_known_problems_by_version() -> None:
    conv3d = next(row for row in PROBLEMS if row.name == "cudnn-conv3d-memory")
    for torch_version, cudnn, hit in (
        ((2, 9, 0), (9, 10, 2), True),
        ((2, 10, 1), (9, 14, 0), True),
        ((2, 10, 1), (9, 15, 0), False),
        ((2, 8, 0), (9, 10, 2), False),
        ((2, 11, 0), (9, 10, 2), False),
    ):
        assert conv3d.affects(Build(torch_version, cudnn, "cuda")) is hit
    assert not conv3d.affects(Build((2, 9, 0), (9, 10, 2), "cpu"))
    for row in PROBLEMS:
        assert row.symptom and row.source and bool(row.avoided) != bool(row.advice)


def test_problems_are_told_only_to_those_they_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Build, "here", classmethod(lambda cls, device: Build((2, 9, 1), (9, 12, 0), "cuda")))
    (told,) = known_problems(CUDA, dimensions=3)
    assert "pytorch/pytorch#166643" in told and "update torch" in told
    assert known_problems(CUDA, dimensions=2) == ()


def test_this_build_is_read() -> None:
    here = Build.here(CPU)
    assert here.torch >= (2, 4) and here.device == "cpu"
    assert builds._numbers("2.13.0+cpu") == (2, 13, 0)
    assert builds._cudnn_numbers(91002) == (9, 10, 2) and builds._cudnn_numbers(8902) == (8, 9, 2)
