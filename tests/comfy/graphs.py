"""Graphs in ComfyUI's API format, and what came out of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_server import ComfyServer, Run
from safetensors.torch import load_file
from torch import Tensor

Link = list[Any]


class Graph:
    """`link = graph("VAEDecode", samples=latent, vae=vae)`: adds a node, and gives the link to its first output."""

    def __init__(self) -> None:
        self.prompt: dict[str, dict[str, Any]] = {}

    def __call__(self, class_type: str, output: int = 0, **inputs: Any) -> Link:
        name = str(len(self.prompt) + 1)
        self.prompt[name] = {"class_type": class_type, "inputs": inputs}
        return [name, output]

    def tiny(self, **inputs: Any) -> Link:
        return self("ExactVAELoader", vae_name="vae_approx/taesd_decoder.safetensors", **inputs)

    def keep(self, images: Link) -> str:
        """Keeps an IMAGE; the id under which `kept` finds it."""
        return self("ProbeKeep", images=images)[0]


def succeeded(server: ComfyServer, graph: Graph, **options: Any) -> Run:
    run = server.run(graph.prompt, **options)
    assert run.status == "success", said(run)
    return run


def said(run: Run) -> str:
    """The error's sentence; the rest of what ComfyUI reports is tensors."""
    return run.status if run.error is None else f"{run.error['node_type']}: {run.error['exception_message']}"


def kept(server: ComfyServer, run: Run, node: str) -> Tensor:
    """The IMAGE that a node kept."""
    return load_file(server.output(run.outputs[node]["kept"][0]))["images"]


def told(run: Run, link: Link) -> Mapping[str, Any]:
    """What the panel of a node was sent."""
    # The history keeps what is cached; without a cache (--cache-none) only the message has it.
    (summary,) = (run.outputs | run.executed)[link[0]]["exact_vae"]
    return summary


def saved_latent(run: Run) -> Path:
    """The file that an error names."""
    assert run.error is not None
    found = re.search(r"saved as (.+?\.latent)", run.error["exception_message"])
    assert found, run.error["exception_message"]
    return Path(found[1])
