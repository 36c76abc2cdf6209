"""The Gaussian posterior of a KL autoencoder, and the outputs of its encode and decode, named as in diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import log, pi
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

Out = TypeVar("Out", bound="Output")


class DiagonalGaussianDistribution:
    """N(mean, std²) per element, from the encoder's moments `b 2c …` = (mean, logvar); logvar is clamped to [-30, 20].

    With `deterministic` the variance is zero, so that `sample` is the mean.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False):
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + std · noise; the noise is drawn on the generator's device, in the moments' dtype."""
        device = self.parameters.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.parameters.dtype)
        return self.mean + self.std * noise.to(self.parameters.device)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Kullback-Leibler divergence from `other`, by default N(0, 1), summed over axes 1 to 3: `b`."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean).square() / other.var
            terms = distance + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Negative log-likelihood of `sample`, summed over `dims`."""
        if self.deterministic:
            return sample.new_zeros(1)
        terms = log(2.0 * pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


class Output:
    """Base of the outputs: attributes, `out[0]` and `out["name"]`, and `replace` for a changed copy.

    A field that is None counts as absent. Outputs are trees of tensors to torch, as flax.struct's are to jax: a function under
    `torch.func.vmap` may return one.
    """

    def __init_subclass__(cls) -> None:
        register_pytree_node(
            cls,
            lambda out: (list(out.to_tuple()), tuple(out)),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
        )

    def replace(self: Out, **updates: Any) -> Out:
        """A copy with the named fields replaced, as flax.struct has it."""
        return replace(self, **updates)  # type: ignore[type-var]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields, in order."""
        return tuple(getattr(self, name) for name in self)

    def __iter__(self) -> Iterator[str]:
        """The fields' names, as a dict has it; `to_tuple` is for unpacking."""
        return (f.name for f in fields(self) if getattr(self, f.name) is not None)  # type: ignore[arg-type]

    keys = __iter__

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in tuple(self):
            raise KeyError(key)
        return getattr(self, key)


@dataclass(frozen=True)
class AutoencoderKLOutput(Output):
    """What `encode` returns where there is a posterior."""

    latent_dist: DiagonalGaussianDistribution


@dataclass(frozen=True)
class AutoencoderTinyOutput(Output):
    """What `AutoencoderTiny.encode` returns."""

    latents: Tensor


@dataclass(frozen=True)
class DecoderOutput(Output):
    """What every `decode` returns: pixels `b c h w`, or `b c t h w`, about [-1, 1]."""

    sample: Tensor
    commit_loss: Tensor | None = None
