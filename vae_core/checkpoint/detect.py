"""What a set of named shapes is: the layout, the network, and each tensor under our name.

Contract: a file of a network that is loaded is never missed. Of several VAEs in one file the main one is taken. A file
that is something else is named if it is known, and otherwise described by its first keys.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, StateDictError, UnknownModelError
from ..spec import KL, KL_FLUX2, TINY
from .infer import Shapes
from .keymaps import Numbering, Turn
from .registry import LAYOUTS, OTHER_MODELS, OTHER_VAES, PREFIXES, Layout, Other, Tell
from .source import Source, Stored

BATCH_COUNTER = "num_batches_tracked"


class Entry(NamedTuple):
    """A tensor of a file."""

    source: Source
    key: str
    """Its key in that file."""
    stored: Stored


class Piece(NamedTuple):
    """A tensor of the network: where it lies, and how it is turned into our layout."""

    entry: Entry
    turn: Turn | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """A recognised network."""

    layout: Layout
    prefix: str
    network: str
    """The class; `WAN` for Qwen-Image's too."""
    pieces: Mapping[str, Piece]
    """By our name."""
    siblings: tuple[str, ...]
    """Keys outside the prefix: the rest of a full checkpoint."""
    ignored: Mapping[str, str]


def recognise(file: Path, entries: Mapping[str, Entry]) -> Found:
    """The network in `entries`. Raises UnknownModelError, or StateDictError if two keys mean the same tensor."""
    shapes = {key: entry.stored.shape for key, entry in entries.items()}
    refuse_other_vaes(file, shapes)
    places = _places(shapes)
    if not places:
        _refuse(file, shapes, OTHER_MODELS)
        raise UnknownModelError(f"{file}: is no VAE that this version knows; {_describe(shapes)}")
    prefix = min(places, key=lambda prefix: _rank(prefix, places[prefix].total()))
    layout = next(row for row in LAYOUTS if row in places[prefix])
    return _collect(file, entries, layout, prefix)


def refuse_other_vaes(file: Path, shapes: Shapes) -> None:
    """Raises UnknownModelError if the tensors are those of a VAE that is known and not loaded."""
    _refuse(file, shapes, OTHER_VAES)


def _refuse(file: Path, shapes: Shapes, others: Iterable[Other]) -> None:
    dotted = {f".{key}": shape for key, shape in shapes.items()}
    text = "\n".join((*dotted, ""))
    for other in others:
        if all(_holds(dotted, text, tell) for tell in other.tells):
            if not other.title:
                return
            raise UnknownModelError(f"{file}: looks like {other.title}, which this version does not load")


def _holds(dotted: Shapes, text: str, tell: Tell) -> bool:
    """`text` are the keys, each in a line: most signs are in none of them, and that is quickly seen."""
    sign = f".{tell.key}"
    if sign.endswith("."):
        return sign in text
    return f"{sign}\n" in text and any(key.endswith(sign) and _fits(tell.shape, shape) for key, shape in dotted.items())


def _fits(wanted: tuple[int | None, ...] | None, shape: tuple[int, ...]) -> bool:
    if wanted is None:
        return True
    return len(wanted) == len(shape) and all(want in (None, size) for want, size in zip(wanted, shape, strict=True))


_TELLS = "|".join(f"(?P<row_{i}>{row.tell})" for i, row in enumerate(LAYOUTS))
_PLACE = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{_TELLS})")


def _places(shapes: Iterable[str]) -> dict[str, Counter[Layout]]:
    """Every prefix behind which a telling key was seen, with the number of such keys of each layout."""
    places: dict[str, Counter[Layout]] = {}
    for match in filter(None, map(_PLACE.match, shapes)):
        row = (match.lastgroup or "").removeprefix("row_")
        places.setdefault(match["prefix"], Counter())[LAYOUTS[int(row)]] += 1
    return places


def _rank(prefix: str, count: int) -> tuple[int, int]:
    # A known prefix first; else the place with most keys (SV3D keeps copies of the encoder alone beside its VAE).
    known = PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES)
    return known, -count


def _describe(shapes: Shapes) -> str:
    if not shapes:
        return "it holds no tensors"
    first = ", ".join(f"`{key}` {list(shape)}" for key, shape in list(shapes.items())[:3])
    return f"it holds {len(shapes)} tensors, beginning with {first}"


def _collect(file: Path, entries: Mapping[str, Entry], layout: Layout, prefix: str) -> Found:
    inside = {key[len(prefix) :]: entry for key, entry in entries.items() if key.startswith(prefix)}
    siblings = tuple(key for key in entries if not key.startswith(prefix))
    flux2 = layout.network == KL and any(key.startswith("bn.running_") for key in inside)
    network = KL_FLUX2 if flux2 else layout.network
    ignored = _summary(siblings)
    at = Numbering(inside)
    pieces: dict[str, Piece] = {}
    for key, entry in inside.items():
        reason = _reason_to_ignore(key, network)
        if reason:
            ignored[entry.key] = reason
            continue
        name, turn, shape = layout.keymap.ours(key, entry.stored.shape, at)
        if name in pieces:
            raise StateDictError(f"{file}: `{pieces[name].entry.key}` and `{entry.key}` both stand for `{name}`")
        _check_dtype(file, entry)
        pieces[name] = Piece(entry, turn, shape)
    return Found(layout, prefix, network, pieces, siblings, ignored)


def _reason_to_ignore(key: str, network: str) -> str | None:
    if key.startswith("loss."):
        return "part of the training loss"
    if key.startswith("model_ema."):
        return "moving average of the training run"
    if key.endswith(BATCH_COUNTER) and network != KL_FLUX2:
        return "counter of a training run"
    if network == TINY and key in ("vae_scale", "vae_shift"):
        return "the latent scale of ComfyUI's wrapper; it tells the variant"
    return None


def _summary(siblings: Iterable[str]) -> dict[str, str]:
    counts = Counter(key.partition(".")[0] for key in siblings)
    return {f"{part}.*": f"another part of the checkpoint (tensors: {count})" for part, count in counts.items()}


def _check_dtype(file: Path, entry: Entry) -> None:
    dtype = entry.stored.dtype
    if (dtype is None or not dtype.is_floating_point) and not entry.key.endswith(BATCH_COUNTER):
        stored = "a packed format" if dtype is None else str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{file}: `{entry.key}` is stored as {stored}: quantised weights are not loaded; use the float file"
        )
