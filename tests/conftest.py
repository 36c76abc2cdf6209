"""Settings for every test."""

from __future__ import annotations

import torch

# The networks under test are tiny: one thread is faster than two that wait for each other, and nothing depends on the machine.
torch.set_num_threads(1)
