"""Puts the tensors of a checkpoint into a module, strictly: every name and shape has to fit before one is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import StateDictError
from .detect import BATCH_COUNTER
from .load import Checkpoint
from .variants import fitting_names


def assign(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = "cpu",
) -> None:
    """Makes the tensors of `checkpoint` the parameters and buffers of `module`, which may be on the meta device.

    Floats are cast to `dtype` (None keeps the stored one) and moved to `device` (None leaves them where they are); integer buffers
    keep their type. Raises StateDictError, naming the file, the tensor, both shapes and a variant that would fit; the module is
    then unchanged.
    """
    places = {
        f"{path}.{leaf}" if path else leaf: (owner, leaf, tensor)
        for path, owner in module.named_modules()
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items())
        if tensor is not None
    }
    expected = {name: tensor for name, (_, _, tensor) in places.items()}
    _check(checkpoint, expected)
    state = dict(checkpoint.tensors(dtype, device))
    for name in expected.keys() - state.keys():
        state[name] = torch.zeros_like(expected[name], device=device or "cpu")
    for name, tensor in state.items():
        owner, leaf, _ = places[name]
        _put(owner, leaf, tensor)


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """What `load_state_dict(assign=True)` does for each, without looking at all of them for every module."""
    parameter = module._parameters.get(name)
    if parameter is None:
        module._buffers[name] = tensor
    else:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)


def _check(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> None:
    shapes = checkpoint.shapes
    # BatchNorm's counter of training steps is not used by a VAE, and some conversions drop all integers.
    missing = [name for name in expected if name not in shapes and not name.endswith(BATCH_COUNTER)]
    surplus = [name for name in shapes if name not in expected]
    wrong = [name for name in expected if name in shapes and tuple(expected[name].shape) != shapes[name]]
    if wrong:
        name = wrong[0]
        theirs, ours = list(shapes[name]), list(expected[name].shape)
        problem = f"`{name}` is {theirs} in the file and {ours} in the network{_more(wrong)}"
    elif missing:
        problem = f"`{missing[0]}` is missing{_more(missing)}"
    elif surplus:
        problem = f"`{surplus[0]}` is in the file and not in the network{_more(surplus)}"
    else:
        return
    raise StateDictError(f"{checkpoint.files[0]}: {problem}; {_advice(checkpoint)}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _advice(checkpoint: Checkpoint) -> str:
    file, network = checkpoint.files[0], checkpoint.variant.network
    names = [name for name in fitting_names(file, network, checkpoint.shapes) if name != checkpoint.variant.name]
    if names:
        return f"its sizes are those of variant {' or '.join(repr(name) for name in names)}: build that one"
    return f"it is not a whole {network} of this configuration: get the file again, or state its configuration"
