"""From a file to what it is, its configuration, and its tensors under our names. Headers first, bytes on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..spec import Variant
from .config import OWN_CONFIG, Given, config_class, parse_config
from .content import Content, gather
from .detect import Entry, Found, Piece, recognise
from .infer import infer_configs
from .jsontext import parse_object, read_object
from .keymaps import turned
from .locate import STEM, Place, locate
from .source import Read, Source, Stored
from .variants import Clues, Inferred, check_agreement, choose, require_known, share_config

StateDict = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A recognised file. Nothing of its tensors has been read yet."""

    path: Path
    """What the user named."""
    files: tuple[Path, ...]
    """What is read: shards, both files of a TAESD, config.json."""
    variant: Variant
    """A row of `spec.VARIANTS`, or a Variant named "custom"."""
    config: Mapping[str, Any]
    """Every constructor field of `variant.network`, in diffusers' names."""
    layout: str
    """One of "diffusers", "diffusers folder", "ldm", "original" (Wan's and CogVideoX's makers'), "taesd pair", "taesd module",
    "comfyui taesd", "flax"; with " in a full checkpoint" behind it where the file holds more than the VAE."""
    why: tuple[str, ...]
    """Short sentences: what was seen and what follows."""
    candidates: tuple[str, ...]
    """Every variant that the tensors fit where nothing told them apart; () when certain."""
    ignored: Mapping[str, str]
    """Key in the file, or `part.*` -> why it is not used."""
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Name in the network -> shape, as it will be loaded."""
    dtype: torch.dtype
    """The stored dtype of most values."""
    _pieces: Mapping[str, Piece] = field(repr=False, default_factory=dict)

    @property
    def config_is_known(self) -> bool:
        """False where the class or the latent convention is that of the one candidate taken, and others have another."""
        return share_config(self.candidates)

    def tensors(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = "cpu"
    ) -> Iterator[tuple[str, Tensor]]:
        """(name in the network, tensor), one at a time, file by file; floats cast to `dtype`, None keeps theirs.

        `device` None leaves each where it is, which for a file is the CPU.

        On the CPU and uncast, tensors of a safetensors file or a torch archive stay memory-mapped: no copy is made.
        Raises CheckpointError if the file can no longer be read.
        """
        for source, names in _by_source(self._pieces):
            with source.opener() as read:
                for name in names:
                    piece = self._pieces[name]
                    tensor = turned(piece.turn, read(piece.entry.key))
                    yield name, tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    def over(self, state_dict: StateDict) -> Checkpoint:
        """The same, its tensors read from a module that has them under our names by now."""
        source = _in_memory(state_dict, self.path)
        entries = {name: Entry(source, name, stored) for name, stored in source.tensors.items()}
        return replace(self, _pieces={name: Piece(entry, None, entry.stored.shape) for name, entry in entries.items()})


def open_checkpoint(
    path: str | Path,
    *,
    variant: str | None = None,
    subfolder: str | None = None,
    weights: str | None = None,
    network: str | None = None,
) -> Checkpoint:
    """Recognises the VAE in `path`: a file in any layout, a diffusers folder or pipeline, a config.json, a shard index.

    Only headers are read. `variant`, a name of `spec.VARIANTS`, decides where the tensors cannot. `weights` picks among
    the files of a folder, as diffusers' "fp16" does. `network` is the class that is wanted where nothing states one and the
    tensors fit several: Wan's and Qwen-Image's are alike.

    Raises CheckpointError for a file that cannot be read, UnknownModelError for something that is not loaded,
    StateDictError for tensors that contradict `variant`, a config or each other, InputError for an unknown `variant`,
    MissingPackageError for Flax without msgpack.
    """
    require_known(variant)
    path = Path(path).expanduser()
    place = locate(path, subfolder, weights)
    _refuse_other_class(place)
    return _recognised(path, place, gather(place), variant, network)


def open_state_dict(state_dict: StateDict, where: str, *, variant: str | None = None) -> Checkpoint:
    """Recognises a VAE whose tensors are in memory, in any layout of names. Nothing is copied.

    `state_dict` is called again whenever tensors are read, so that a module whose weights are moved about is read as it is then.
    `where` names it in messages: "the VAE of this checkpoint". Raises as `open_checkpoint` does.
    """
    require_known(variant)
    path = Path(where)
    source = _in_memory(state_dict, path)
    content = Content({key: Entry(source, key, stored) for key, stored in source.tensors.items()}, (path,), {})
    return _recognised(path, Place((path,)), content, variant)


def _in_memory(state_dict: StateDict, path: Path) -> Source:
    held = {key: Stored(tuple(tensor.shape), tensor.dtype) for key, tensor in state_dict().items()}

    @contextmanager
    def opener() -> Iterator[Read]:
        yield state_dict().__getitem__

    return Source(path, "state dict", held, opener)


def _recognised(
    path: Path, place: Place, content: Content, variant: str | None, network: str | None = None
) -> Checkpoint:
    found = recognise(place.main, content.entries)
    layout = _layout_name(place, content, found)
    shapes = {name: piece.shape for name, piece in found.pieces.items()}
    inferred = infer_configs(place.main, found.network, shapes)
    given, config_why = _given(place, found, content, inferred)
    if network in inferred and (given is None or given.network is None):
        inferred = {network: inferred[network]}
    clues = Clues(found.siblings, content.metadata, _telling_names(place), _tiny_scale(found, content))
    choice = choose(place.main, inferred, given, clues, variant)
    uses_config = given is not None and given.source == str(place.config)
    return Checkpoint(
        path=path,
        files=(*content.files, *((place.config,) if uses_config and place.config else ())),
        variant=choice.variant,
        config=choice.config,
        layout=layout,
        why=(*place.why, *content.why, _seen(found, choice.variant.network, layout), *config_why, *choice.why),
        candidates=choice.candidates,
        ignored={**found.ignored, **content.ignored},
        shapes=shapes,
        dtype=_main_dtype(found.pieces),
        _pieces=found.pieces,
    )


def _by_source(pieces: Mapping[str, Piece]) -> list[tuple[Source, list[str]]]:
    names: dict[Path, tuple[Source, list[str]]] = {}
    for name, piece in pieces.items():
        source = piece.entry.source
        names.setdefault(source.path, (source, []))[1].append(name)
    return list(names.values())


def _refuse_other_class(place: Place) -> None:
    # Before the tensors are looked at, so that the folder of another model is named by its own class.
    if place.config is not None and place.in_folder:
        config_class(read_object(place.config), str(place.config))


def _given(place: Place, found: Found, content: Content, inferred: Inferred) -> tuple[Given | None, tuple[str, ...]]:
    """The config that goes with the tensors: the file's own metadata, else config.json beside it."""
    own = content.metadata.get(OWN_CONFIG)
    if own is not None:
        where = f"{place.main}: its metadata `{OWN_CONFIG}`"
        given = parse_config(parse_object(own, where), where, found.network)
        return given._replace(source=f"its metadata `{OWN_CONFIG}`"), ()
    if place.config is None:
        return None, ()
    try:
        given = parse_config(read_object(place.config), str(place.config), found.network)
        if not place.in_folder:
            check_agreement(place.main, inferred, given)
        return given, ()
    except CheckpointError as error:
        if place.in_folder:
            raise
        # A folder of single files may well hold the config.json of only one of them, or of something else.
        return None, (f"config.json beside it belongs to something else and is not used ({error})",)


def _telling_names(place: Place) -> tuple[str, ...]:
    file = place.main.absolute()
    if not place.in_folder and not file.stem.startswith(STEM):
        return (file.stem,)
    return tuple(parent.name for parent in list(file.parents)[:3] if parent.name)


def _tiny_scale(found: Found, content: Content) -> tuple[float, float] | None:
    """The two numbers that ComfyUI keeps beside a tiny VAE: the only tensors whose values say which variant it is."""
    entries = [content.entries.get(f"{found.prefix}{name}") for name in ("vae_scale", "vae_shift")]
    values: list[float] = []
    for entry in entries:
        if entry is None or entry.stored.shape not in ((), (1,)):
            return None
        with entry.source.opener() as read:
            values.append(float(read(entry.key)))
    return values[0], values[1]


def _layout_name(place: Place, content: Content, found: Found) -> str:
    if content.is_pair:
        return "taesd pair"
    name = found.layout.name
    if name == "diffusers" and place.in_folder:
        name = "diffusers folder"
    return f"{name} in a full checkpoint" if found.siblings else name


def _seen(found: Found, network: str, layout: str) -> str:
    first = next(iter(found.pieces.values())).entry.key
    under = f" under `{found.prefix}`" if found.prefix else ""
    return f"{len(found.pieces)} tensors{under} named like `{first}`: {network} in the layout {layout}"


def _main_dtype(pieces: Mapping[str, Piece]) -> torch.dtype:
    values: Counter[torch.dtype] = Counter()
    for piece in pieces.values():
        dtype = piece.entry.stored.dtype
        if dtype is not None and dtype.is_floating_point:
            values[dtype] += max(1, torch.Size(piece.shape).numel())
    return values.most_common(1)[0][0]
