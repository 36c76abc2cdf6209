"""CUDA without a GPU: tensors with a shape, a dtype and a device, and no data, counted by a meter.

torch's fake tensors run every operation for its result's shape, and raise where an operation mixes devices. A build of torch
without CUDA lacks three things, which are supplied here: copies from the host to the device, the per-channel statistics that have
no shape rule, and values read back by Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses import FakeTensorMode
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from vae_core import execution
from vae_core.geometry import Region, tile_kinds
from vae_core.nets.layouts import innermost, is_innermost
from vae_core.nets.memory import Spares
from vae_core.stream import run, tiled_pass

from .meter import Meter

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv3d.default, aten.conv_transpose2d.input)


class FakeCudaMeter(Meter):
    """The meter over fake tensors; counts how often Python waited for a value as well."""

    def __init__(self, net: Module | None = None) -> None:
        super().__init__(net)
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._local_scalar_dense.default, aten.item.default):
            self.waits += 1
            return True
        result = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS and is_innermost(args[0]):
            # cuDNN keeps the layout, which the shape rule of a build without it does not.
            result = result.as_strided(result.shape, innermost(torch.empty(result.shape, device="meta")).stride())
        self.see(result)
        return result


class _WithoutCuda(TorchFunctionMode):
    """Copies to and on the device, and indexing, which a build without CUDA refuses before they are dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_ and args[0].device.type == "cuda":
            assert args[0].shape == args[1].shape
            return args[0]
        if func is torch.batch_norm_update_stats:
            return tuple(torch.empty(args[0].shape[1], dtype=args[1].dtype, device=args[0].device) for _ in range(2))
        if func is torch.Tensor.to and args[0].device.type == "cpu":
            wanted = [*args[1:], *kwargs.values()]
            if any(isinstance(w, torch.device) and w.type == "cuda" for w in wanted):
                dtype = next((w for w in wanted if isinstance(w, torch.dtype)), args[0].dtype)
                return torch.empty_strided(args[0].shape, args[0].stride(), dtype=dtype, device="cuda")
        if func is torch.Tensor.__getitem__ and args[0].device.type == "cuda":
            return _indexed(*args)
        if func is torch.Tensor.contiguous and args[0].device.type == "cuda":
            x, layout = args[0], kwargs.get("memory_format", torch.contiguous_format)
            if x.is_contiguous(memory_format=layout):
                return x
            return torch.empty(x.shape, dtype=x.dtype, device="cuda", memory_format=layout)
        return func(*args, **kwargs)


def _indexed(x: Any, index: Any) -> Any:
    """`x[index]` for slices, one integer in front, and an ellipsis."""
    index = index if isinstance(index, tuple) else (index,)
    if isinstance(index[0], int):
        return x.select(0, index[0])
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (x.ndim - len(index) + 1), *index[at + 1 :])
    for axis, part in enumerate(index):
        x = aten.slice.Tensor(x, axis, part.start, part.stop, part.step or 1)
    return x


@contextmanager
def fake_cuda(*, channels_innermost: bool = True) -> Iterator[None]:
    """Inside, tensors are fake and may be on "cuda"; runs lay the channels innermost there, or not."""
    with (
        FakeTensorMode(),
        _WithoutCuda(),
        torch.inference_mode(),
        mock.patch.object(run, "channels_innermost", lambda *_: channels_innermost),
        mock.patch.object(execution, "channels_innermost", lambda *_: channels_innermost),
        # Memory that a fake tensor was once put into is never given back.
        mock.patch.object(Spares, "add", lambda *_: None),
    ):
        yield


@contextmanager
def one_tile_of_each_kind() -> Iterator[None]:
    """Inside, a streamed pass computes one tile of each shape and border position, and the rest are left out.

    Tiles of one kind allocate alike, so that the peaks are those of the full run, in a fraction of the time.
    """

    def some(sizes: Any, tile: Any) -> Iterator[Region]:
        regions = [region for region, _ in tile_kinds(sizes, tile)]
        yield from regions
        if len(regions) > 1:
            yield max(
                regions, key=lambda region: [span.size for span in region]
            )  # the largest again, with one before it

    full, tiled_pass.grid = tiled_pass.grid, some
    try:
        yield
    finally:
        tiled_pass.grid = full


def on_fake_cuda(net: Module, dtype: torch.dtype) -> Module:
    """A network built on "meta" with fake weights on "cuda", laid out for its runs. To be called inside `fake_cuda`."""
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                made = innermost(torch.empty(weight.shape, dtype=dtype, device="cuda"))
                module._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return net.eval()
