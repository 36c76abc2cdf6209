"""Who is timed: vae_core, diffusers and ComfyUI, each with the same random weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_core import VAE
from vae_core.checkpoint import comfyui_names
from vae_core.device import default_dtype
from vae_core.loading import lay_out
from vae_core.models import CLASSES
from vae_core.spec import TINY, VARIANTS, Spec

from .cases import Case

Run = Callable[[Tensor], Tensor]

OURS = {
    "vae_core": {"mode": "whole"},
    "vae_core, by default": {},
    "vae_core, tiles of 512": {"tile": 512},
    "vae_core, tiles of 256": {"tile": 256},
    "vae_core, blended tiles": {"mode": "blend", "tile": 256},
}
DEFAULT = "default"
"""In place of a dtype: each side's own choice."""
COMPILED = "vae_core, torch.compile"
"""Of pictures, untiled; only where `--sides` names it, as compiling takes a minute."""
DIFFUSERS = ("diffusers", "diffusers channels_last", "diffusers, tiled")
COMFYUI = ("ComfyUI", "ComfyUI, tiled")
TILED = {
    "vae_core, tiles of 512",
    "vae_core, tiles of 256",
    "vae_core, blended tiles",
    "diffusers, tiled",
    "ComfyUI, tiled",
}
"""Whose largest difference from the same side untiled is told."""

TILE_PX = 256
"""Of the peers' tiles, with their own default overlap."""


def of(case: Case) -> tuple[str, ...]:
    """The sides that a case is timed on; ComfyUI's where COMFYUI_PATH names it, and it has the network."""
    names: tuple[str, ...] = (*OURS, *DIFFUSERS)
    if os.environ.get("COMFYUI_PATH") and case.variant in ("sdxl", "wan21"):
        names += COMFYUI
    small = max(case.width, case.height) <= TILE_PX
    names = tuple(name for name in names if not (small and (name in TILED or "512" in name)))
    if case.frames == 1:
        names += (COMPILED,)
    if case.network == TINY:  # whose blending in diffusers is another scheme, and always on
        names = tuple(name for name in names if "blended" not in name and name != "diffusers, tiled")
    return names


def network(case: Case) -> Any:
    """Ours with random weights, the same for every side, in float32."""
    torch.manual_seed(0)
    return CLASSES[case.network](**VARIANTS[case.variant].config).eval()


class Ready(NamedTuple):
    """A side of a case, built."""

    run: Run
    plain: Run
    """The same without tiles."""
    dtype: torch.dtype
    """In which it computes."""
    shape: tuple[int, ...]
    """Of the input."""


def build(side: str, case: Case, dtype: torch.dtype | None, device: torch.device) -> Ready:
    """`dtype` None: what the side chooses itself for this device, diffusers float32 as its weights are."""
    net = network(case)
    spec = Spec.of(VARIANTS[case.variant], net.config)
    shape = case.shape(spec, net.latents_of(case.frames) if net.clip else 1)
    if side in COMFYUI:
        return Ready(*_comfyui(side, net, case, dtype, device), shape)
    if side in DIFFUSERS:
        dtype = dtype or torch.float32
        return Ready(*_diffusers(side, net.state_dict(), case, dtype, device), dtype, shape)
    dtype = dtype or default_dtype(device, spec, case.direction)
    net = net.to(device, dtype)
    lay_out(net)
    return Ready(*(_compiled(net, case) if side == COMPILED else _ours(net, case, OURS[side])), dtype, shape)


def _ours(net: Any, case: Case, how: Mapping[str, Any]) -> tuple[Run, Run]:
    vae = VAE.of(net, VARIANTS[case.variant])
    run = vae.decode if case.direction == "decode" else vae.encode
    return lambda x: run(x, **how), lambda x: run(x, mode="whole")


def _compiled(net: Any, case: Case) -> tuple[Run, Run]:
    decodes = case.direction == "decode"
    function = torch.compile(net.decode if decodes else net.encode)

    def run(x: Tensor) -> Tensor:
        made = function(x)
        return made.sample if decodes else made.latents if case.network == TINY else made.latent_dist.mode()

    return run, run


def _diffusers(
    side: str, state: Mapping[str, Tensor], case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[Run, Run]:
    import diffusers

    config = {k: list(v) if isinstance(v, tuple) else v for k, v in VARIANTS[case.variant].config.items()}
    if case.network == "AutoencoderKL":
        levels = len(config["block_out_channels"])
        config |= {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    model: Any = getattr(diffusers, case.network)(**config).eval()
    model.load_state_dict(state)
    model = model.to(device, dtype)
    clip = case.frames > 1
    if "channels_last" in side:
        for parameter in model.parameters():
            parameter.data = channels_last(parameter.data)

    def run(x: Tensor) -> Tensor:
        x = channels_last(x) if "channels_last" in side else x
        made = model.decode(x) if case.direction == "decode" else model.encode(x)
        return made.sample if case.direction == "decode" else getattr(made, "latent_dist", made)

    def tiled(x: Tensor) -> Tensor:
        model.enable_tiling()
        if not clip:
            model.tile_sample_min_size = TILE_PX
            model.tile_latent_min_size = TILE_PX // 8
        try:
            return run(x)
        finally:
            model.disable_tiling()

    def moments(run: Run) -> Run:
        return lambda x: made.mode() if hasattr(made := run(x), "mode") and not isinstance(made, Tensor) else made

    return moments(tiled if "tiled" in side else run), moments(run)


def channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.ndim]) if x.ndim in formats else x


def _comfyui(
    side: str, net: Any, case: Case, dtype: torch.dtype | None, device: torch.device
) -> tuple[Run, Run, torch.dtype]:
    flags = {torch.float32: ["--fp32-vae"], torch.float16: ["--fp16-vae"], torch.bfloat16: ["--bf16-vae"], None: []}
    sys.argv = [sys.argv[0], *flags[dtype], *(["--cpu"] if device.type == "cpu" else [])]
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.options  # pyright: ignore[reportMissingImports]

    comfy.options.enable_args_parsing()
    import comfy.sd  # pyright: ignore[reportMissingImports]

    vae = comfy.sd.VAE(sd={k: v.contiguous() for k, v in comfyui_names(net.state_dict()).items()})
    decodes, cells = case.direction == "decode", TILE_PX // 8

    def image(x: Tensor) -> Tensor:
        """ComfyUI's nodes give pixels so."""
        x = (x + 1) / 2
        return x.movedim(1, -1) if case.frames == 1 else x[0].movedim(0, -1)

    def plain(x: Tensor) -> Tensor:
        return vae.decode(x) if decodes else vae.encode(image(x))

    def tiled(x: Tensor) -> Tensor:
        if decodes:
            return vae.decode_tiled(x, tile_x=cells, tile_y=cells, overlap=cells // 4)
        return vae.encode_tiled(image(x), tile_x=TILE_PX, tile_y=TILE_PX, overlap=TILE_PX // 4)

    return tiled if "tiled" in side else plain, plain, vae.vae_dtype
