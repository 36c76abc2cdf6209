"""Which published variant a recognised network is, and its whole configuration.

Shapes cannot tell SD 1, SD 2, SDXL and Playground apart, nor SD3 and FLUX.1, nor Wan and Qwen-Image, nor the sizes of
CogVideoX, nor most of the tiny ones. In this order: the caller's word; a config; the rest of a full checkpoint; metadata; the
name of the file; a default, said to be one. Where two classes have the same tensors (Wan's and Qwen-Image's), what the shapes
show is said in the fields of each, and the variant decides between them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError, StateDictError
from ..spec import KL_FLUX2, TINY, VARIANTS, Variant
from .config import CONVENTION, FIELDS, Given, defaults
from .infer import Shapes, infer_configs
from .registry import FALLBACKS, METADATA_HINTS, METADATA_KEYS, NAME_HINTS, SIBLING_HINTS

Inferred = Mapping[str, Mapping[str, Any]]
"""For each class that the tensors may belong to, the fields that their shapes show; the likeliest class first."""


@dataclass(frozen=True)
class Choice:
    """A variant, its configuration, and how it was found."""

    variant: Variant
    config: Mapping[str, Any]
    why: tuple[str, ...]
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clues:
    """What lies around the tensors and may tell a variant."""

    siblings: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    """File and folder names, most telling first."""
    tiny_scale: tuple[float, float] | None = None
    """(scale, shift) that ComfyUI stores beside a tiny VAE."""


def require_known(variant: str | None) -> None:
    """Raises InputError if `variant` is no name of `spec.VARIANTS`."""
    if variant is not None and variant not in VARIANTS:
        raise InputError(f"variant {variant!r} is not known; known are {', '.join(VARIANTS)}")


def fitting(inferred: Inferred) -> list[Variant]:
    """The rows whose configuration has every field that the shapes show."""
    rows = (row for row in VARIANTS.values() if row.network in inferred)
    return [row for row in rows if _agrees(defaults(row.network) | dict(row.config), inferred[row.network])]


def fitting_names(file: Path, network: str, shapes: Shapes) -> tuple[str, ...]:
    """Names of the variants that tensors of these shapes fit; () if none does or the tensors are incomplete."""
    try:
        return tuple(row.name for row in fitting(infer_configs(file, network, shapes)))
    except CheckpointError:
        return ()


def share_config(names: Iterable[str]) -> bool:
    """True if these variants agree on their class and on how a raw latent becomes the model's."""
    rows = [VARIANTS[name] for name in names]
    return len({(row.network, *(row.config.get(field) for field in CONVENTION)) for row in rows}) <= 1


def choose(file: Path, inferred: Inferred, given: Given | None, clues: Clues, forced: str | None) -> Choice:
    """The variant and configuration. `forced` is the caller's word, `given` a config that belongs to the tensors.

    Raises StateDictError if `forced` or `given` contradicts the shapes, CheckpointError for widths that do not split
    into the groups of GroupNorm, latent statistics of another length, or more halvings of time than levels.
    """
    for network, shown in inferred.items():
        _check_sizes(file, network, shown)
    if given is not None:
        check_agreement(file, inferred, given)
    rows = fitting(inferred)
    if forced is not None:
        choice = _forced(file, inferred, given, rows, forced)
    elif given is not None:
        choice = _from_config(file, inferred, given, rows, clues)
    else:
        choice = _from_clues(file, inferred, rows, clues)
    _check_groups(file, choice.config)
    _check_frames(file, choice.config)
    _check_statistics(file, choice.config)
    return choice


def check_agreement(file: Path, inferred: Inferred, given: Given) -> None:
    """Raises StateDictError if a config states what the tensors disprove."""
    network = given.network or next(iter(inferred))
    if network not in inferred:
        theirs = " or ".join(inferred)
        raise StateDictError(f"{file}: its tensors are those of {theirs}, and {given.source} says {network}")
    stated = dict(given.values)
    if stated.get("decoder_block_out_channels") == stated.get("block_out_channels", ()) and network == KL_FLUX2:
        stated["decoder_block_out_channels"] = None
    for name, shown in inferred[network].items():
        if name in stated and stated[name] != shown:
            raise StateDictError(
                f"{file}: {given.source} says {name} {_show(stated[name])}, and the tensors have {_show(shown)}; "
                "they do not belong together"
            )


def _agrees(config: Mapping[str, Any], inferred: Mapping[str, Any]) -> bool:
    return all(config.get(name) == value for name, value in inferred.items())


def _forced(file: Path, inferred: Inferred, given: Given | None, rows: list[Variant], forced: str) -> Choice:
    row = VARIANTS[forced]
    if row not in rows:
        fits = f"they fit {_names(rows)}: choose that, or none"
        if not rows:
            fits = f"they fit none of the known ones ({_sketch(inferred)}); leave it out"
        raise StateDictError(f"{file}: the tensors do not fit variant '{forced}'; {fits}")
    stated = {} if given is None else {k: v for k, v in given.values.items() if k not in CONVENTION}
    config = _complete(row.network, stated, row.config, inferred[row.network])
    return Choice(row, config, (f"variant '{forced}' was asked for and fits",))


def _from_config(file: Path, inferred: Inferred, given: Given, rows: list[Variant], clues: Clues) -> Choice:
    network = given.network or next(iter(inferred))
    config = _complete(network, given.values, inferred[network])
    why = [f"{given.source} gives the configuration"]
    if given.unknown:
        why.append(f"{given.source} has fields that the network does not take, ignored: {', '.join(given.unknown)}")
    rows = [row for row in rows if row.network == network]
    rows = [row for row in rows if _same_convention(defaults(network) | dict(row.config), config)]
    rows = [row for row in rows if row.name == given.variant] or rows
    if not rows:
        return Choice(_custom(network, config, file), config, (*why, "its numbers are those of no published variant"))
    row, candidates, reason = _narrow([row for row in rows if _same_size(row, given)] or rows, clues)
    return Choice(row, config, (*why, reason), candidates)


def _from_clues(file: Path, inferred: Inferred, rows: list[Variant], clues: Clues) -> Choice:
    if not rows:
        network, shown = next(iter(inferred.items()))
        config = _complete(network, shown)
        why = f"no published variant has these shapes ({_sketch(inferred)}): a custom {network} with the class defaults"
        return Choice(_custom(network, config, file), config, (why,))
    row, candidates, reason = _narrow(rows, clues)
    return Choice(row, _complete(row.network, row.config, inferred[row.network]), (reason,), candidates)


def _narrow(rows: list[Variant], clues: Clues) -> tuple[Variant, tuple[str, ...], str]:
    """One of the rows that fit; every name where nothing tells them apart; the reason as a sentence."""
    if len(rows) == 1:
        return rows[0], (), f"that is {rows[0].title}"
    by_name = {row.name: row for row in rows}
    if hint := next(_hints(clues, by_name), None):
        name, reason = hint
        return by_name[name], (), reason
    fallback = next((name for name in FALLBACKS if name in by_name), rows[0].name)
    reason = f"the tensors fit {_names(rows)} alike and nothing tells which: {fallback} is taken; set variant to choose"
    return by_name[fallback], tuple(by_name), reason


def _hints(clues: Clues, among: Container[str]) -> Iterator[tuple[str, str]]:
    """Names of `among` that something hints at, each with the reason; the most telling first."""
    if clues.tiny_scale is not None:
        yield from (hint for hint in _scale_hints(*clues.tiny_scale) if hint[0] in among)
    siblings, by_metadata, by_name = (
        [(sign, name) for sign, name in hints if name in among] for hints in (SIBLING_HINTS, METADATA_HINTS, NAME_HINTS)
    )
    for sign, name in siblings:
        if any(f".{sign}" in f".{key}" for key in clues.siblings):
            yield name, f"`{sign}` beside the VAE: the checkpoint is {VARIANTS[name].title}"
    for key in METADATA_KEYS:
        text = clues.metadata.get(key, "")
        for sign, name in by_metadata:
            if re.search(sign, text.lower()):
                yield name, f"metadata `{key}` is '{text[:60]}': {VARIANTS[name].title}"
    for text in clues.names:
        for sign, name in by_name:
            if re.search(sign, text.lower()):
                yield name, f"the name '{text}' hints at {VARIANTS[name].title} (the tensors alone cannot tell)"


def _scale_hints(scale: float, shift: float) -> Iterator[tuple[str, str]]:
    for tiny, big in (("taesd", "sd1"), ("taesdxl", "sdxl"), ("taesd3", "sd3"), ("taef1", "flux1")):
        config = VARIANTS[big].config
        expected = config["scaling_factor"], config.get("shift_factor") or 0.0
        # ComfyUI may have stored them in half precision.
        if all(math.isclose(a, b, rel_tol=5e-3, abs_tol=1e-3) for a, b in zip((scale, shift), expected, strict=True)):
            yield tiny, f"`vae_scale` {scale:g} and `vae_shift` {shift:g} are those of {VARIANTS[big].title}"


def _complete(network: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Class defaults, overlaid by each of `layers`; the last one wins."""
    config = defaults(network)
    for layer in layers:
        config |= dict(layer)
    if "down_block_types" in config:
        levels = len(config["block_out_channels"])
        config["down_block_types"] = config["down_block_types"][:1] * levels
        config["up_block_types"] = config["up_block_types"][:1] * levels
    return {name: config[name] for name in FIELDS[network]}


def _custom(network: str, config: Mapping[str, Any], file: Path) -> Variant:
    # Nothing is known of these weights in float16, unless their config says that they need no upcast.
    safe = network == TINY or config.get("force_upcast") is False
    return Variant("custom", f"custom {network}", network, config, str(file), fp16_safe=safe)


def _same_convention(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return all(_close(ours.get(name), theirs.get(name)) for name in CONVENTION)


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-4)
    return a == b


def _same_size(row: Variant, given: Given) -> bool:
    return row.config.get("sample_size") == given.values.get("sample_size")


def _check_sizes(file: Path, network: str, inferred: Mapping[str, Any]) -> None:
    # A tensor without values costs no bytes, so a header can claim any width for it.
    for name, value in inferred.items():
        rule = FIELDS[network][name]
        if not rule.fits(value):
            raise StateDictError(f"{file}: its shapes give {name} {_show(value)}, which should be {rule.words}")


def _check_groups(file: Path, config: Mapping[str, Any]) -> None:
    groups = config.get("norm_num_groups", 1)
    widths = config.get("block_out_channels", ()) + (config.get("decoder_block_out_channels") or ())
    odd = [width for width in widths if width % groups]
    if odd:
        raise CheckpointError(
            f"{file}: {odd[0]} channels cannot be split into norm_num_groups {groups}, which no tensor shows; "
            "put a config.json that states norm_num_groups beside the file"
        )


def _check_frames(file: Path, config: Mapping[str, Any]) -> None:
    ratio, levels = config.get("temporal_compression_ratio", 1), len(config.get("block_out_channels", ()))
    if ratio > 1 and ratio >= 2**levels:
        raise CheckpointError(
            f"{file}: {levels} levels cannot halve time to a temporal_compression_ratio of {ratio}, which no tensor shows; "
            "put a config.json that states temporal_compression_ratio beside the file"
        )


def _check_statistics(file: Path, config: Mapping[str, Any]) -> None:
    channels = config.get("latent_channels") or config["z_dim"]
    for name in ("latents_mean", "latents_std"):
        values = config.get(name)
        if values is not None and len(values) != channels:
            raise CheckpointError(
                f"{file}: `{name}` has {len(values)} entries for {channels} latent channels, and no tensor shows it; "
                f"put a config.json that states {name} beside the file"
            )


def _names(rows: Sequence[Variant]) -> str:
    return " or ".join(f"'{row.name}'" for row in rows)


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _sketch(inferred: Inferred) -> str:
    shown = next(iter(inferred.values()))
    if "dim_mult" in shown:
        widths = tuple(shown["base_dim"] * n for n in shown["dim_mult"])
        return f"widths {_show(widths)}, {shown['z_dim']} latent channels"
    widths = shown.get("block_out_channels") or shown.get("encoder_block_out_channels")
    return f"widths {_show(widths)}, {shown['latent_channels']} latent channels"
