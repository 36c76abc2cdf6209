"""AutoencoderKL has the methods that diffusers documents, with the same names, arguments and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor as TheirAttnProcessor
from diffusers.models.attention_processor import AttnProcessor2_0 as TheirAttnProcessor2_0
from diffusers.models.attention_processor import FusedAttnProcessor2_0 as TheirFusedAttnProcessor2_0
from diffusers.models.attention_processor import SlicedAttnProcessor as TheirSlicedAttnProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as TheirDistribution
from tiny_nets import relative_error, tiny_net
from torch import Tensor
from twins import latents, picture, twins

import vae_core
from vae_core.nets.attention import AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0

SAME = 2e-5
"""Relative, float32, between diffusers and here."""
EQUAL = 1e-5
"""Relative, float32, between two ways to compute the same here."""


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- encode, decode, forward ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "flux2"])
@torch.inference_mode()
def test_encode_decode_and_forward(name: str) -> None:
    theirs, ours = twins(name)
    x, z = picture(40, 56, batch=2), latents(ours, 40, 56, batch=2)
    output, (posterior,) = ours.encode(x), ours.encode(x, return_dict=False)
    assert isinstance(output, vae_core.AutoencoderKLOutput)
    assert isinstance(posterior, vae_core.DiagonalGaussianDistribution)
    assert torch.equal(output.latent_dist.parameters, posterior.parameters)
    assert relative_error(posterior.parameters, theirs.encode(x, return_dict=False)[0].parameters) <= SAME

    output, (pixels,) = ours.decode(z), ours.decode(z, return_dict=False)
    assert isinstance(output, vae_core.DecoderOutput)
    assert torch.equal(output.sample, pixels)
    assert relative_error(pixels, theirs.decode(z, return_dict=False)[0]) <= SAME
    assert torch.equal(ours.decode(z, generator=seeded()).sample, pixels)

    assert isinstance(ours(x), vae_core.DecoderOutput)
    assert torch.equal(ours(x).sample, ours(x, return_dict=False)[0])
    assert torch.equal(ours(x).sample, ours.decode(posterior.mode()).sample)
    assert relative_error(ours(x).sample, theirs(x).sample) <= SAME


@torch.inference_mode()
def test_the_same_seed_draws_the_same_sample() -> None:
    theirs, ours = twins("sdxl")
    x = picture(40, 56, batch=2)
    drawn = [model.encode(x).latent_dist.sample(generator=seeded()) for model in (theirs, ours)]
    assert relative_error(drawn[1], drawn[0]) <= SAME
    assert relative_error(drawn[1], ours.encode(x).latent_dist.mode()) > 0.1
    there, here = (model(x, sample_posterior=True, generator=seeded()).sample for model in (theirs, ours))
    assert relative_error(here, there) <= SAME
    assert torch.equal(here, ours(x, True, False, seeded())[0])
    torch.manual_seed(3)
    first = ours.encode(x).latent_dist.sample()
    torch.manual_seed(3)
    assert relative_error(theirs.encode(x).latent_dist.sample(), first) <= SAME


@torch.inference_mode()
def test_slicing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = tiny_net("sdxl")
    x, z = picture(40, 56, batch=3), latents(net, 40, 56, batch=3)
    whole = net.encode(x).latent_dist.parameters, net.decode(z).sample
    seen: list[int] = []
    for name in ("encode_field", "decode_field"):
        run = getattr(net, name)
        monkeypatch.setattr(net, name, lambda f, run=run: (seen.append(f.shape[0]), run(f))[1])
    net.enable_slicing()
    assert relative_error(net.encode(x).latent_dist.parameters, whole[0]) <= EQUAL
    assert relative_error(net.decode(z).sample, whole[1]) <= EQUAL
    net.disable_slicing()
    net.decode(z)
    assert seen == [1] * 6 + [3]


def test_switches() -> None:
    net: Any = tiny_net("sdxl")
    assert (net.use_tiling, net.use_slicing) == (False, False)
    net.enable_tiling()
    net.enable_slicing()
    assert (net.use_tiling, net.use_slicing) == (True, True)
    net.enable_tiling(False)  # diffusers' older signature
    net.disable_slicing()
    assert (net.use_tiling, net.use_slicing) == (False, False)
    net.enable_tiling()
    net.disable_tiling()
    assert not net.use_tiling
    assert not vae_core.AutoencoderKL.use_tiling, "a switch of one model must not turn them all"


def test_config_reads_as_attributes_and_as_a_mapping() -> None:
    config = tiny_net("sd3").config
    assert config.latent_channels == config["latent_channels"] == config.get("latent_channels") == 16
    assert config.scaling_factor == dict(config)["scaling_factor"] == 1.5305
    assert "shift_factor" in config and "shift" not in config
    assert config.get("shift") is None and config.get("shift", 3) == config.get("keys", 3) == 3
    with pytest.raises(KeyError):
        config["shift"]


# --- attention processors ---------------------------------------------------------------------------------------------


def test_processors_have_the_names_of_diffusers() -> None:
    theirs, ours = twins("sdxl")
    assert list(ours.attn_processors) == list(theirs.attn_processors)
    assert {type(p).__name__ for p in ours.attn_processors.values()} == {"AttnProcessor2_0"}


def run_both(net: Any, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoded and decoded, whole and over tiles."""
    vae = vae_core.VAE.of(net)
    return net.encode(x).latent_dist.mode(), net.decode(z).sample, vae.encode(x, tile=16), vae.decode(z, tile=16)


def assert_equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    for one, other in zip(a, b, strict=True):
        assert relative_error(one, other) <= EQUAL


class Recorded(AttnProcessor):
    """Ours, and how many queries came at a time."""

    def __init__(self) -> None:
        self.queries: list[int] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.queries.append(q.shape[1])
        return super().attend(q, k, v)


@torch.inference_mode()
def test_the_default_processor() -> None:
    net: Any = tiny_net("sdxl")
    x, z = picture(160, 144), latents(net, 160, 144)
    fused = run_both(net, x, z)
    net.set_default_attn_processor()
    assert {type(p) for p in net.attn_processors.values()} == {AttnProcessor}
    assert_equal(run_both(net, x, z), fused)
    net.set_attn_processor(recorded := Recorded())
    assert_equal(run_both(net, x, z), fused)
    # 20 × 18 cells: at once in the two whole runs, in tiles of 16 in the two streamed ones.
    assert recorded.queries == [360, 360, *[256, 32, 64, 8] * 2]


def test_the_default_processor_keeps_float64() -> None:
    net: Any = tiny_net("sdxl", torch.float64)
    z = latents(net, 40, 56, torch.float64)
    with torch.inference_mode():
        fused = net.decode(z).sample
        net.set_default_attn_processor()
        assert relative_error(net.decode(z).sample, fused) <= 1e-13


@torch.inference_mode()
def test_the_default_processor_equals_that_of_diffusers() -> None:
    theirs, ours = twins("sdxl")
    z = latents(ours, 40, 56)
    for model in (theirs, ours):
        model.set_default_attn_processor()
    assert relative_error(ours.decode(z).sample, theirs.decode(z).sample) <= SAME


class Noted(TheirAttnProcessor2_0):
    """One of diffusers', and the shapes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.shapes.append(tuple(hidden_states.shape))
        return super().__call__(attn, hidden_states, *args, **kwargs)


@pytest.mark.parametrize(
    "processor",
    [TheirAttnProcessor(), TheirAttnProcessor2_0(), TheirSlicedAttnProcessor(1)],
    ids=lambda p: type(p).__name__,
)
@torch.inference_mode()
def test_processors_of_diffusers_work(processor: Any) -> None:
    net: Any = tiny_net("sdxl")
    x, z = picture(40, 136, batch=2), latents(net, 40, 136, batch=2)
    ours = run_both(net, x, z)
    net.set_attn_processor(processor)
    assert all(p is processor for p in net.attn_processors.values())
    assert_equal(run_both(net, x, z), ours)


@torch.inference_mode()
def test_processors_of_diffusers_see_the_whole_picture() -> None:
    net: Any = tiny_net("sdxl")
    net.set_attn_processor(noted := Noted())
    run_both(net, picture(40, 136), latents(net, 40, 136))
    assert noted.shapes == [(1, 32, 5, 17)] * 4


@torch.inference_mode()
def test_our_processors_can_be_called_as_those_of_diffusers() -> None:
    """For whoever wraps one in a processor of their own."""
    net: Any = tiny_net("sdxl")
    x, z = picture(40, 136), latents(net, 40, 136)
    for ours in (AttnProcessor2_0(), AttnProcessor()):
        net.set_attn_processor(ours)
        direct = run_both(net, x, z)
        net.set_attn_processor(lambda attn, hidden_states, ours=ours: ours(attn, hidden_states))
        assert_equal(run_both(net, x, z), direct)


@torch.inference_mode()
def test_processors_of_a_dict() -> None:
    net: Any = tiny_net("sdxl")
    names = list(net.attn_processors)
    given = {names[0]: AttnProcessor(), names[1]: TheirAttnProcessor()}
    net.set_attn_processor(given)
    assert net.attn_processors == given and len(given) == 2


def test_a_wrong_dict_is_refused_in_a_sentence_and_changes_nothing() -> None:
    net: Any = tiny_net("sdxl")
    before = net.attn_processors
    name = next(iter(before))
    for wrong in ({}, {name: AttnProcessor()}, dict.fromkeys([name, "decoder.attention"], AttnProcessor())):
        with pytest.raises(
            vae_core.InputError, match=r"encoder\.mid_block\.attentions\.0\.processor, decoder\."
        ) as refusal:
            net.set_attn_processor(wrong)
        assert isinstance(refusal.value, ValueError)
        assert net.attn_processors == before


def test_a_processor_with_weights_of_its_own() -> None:
    """It becomes part of the network, as in diffusers, and goes again."""

    class Weighted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.zeros(()))

        def forward(self, attn: Any, hidden_states: Tensor) -> Tensor:
            return hidden_states + self.gain * AttnProcessor2_0()(attn, hidden_states)

    net: Any = tiny_net("sdxl")
    keys = set(net.state_dict())
    processor = Weighted()
    net.set_attn_processor(processor)
    assert any(p is processor.gain for p in net.parameters())
    net.decode(latents(net, 16, 16)).sample.sum().backward()
    assert processor.gain.grad is not None and processor.gain.grad != 0
    net.set_default_attn_processor()
    assert set(net.state_dict()) == keys


@torch.inference_mode()
def test_fused_projections() -> None:
    theirs, ours = twins("sdxl")
    x, z = picture(40, 136), latents(ours, 40, 136)
    separate, keys = run_both(ours, x, z), list(ours.state_dict())
    ours.set_default_attn_processor()
    before = ours.attn_processors
    for model in (theirs, ours):
        model.fuse_qkv_projections()
    assert set(ours.state_dict()) - set(keys) == set(theirs.state_dict()) - set(keys) != set()
    assert {type(p) for p in ours.attn_processors.values()} == {FusedAttnProcessor2_0}
    assert_equal(run_both(ours, x, z), separate)
    ours.set_attn_processor(TheirFusedAttnProcessor2_0())
    assert_equal(run_both(ours, x, z), separate)
    ours.fuse_qkv_projections()  # a second time changes nothing
    ours.unfuse_qkv_projections()
    assert list(ours.state_dict()) == keys
    assert ours.attn_processors == before
    assert_equal(run_both(ours, x, z), separate)
    ours.unfuse_qkv_projections()
    assert ours.attn_processors == before


def test_what_fused_projections_learn_is_not_lost(tmp_path: Path) -> None:
    net: Any = tiny_net("sdxl")
    z = latents(net, 16, 24)
    net.fuse_qkv_projections()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if ".to_qkv." in name:
                value.add_(torch.randn(value.shape, generator=seeded()))
        learned = net.decode(z).sample
    net.save_pretrained(tmp_path)
    loaded: Any = vae_core.AutoencoderKL.from_pretrained(tmp_path)
    net.unfuse_qkv_projections()
    with torch.inference_mode():
        for model in (net, loaded):
            assert relative_error(model.decode(z).sample, learned) <= EQUAL
        assert relative_error(tiny_net("sdxl").decode(z).sample, learned) > 1e-2  # type: ignore[operator]


# --- posterior and outputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_posterior_is_that_of_diffusers(dtype: torch.dtype, deterministic: bool) -> None:
    # Wide enough that logvar is clamped at both ends.
    moments = (torch.randn(3, 8, 5, 4, generator=seeded()) * 30).to(dtype)
    other = torch.randn(3, 8, 5, 4, generator=seeded(6)).to(dtype)
    theirs, ours = (
        TheirDistribution(moments, deterministic),
        vae_core.DiagonalGaussianDistribution(moments, deterministic),
    )
    for name in ("parameters", "mean", "logvar", "std", "var"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.deterministic is deterministic
    assert torch.equal(ours.mode(), theirs.mode())
    drawn = ours.sample(seeded())
    assert torch.equal(drawn, theirs.sample(seeded())) and drawn.dtype == dtype
    assert torch.equal(drawn, ours.mean) is deterministic
    assert_close(ours.kl(), theirs.kl())
    their_other, our_other = TheirDistribution(other), vae_core.DiagonalGaussianDistribution(other)
    assert_close(our_other.kl(our_other), torch.zeros(3))
    assert_close(ours.kl(our_other), theirs.kl(their_other))
    point = torch.randn(3, 4, 5, 4, generator=seeded(7)).to(dtype)
    assert_close(our_other.nll(point), their_other.nll(point))
    assert_close(our_other.nll(point, dims=(1, 2)), their_other.nll(point, dims=(1, 2)))
    assert_close(ours.nll(point), theirs.nll(point))


def assert_close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert torch.allclose(a.float(), b.float(), rtol=2e-2 if a.dtype == torch.bfloat16 else 1e-5, atol=1e-3)


def test_outputs() -> None:
    pixels = torch.zeros(1, 3, 2, 2)
    out = vae_core.DecoderOutput(pixels)
    assert out.sample is out[0] is out["sample"] is out.to_tuple()[0] is dict(out)["sample"] is pixels  # type: ignore[call-overload]
    assert out[:1] == out.to_tuple() == (pixels,)
    assert list(out) == list(out.keys()) == ["sample"] and len(out) == 1 and "sample" in out
    assert out.commit_loss is None
    for absent in ("commit_loss", "replace", "latents"):
        with pytest.raises(KeyError):
            out[absent]
    with pytest.raises(IndexError):
        out[1]
    both = out.replace(commit_loss=torch.ones(()))
    assert list(both) == ["sample", "commit_loss"] and both.sample is pixels and both[1] == 1
    assert out.commit_loss is None, "replace changed the original"
    with pytest.raises(TypeError):
        out.replace(pixels=pixels)
    with pytest.raises(AttributeError):
        out.sample = pixels  # type: ignore[misc]


def test_every_output_has_replace() -> None:
    posterior = vae_core.DiagonalGaussianDistribution(torch.zeros(1, 2, 1, 1))
    encoded = vae_core.AutoencoderKLOutput(posterior)
    assert encoded["latent_dist"] is encoded[0] is posterior
    other = vae_core.DiagonalGaussianDistribution(torch.ones(1, 2, 1, 1))
    assert encoded.replace(latent_dist=other).latent_dist is other
    latents = vae_core.AutoencoderTinyOutput(torch.zeros(1))
    assert latents.replace(latents=torch.ones(1)).latents == 1
