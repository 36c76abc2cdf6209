"""Tiny VAEs in files, small pictures, and a way to run a command in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from clip_twins import SMALL
from PIL import Image

import vae_core
from vae_core.cli import main
from vae_core.models import CLASSES
from vae_core.spec import WAN


class Ran(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("decode", path, …)` → its exit status and what it printed."""

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Ran(status, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def vae_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with an AutoencoderKL of 8×, 4 latent channels and random weights."""
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    model = vae_core.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae(vae_path: Path) -> vae_core.VAE:
    return vae_core.load(vae_path)


@pytest.fixture(scope="session")
def clip_vae(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`clip_vae(WAN)` → a diffusers folder with a narrow network of that class, made once."""
    made: dict[tuple[object, ...], Path] = {}

    def folder(network: str, **fields: Any) -> Path:
        key = (network, *fields.items())
        if key not in made:
            torch.manual_seed(0)
            made[key] = tmp_path_factory.mktemp(network)
            CLASSES[network](**(SMALL[network] | fields)).save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture
def wan(clip_vae) -> Path:
    return clip_vae(WAN)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A smooth picture whose sides, 45 × 37 px, are no multiple of 8."""
    y, x = np.mgrid[0:37, 0:45]
    levels = np.stack([x * 5, y * 6, (x + y) * 3], axis=-1).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
