"""One training step of a tiny AutoencoderKL, alone or in one of several processes that each see their share of the batch.

A module of its own: a new process imports it, and diffusers would take seconds.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_nets import tiny_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 2


def batch() -> Tensor:
    """Four pictures."""
    return torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def train(model: nn.Module, pictures: Tensor) -> dict[str, Tensor]:
    """Some steps of gradient descent on the reconstruction; the weights after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(pictures).sample - pictures).square().mean().backward()
        optimizer.step()
    return {name.removeprefix("module."): value.detach() for name, value in model.named_parameters()}


def train_share(rank: int, processes: int, folder: Path) -> None:
    """What each process runs: `train` on every `processes`-th picture, gradients averaged; rank 0 saves the weights."""
    torch.set_num_threads(1)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=processes)
    try:
        model = DistributedDataParallel(tiny_net("sdxl", torch.float64))
        weights = train(model, batch()[rank::processes])
        if rank == 0:
            torch.save(weights, folder / "weights.pt")
    finally:
        dist.destroy_process_group()
