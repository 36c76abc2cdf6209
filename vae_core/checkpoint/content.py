"""All tensors of the files that were located, as one map: shards joined, the two halves of a TAESD brought together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from .detect import Entry, refuse_other_vaes
from .locate import Place, twin_stems
from .reader import PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, read_source
from .registry import TAESD_HALF
from .source import Source


@dataclass(frozen=True)
class Content:
    """The tensors of one checkpoint, under the files' own keys."""

    entries: Mapping[str, Entry]
    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    ignored: Mapping[str, str] = field(default_factory=dict)
    why: tuple[str, ...] = ()
    is_pair: bool = False
    """True for the two files of a TAESD; their keys then have ComfyUI's prefixes, taesd_encoder. and taesd_decoder."""


def gather(place: Place) -> Content:
    """Reads the header of every file of `place`. Raises CheckpointError for damage, or files that do not match."""
    sources = [read_source(path) for path in place.weights]
    _check_index(place, sources)
    if len(sources) == 1 and _is_half(sources[0]):
        return _pair(sources[0])
    entries: dict[str, Entry] = {}
    for source in sources:
        for key, stored in source.tensors.items():
            if key in entries:
                shards = f"{entries[key].source.path.name} and {source.path.name}"
                raise CheckpointError(f"{place.main}: `{key}` is in two shards, {shards}; download them again")
            entries[key] = Entry(source, key, stored)
    metadata = {key: text for source in sources for key, text in source.metadata.items()}
    return Content(entries, place.weights, metadata, _not_tensors(sources), _seen(sources))


def _check_index(place: Place, sources: list[Source]) -> None:
    held = {source.path.name: source.tensors for source in sources}
    for key, name in place.weight_map:
        if key not in held[name]:
            raise CheckpointError(f"{place.main}: says that `{key}` is in {name}, and it is not; download both again")


def _not_tensors(sources: list[Source]) -> dict[str, str]:
    ignored: dict[str, str] = {}
    for source in sources:
        for key, kind in source.others.items():
            # Training state lies beside the weights under plain words ("epoch"); a dotted name is a weight's.
            if "." in key:
                raise CheckpointError(
                    f"{source.path}: `{key}` is a {kind} and no plain tensor; save the state dict anew"
                )
            ignored[key] = f"no tensor ({kind})"
    return ignored


def _seen(sources: list[Source]) -> tuple[str, ...]:
    first = sources[0]
    count = sum(len(source.tensors) for source in sources)
    shards = f" in {len(sources)} shards" if len(sources) > 1 else ""
    nested = f", nested under `{'.'.join(first.nesting)}`" if first.nesting else ""
    return (f"{first.container}, {count} tensors{shards}{nested}",)


def _is_half(source: Source) -> bool:
    # Its keys begin with a number: a look at the first character spares the others the pattern.
    return any(key[:1].isdigit() and re.match(TAESD_HALF, key) for key in source.tensors)


def _half_name(source: Source) -> str:
    # The decoder's layer 0 is a clamp without weights.
    return "encoder" if "0.weight" in source.tensors else "decoder"


def _pair(source: Source) -> Content:
    refuse_other_vaes(source.path, {key: stored.shape for key, stored in source.tensors.items()})
    other = _partner(source)
    halves = sorted((source, other), key=_half_name, reverse=True)
    entries = {
        f"taesd_{_half_name(half)}.{key}": Entry(half, key, stored)
        for half in halves
        for key, stored in half.tensors.items()
    }
    metadata = {**other.metadata, **source.metadata}
    why = f"one half of a TAESD; the other is {other.path.name}"
    return Content(entries, tuple(half.path for half in halves), metadata, _not_tensors(halves), (why,), is_pair=True)


def _partner(source: Source) -> Source:
    mine = _half_name(source)
    wanted = "decoder" if mine == "encoder" else "encoder"
    suffixes = dict.fromkeys((source.path.suffix, *SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
    names = [stem + suffix for stem in twin_stems(source.path) for suffix in suffixes]
    found = next((source.path.with_name(name) for name in names if source.path.with_name(name).is_file()), None)
    if found is None:
        looked = f"the {wanted} cannot be looked for, since '{mine}' is no part of the file's name"
        if names:
            looked = f"{names[0]} is looked for beside it (or .pth, .safetensors ...)"
        raise CheckpointError(f"{source.path}: holds the {mine} of a TAESD alone; {looked}: put both side by side")
    partner = read_source(found)
    if not _is_half(partner) or _half_name(partner) != wanted:
        raise CheckpointError(f"{source.path}: its other half should be {found.name}, which holds no TAESD {wanted}")
    return partner
