"""Raw latents, as a network emits them, to the space that its diffusion model works in, and back."""

from __future__ import annotations

from typing import cast

from einops import rearrange
from torch import Tensor, nn

from .errors import InputError
from .spec import KL_FLUX2, Spec


def normalized(latents: Tensor, spec: Spec, net: nn.Module) -> Tensor:
    """Raw latents → the diffusion model's space (`spec.convention`); for FLUX.2 `b 32 h w` → `b 128 h/2 w/2`.

    Raises InputError for sizes that its patches do not divide.
    """
    ph, pw = spec.patch
    if latents.shape[-2] % ph or latents.shape[-1] % pw:
        raise InputError(
            f"latents of {tuple(latents.shape)} cannot be packed in patches of {ph}×{pw}: sizes must divide"
        )
    packed = latents
    if (ph, pw) != (1, 1):
        packed = rearrange(latents, "b c (h ph) (w pw) -> b (c ph pw) h w", ph=ph, pw=pw)
    mean, std = _statistics(packed, spec, net)
    return (packed - mean) / std * spec.scaling_factor


def denormalized(latents: Tensor, spec: Spec, net: nn.Module) -> Tensor:
    """The inverse of `normalized`."""
    ph, pw = spec.patch
    mean, std = _statistics(latents, spec, net)
    packed = latents / spec.scaling_factor * std + mean
    return packed if (ph, pw) == (1, 1) else rearrange(packed, "b (c ph pw) h w -> b c (h ph) (w pw)", ph=ph, pw=pw)


def _statistics(like: Tensor, spec: Spec, net: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels of a packed latent, `1 c 1 1`, of a clip's `1 c 1 1 1`."""
    if spec.network == KL_FLUX2:
        return _batch_norm(like, cast(nn.BatchNorm2d, net.bn))
    if spec.latents_mean is None or spec.latents_std is None:
        return like.new_tensor(spec.shift_factor), like.new_tensor(1.0)
    axes = (1, -1, *[1] * (like.ndim - 2))
    return like.new_tensor(spec.latents_mean).view(axes), like.new_tensor(spec.latents_std).view(axes)


def _batch_norm(like: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, var = (cast(Tensor, t).double().view(1, -1, 1, 1) for t in (bn.running_mean, bn.running_var))
    return mean.to(like), (var + bn.eps).sqrt().to(like)
