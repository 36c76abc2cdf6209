"""The pack as ComfyUI loads it, under a name of its own, in a process without a ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_nets import tiny_net

from vae_core.checkpoint import save_diffusers, save_taesd_pair
from vae_core.models import AutoencoderTiny

ROOT = Path(__file__).resolve().parents[2]
NAME = "exact_vae_under_test"


def load_pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    return sys.modules.get(NAME) or load_pack()


class Pack:
    """The parts of the loaded pack that tests look at."""

    def __init__(self, module: ModuleType):
        self.nodes: dict[str, type] = module.NODE_CLASS_MAPPINGS
        self.titles: dict[str, str] = module.NODE_DISPLAY_NAME_MAPPINGS

    def part(self, name: str) -> Any:
        """A module of the pack: "nodes.host"."""
        return importlib.import_module(f"{NAME}.{name}")

    def node(self, name: str) -> Any:
        return self.nodes[name]()

    def vae(self, path: Path, variant: str | None = None, dtype: torch.dtype | None = None) -> Any:
        """What the loader gives for a file."""
        opened = self.part("vae_core.checkpoint").open_checkpoint(path, variant=variant)
        return self.part("nodes.vae_object").ExactVAE(opened, dtype)


@pytest.fixture(scope="session")
def exact(pack: ModuleType) -> Pack:
    return Pack(pack)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Diffusers folders of small networks with random weights, by variant: sdxl, flux1, flux2; and a TAESD's two files."""
    folder = tmp_path_factory.mktemp("vae")
    for name in ("sdxl", "flux1", "flux2"):
        net = tiny_net(name)
        save_diffusers(folder / name, net.network, dict(net.config), net.state_dict())
    torch.manual_seed(0)
    tiny = AutoencoderTiny()
    save_taesd_pair(folder / "taesd", dict(tiny.config), tiny.state_dict())
    return folder


@pytest.fixture(scope="session")
def sdxl(exact: Pack, folders: Path) -> Any:
    return exact.vae(folders / "sdxl")


@pytest.fixture(scope="session")
def taesd(exact: Pack, folders: Path) -> Any:
    return exact.vae(folders / "taesd" / "taesd_decoder.safetensors")
