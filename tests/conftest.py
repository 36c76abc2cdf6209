"""Settings for every test."""

from __future__ import annotations

import gc
import os

# The networks under test are tiny: one thread is faster than two that wait for each other, and nothing depends on the machine.
# In the environment as well, before torch is there: a thread that a test starts would else begin with as many as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# No test is timed: machines differ, and busy ones are slow.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """What importing has made stays for good: without this, each collection after a failed attempt walks all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def every_cpu_is_alike() -> None:
    """Float32 where no dtype is given, also on processors that compute in bfloat16; test_device.py tests that choice itself."""
    torch.cpu.get_capabilities = dict  # type: ignore[attr-defined]
