"""Strict loading into a module."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import (
    assert_same,
    build,
    flux2,
    full_shapes,
    header_only,
    kl,
    ldm,
    raw_safetensors,
    save,
    state_of,
)

from vae_core.checkpoint import assign, open_checkpoint
from vae_core.errors import StateDictError
from vae_core.models import CLASSES
from vae_core.nets.undrawn import without_weights
from vae_core.spec import KL, VARIANTS


def on_meta(config):
    with torch.device("meta"):
        return build(KL, config)


def test_a_module_on_the_meta_device_is_filled(tmp_path):
    model = kl(32, 64)
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", ldm(state_of(model), 2)))
    target = on_meta(opened.config)
    assign(target, opened, dtype=torch.float64)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(target(x).sample, model.double()(x).sample)
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_tensors_of_the_file_become_the_parameters(tmp_path):
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", state_of(kl(32, 64))))
    target = on_meta(opened.config)
    assign(target, opened)
    with torch.no_grad():
        target.encoder.conv_in.weight.zero_()  # private to this process: the file does not change
    again = dict(opened.tensors())["encoder.conv_in.weight"]
    assert again.abs().sum() > 0


@pytest.mark.parametrize("spaces", range(8))
def test_data_may_begin_at_any_byte(tmp_path, spaces):
    # A header may be padded with spaces to any length: nothing aligns the tensors behind it.
    state = state_of(kl(32, 64))
    whole = save(tmp_path / "vae.safetensors", state).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + length], whole[8 + length :]
    moved = raw_safetensors(tmp_path / "moved.safetensors", header + b" " * spaces, data)
    assert_same(open_checkpoint(moved), state)


@pytest.mark.parametrize("network", CLASSES)
def test_a_network_that_waits_for_its_weights_draws_none(network):
    drawn_next = torch.get_rng_state()
    config = next(row.config for row in VARIANTS.values() if row.network == network)
    with without_weights():
        net = CLASSES[network](**config)
    assert torch.equal(torch.get_rng_state(), drawn_next)
    # What is no layer of torch's, the scales of Wan's norms, is small and all ones.
    parameters = [p for _, p in net.named_parameters(remove_duplicate=False)]
    assert sum(p.numel() for p in parameters if not p.is_meta) <= 1e-3 * sum(p.numel() for p in parameters)
    assert not CLASSES[KL](block_out_channels=(32,)).encoder.conv_in.weight.is_meta


PLAIN = (dict, list, set, tuple, int, float, str, torch.nn.Module, type(None))
"""What a module's attributes are, but for functions and operations."""


@pytest.mark.parametrize("network", CLASSES)
def test_layers_built_alike_are_as_their_constructor_makes_them_and_share_no_container(network):
    config = next(row.config for row in VARIANTS.values() if row.network == network)
    with without_weights():
        net = CLASSES[network](**config)
    with torch.device("meta"):
        plain = CLASSES[network](**config)

    def told(module):
        shapes = {name: t.shape for name, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
        rest = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers")}
        return shapes, {name: str(value) for name, value in rest.items() if isinstance(value, PLAIN)}

    assert {path: told(m) for path, m in net.named_modules()} == {path: told(m) for path, m in plain.named_modules()}
    held = [
        value for module in net.modules() for value in vars(module).values() if isinstance(value, (dict, list, set))
    ]
    assert len({*map(id, held)}) == len(held)


def test_nothing_is_loaded_if_anything_is_wrong(tmp_path):
    opened = open_checkpoint(save(tmp_path / "vae.safetensors", state_of(kl(32, 64))))
    target = kl(32, 32)
    before = state_of(target)
    with pytest.raises(StateDictError) as error:
        assign(target, opened)
    assert "in the file and" in str(error.value) and "more)" in str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in target.state_dict().items())


def test_the_variant_that_would_fit_is_named(tmp_path):
    path = header_only(tmp_path / "x.safetensors", full_shapes(KL, VARIANTS["flux1"].config))
    opened = open_checkpoint(path, variant="sd3")
    sdxl = on_meta(
        open_checkpoint(header_only(tmp_path / "y.safetensors", full_shapes(KL, VARIANTS["sdxl"].config))).config
    )
    with pytest.raises(StateDictError, match=r"is \[32, 512, 3, 3\] in the file and \[8, 512, 3, 3\] .*'flux1'"):
        assign(sdxl, opened)


def test_the_counter_of_a_batch_norm_may_be_missing(tmp_path):
    model = flux2(32, 64)
    state = state_of(model)
    del state["bn.num_batches_tracked"]
    target = flux2(32, 64)
    target.bn.running_mean.zero_()
    assign(target, open_checkpoint(save(tmp_path / "vae.safetensors", state)), dtype=torch.float32)
    assert torch.equal(target.bn.running_mean, model.bn.running_mean)
    assert target.bn.num_batches_tracked == 0
