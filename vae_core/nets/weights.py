"""What a network's weights occupy."""

from __future__ import annotations

from torch import nn


def weight_bytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once.

    A walk of our own: `net.parameters()` names each on its way, which takes as long as several layers on a GPU.
    """
    tensors, left = {}, [net]
    while left:
        module = left.pop()
        left += [child for child in module._modules.values() if child is not None]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                tensors[id(tensor)] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
