"""What users of FlaxAutoencoderKL had from jax, autodiff, jit, vectorization, parallelization, torch has for the plain modules."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import parallel_training
import pytest
import torch
from tiny_nets import relative_error, tiny_net
from torch import Tensor
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.multiprocessing.spawn import spawn
from twins import encoded, latents, picture, twins

import vae_core

F64 = torch.float64
EXACT = 1e-12
"""Relative, float64, between two orders of summation."""


def decode(net: Any, z: Tensor) -> Tensor:
    return net.decode(z).sample


# --- autodiff ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd", "taef2"])
def test_training_lowers_the_loss(name: str) -> None:
    net: Any = tiny_net(name).train()
    x = picture(32, 48, batch=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        output = net.encode(x)
        if "latents" in output:
            z, rate = output.latents, torch.zeros(())
        else:
            z, rate = output.latent_dist.sample(torch.Generator().manual_seed(0)), output.latent_dist.kl().mean()
        loss = (decode(net, z) - x).square().mean() + 1e-6 * rate
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], losses
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["sdxl", "x4-upscaler", "taesd"])
def test_gradients_are_those_of_diffusers(name: str) -> None:
    """Of the weights and of the input, through a posterior's sample where there is one."""
    gradients: list[dict[str, Tensor]] = []
    for model in twins(name, F64):
        x = picture(32, 40, F64, batch=2).requires_grad_()
        output = model.encode(x)
        z = output.latents if name == "taesd" else output.latent_dist.sample(torch.Generator().manual_seed(0))
        (decode(model, z) - x).square().mean().backward()
        gradients.append({"x": x.grad} | {key: value.grad for key, value in model.named_parameters()})
    theirs, ours = gradients
    assert theirs.keys() == ours.keys()
    # The keys' bias moves all scores of a query alike, so that its gradient is zero but for rounding.
    noise = 1e-15 * max(float(g.norm()) for g in theirs.values())
    for key, expected in theirs.items():
        assert float((ours[key] - expected).norm()) <= 1e-9 * float(expected.norm()) + noise, key


# --- jit --------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _without_compiled_code_of_earlier_tests() -> Iterator[None]:
    yield
    torch.compiler.reset()


def few_layers(network: str, levels: int) -> Any:
    """What compiling takes grows with the number of layers; two levels have every kind of them."""
    torch.manual_seed(0)
    if network == "AutoencoderTiny":
        widths = {f"{side}_block_out_channels": (8,) * levels for side in ("encoder", "decoder")}
        blocks = {f"num_{side}_blocks": (1,) * levels for side in ("encoder", "decoder")}
        return vae_core.AutoencoderTiny(**widths, **blocks).eval()
    return vae_core.AutoencoderKL(block_out_channels=(8, 16)[-levels:], norm_num_groups=4).eval()


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16])
@pytest.mark.parametrize("network", ["AutoencoderKL", "AutoencoderTiny"])
@torch.inference_mode()
def test_encode_and_decode_compile_to_one_graph(network: str, dtype: torch.dtype) -> None:
    """fullgraph: no line of them is left to Python."""
    net = few_layers(network, levels=1).to(dtype)
    x, z = picture(16, 24, dtype, batch=2), latents(net, 16, 24, dtype, batch=2)
    compiled = torch.compile(net.encode, fullgraph=True, backend="aot_eager")(x)
    assert type(compiled) is type(net.encode(x))
    made = compiled.latents if "latents" in compiled else compiled.latent_dist.parameters
    assert relative_error(made, encoded(net, x)) <= EXACT
    compiled = torch.compile(net.decode, fullgraph=True, backend="aot_eager")(z)
    assert isinstance(compiled, vae_core.DecoderOutput)
    assert relative_error(compiled.sample, decode(net, z)) <= EXACT


@pytest.mark.parametrize("network", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_compiled_model_trains_as_the_plain_one(network: str) -> None:
    net = few_layers(network, levels=2).to(F64)
    x = picture(16, 24, F64, batch=2)
    plain = net(x).sample
    plain.square().mean().backward()
    expected = {key: value.grad.clone() for key, value in net.named_parameters() if value.grad is not None}
    net.zero_grad()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")(x).sample
    compiled.square().mean().backward()
    assert relative_error(compiled.detach(), plain.detach()) <= EXACT
    noise = 1e-15 * max(float(g.norm()) for g in expected.values())
    for key, value in net.named_parameters():
        if key in expected:
            assert float((value.grad - expected[key]).norm()) <= 1e-9 * float(expected[key].norm()) + noise, key


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("network", ["AutoencoderKL", "AutoencoderTiny"])
@torch.inference_mode()
def test_inductor_compiles_it(network: str) -> None:
    net = few_layers(network, levels=2)
    x = picture(16, 24)
    compiled: Any = torch.compile(net, fullgraph=True)
    assert relative_error(compiled(x).sample, net(x).sample) <= 1e-5


# --- vectorization and the functional view ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "taesd", "taef2"])
def test_vmap_over_a_batch(name: str) -> None:
    net: Any = tiny_net(name, F64)
    x, z = picture(16, 24, F64, batch=3), latents(net, 16, 24, F64, batch=3)
    for differentiable in (True, False):
        with torch.set_grad_enabled(differentiable):
            made = vmap(lambda one: net.decode(one[None]))(z)
            assert isinstance(made, vae_core.DecoderOutput)
            assert relative_error(made.sample[:, 0].detach(), decode(net, z).detach()) <= EXACT
            mapped = vmap(lambda one: encoded(net, one[None])[0])(x)
            assert relative_error(mapped.detach(), encoded(net, x).detach()) <= EXACT


def test_vmap_samples_posteriors() -> None:
    net: Any = tiny_net("sdxl", F64)
    x = picture(16, 24, F64, batch=3)

    def drawn(one: Tensor) -> Tensor:
        return net.encode(one[None]).latent_dist.sample()[0]

    samples = vmap(drawn, randomness="different")(x.new_zeros(3, 3, 16, 24))
    assert not torch.allclose(samples[0], samples[1])
    samples = vmap(drawn, randomness="same")(x.new_zeros(3, 3, 16, 24))
    assert torch.allclose(samples[0], samples[1])


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
def test_functional_call_takes_the_weights_as_an_argument(name: str) -> None:
    net: Any = tiny_net(name, F64)
    x = picture(16, 24, F64)
    halved = {key: value * 0.5 for key, value in net.state_dict().items()}
    expected: Any = tiny_net(name, F64)
    expected.load_state_dict(halved)
    with torch.inference_mode():
        assert torch.equal(functional_call(net, halved, (x,)).sample, expected(x).sample)
        assert not torch.equal(net(x).sample, expected(x).sample)


@pytest.mark.parametrize("name", ["sdxl", "taef2"])
def test_grad_of_a_pure_function_and_per_picture(name: str) -> None:
    net: Any = tiny_net(name, F64)
    z = latents(net, 16, 24, F64, batch=2)
    weights = dict(net.named_parameters())

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        # The module is called through its forward only: decode goes by way of a function of it.
        return functional_call(Decoding(net), {f"net.{k}": v for k, v in weights.items()}, (one[None],)).square().sum()

    per_picture = vmap(grad(loss), in_dims=(None, 0))(weights, z)
    decode(net, z).square().sum().backward()
    largest = max(float(p.grad.norm()) for p in net.parameters() if p.grad is not None)
    for key, value in net.named_parameters():
        if value.grad is not None:  # the decoder's
            summed = per_picture[key].sum(0)
            assert float((summed - value.grad).norm()) <= 1e-10 * float(value.grad.norm()) + 1e-14 * largest, key
            assert not torch.equal(per_picture[key][0], per_picture[key][1])


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
def test_forward_and_reverse_mode_agree(name: str) -> None:
    net: Any = tiny_net(name, F64)
    if name == "sdxl":
        net.set_default_attn_processor()  # torch's fused attention has no forward-mode derivative on the CPU
    z = latents(net, 8, 16, F64)

    def tone(z: Tensor) -> Tensor:
        return decode(net, z).mean(dim=(0, 2, 3))

    jacobian = jacrev(tone)(z)
    assert jacobian.shape == (3, *z.shape)
    assert relative_error(jacfwd(tone)(z), jacobian) <= EXACT
    direction = torch.randn_like(z)
    value, slope, *_ = jvp(tone, (z,), (direction,))
    assert relative_error(value.detach(), tone(z).detach()) <= EXACT
    assert relative_error(slope.detach(), (jacobian * direction).flatten(1).sum(1)) <= EXACT
    step = 1e-6
    difference = (tone(z + step * direction) - tone(z - step * direction)) / (2 * step)
    assert relative_error(difference.detach(), slope.detach()) <= 1e-6


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_vmap_over_an_ensemble(name: str, differentiable: bool) -> None:
    """Several sets of weights in one call."""
    nets: list[Any] = [tiny_net(name, F64) for _ in range(3)]
    for scale, net in enumerate(nets):
        for value in net.parameters():
            value.data *= 1 + 0.1 * scale
    weights, buffers = stack_module_state(nets)
    x = picture(16, 24, F64, batch=2)
    with torch.set_grad_enabled(differentiable):
        made = vmap(lambda w, b: functional_call(nets[0], (w, b), (x,)).sample)(weights, buffers)
        for one, net in zip(made, nets, strict=True):
            assert relative_error(one.detach(), net(x).sample.detach()) <= EXACT
    assert not torch.allclose(made[0], made[1])


# --- parallelization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "taesd"])
def test_one_network_in_two_threads(name: str) -> None:
    """Modules hold no state of a run, so that runs at once do not meet, whole or streamed."""
    net: Any = tiny_net(name)
    vae = vae_core.VAE.of(net)
    sizes = ((64, 64), (48, 80), (72, 40), (64, 64))
    start = Barrier(2)

    def work(inputs: list[Tensor]) -> list[Tensor]:
        start.wait()
        return [
            made
            for z in inputs
            for made in (decode(net, z).detach(), vae.decode(z, tile=16), vae.encode(vae.decode(z)))
        ]

    rounds = [[latents(net, h, w) * sign for h, w in sizes] for sign in (1, -1)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(work, rounds))
    start = Barrier(1)
    for inputs, made in zip(rounds, together, strict=True):
        for one, alone in zip(made, work(inputs), strict=True):
            assert torch.equal(one, alone)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_data_parallel_training_equals_training_alone(tmp_path: Path) -> None:
    """Two processes with half the batch each, gradients averaged over gloo on the loopback."""
    spawn(parallel_training.train_share, args=(2, tmp_path), nprocs=2)
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    alone = parallel_training.train(tiny_net("sdxl", F64), parallel_training.batch())
    assert together.keys() == alone.keys()
    start = dict(tiny_net("sdxl", F64).named_parameters())
    for name, value in alone.items():
        assert torch.allclose(together[name], value, rtol=0, atol=1e-13), name
    assert any(not torch.equal(value, start[name]) for name, value in alone.items())


# --- helpers ----------------------------------------------------------------------------------------------------------


class Decoding(torch.nn.Module):
    """`net.decode` as a forward."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return decode(self.net, z)
