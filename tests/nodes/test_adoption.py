"""VAE objects of ComfyUI's own loaders: recognised once, shared, and let go with them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from tiny_nets import relative_error
from torch import Tensor, nn

from vae_core.checkpoint import comfyui_names
from vae_core.models import AutoencoderKL


class Weights(nn.Module):
    """A module with a state dict in ComfyUI's naming, as its own networks have; nothing of it is run."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self.state = state

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.state


class Core:
    """Of ComfyUI's VAE object, what adoption looks at."""

    patcher = None

    def __init__(self, module: nn.Module | None):
        self.first_stage_model = module

    def throw_exception_if_invalid(self) -> None:
        if self.first_stage_model is None:
            raise RuntimeError("ERROR: VAE is invalid")

    def decode(self, samples: Tensor) -> Tensor:
        return torch.zeros(len(samples), 8, 8, 3)


@pytest.fixture(autouse=True)
def core_class(exact, monkeypatch):
    monkeypatch.setattr(exact.part("nodes.host"), "CoreVAE", Core)


def network() -> AutoencoderKL:
    torch.manual_seed(0)
    shape = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 16}
    return AutoencoderKL(**shape, use_quant_conv=False, use_post_quant_conv=False).eval()


def core() -> Core:
    return Core(Weights(comfyui_names(network().state_dict())))


def latents(channels: int = 16) -> dict[str, Tensor]:
    return {"samples": torch.randn(1, channels, 6, 5, generator=torch.Generator().manual_seed(0))}


def test_its_weights_are_shared_and_read_anew_for_every_run(exact):
    vae, node, z = core(), exact.node("ExactVAEDecode"), latents()
    first = node.decode(z, vae)["result"][0]
    with torch.no_grad():
        plain = network().decode(z["samples"]).sample.clamp(-1, 1).add(1).div(2).movedim(1, -1)
    assert relative_error(first, plain) < 1e-5
    found = node.adopted.of(vae)
    with found.bound() as bound:
        mine = {p.untyped_storage().data_ptr() for p in bound.net.parameters()}
    assert mine == {t.untyped_storage().data_ptr() for t in vae.first_stage_model.state.values()}
    for tensor in vae.first_stage_model.state.values():
        tensor.mul_(0)
    assert relative_error(node.decode(z, vae)["result"][0], torch.full_like(first, 0.5)) < 1e-6


def test_it_is_recognised_once_and_let_go_with_its_object(exact):
    node, vae = exact.node("ExactVAEDecode"), core()
    node.decode(latents(), vae)
    found = node.adopted.of(vae)
    assert node.adopted.of(vae) is found
    del found, vae
    gc.collect()
    assert len(node.adopted._kept) == 0


def test_a_family_that_we_lack_is_run_by_its_own_object(exact):
    state = {"vquantizer.codebook.weight": torch.zeros(4, 4)}
    output = exact.node("ExactVAEDecode").decode({"samples": torch.zeros(1, 4, 2, 2)}, Core(Weights(state)))
    told = output["ui"]["exact_vae"][0]
    assert told["by"] == "comfyui" and "looks like the stage A VQ-VAE of Stable Cascade" in told["notes"][0]


def test_an_object_of_another_class_is_left_to_itself(exact):
    class TheirVAE(Core):
        """Another pack's, which may decode in its own way."""

    vae = TheirVAE(core().first_stage_model)
    told = exact.node("ExactVAEDecode").decode(latents(), vae)["ui"]["exact_vae"][0]
    assert told["by"] == "comfyui" and "TheirVAE of another pack" in told["notes"][0]


def test_a_checkpoint_without_a_vae_gets_comfyuis_own_sentence(exact):
    with pytest.raises(RuntimeError, match="VAE is invalid"):
        exact.node("ExactVAEDecode").decode(latents(), Core(None))
