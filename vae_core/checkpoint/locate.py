"""From what the user named (a file, a folder, a config.json, an index) to the files that hold the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointError
from .jsontext import read_object
from .reader import SUFFIXES

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
FLAX_NAME = "diffusion_flax_model.msgpack"
INDEX_MARK = ".index"


def index_name(suffix: str, weights: str | None = None) -> str:
    """The index of shards that end in `suffix`; `weights` is diffusers' file variant, "fp16"."""
    return f"{STEM}{suffix}.index.{weights}.json" if weights else f"{STEM}{suffix}.index.json"


def weight_names(suffix: str, weights: str | None = None) -> tuple[str, str]:
    """The names that a diffusers folder's weights go by: in one file, and the index of several."""
    return f"{STEM}.{weights}{suffix}" if weights else f"{STEM}{suffix}", index_name(suffix, weights)


# Full precision before half, safetensors before pickles: the order in which a folder with several is read.
_PREFERRED = (
    *weight_names(".safetensors"),
    *weight_names(".safetensors", "fp16"),
    *weight_names(".bin"),
    *weight_names(".bin", "fp16"),
    FLAX_NAME,
)


@dataclass(frozen=True)
class Place:
    """Which files to read."""

    weights: tuple[Path, ...]
    """One file, or all shards."""
    config: Path | None = None
    """config.json beside the weights."""
    index: Path | None = None
    weight_map: tuple[tuple[str, str], ...] = ()
    """Of a sharded folder: tensor name -> file name, as its index says."""
    in_folder: bool = False
    """True for a folder in diffusers' layout: config.json then surely belongs to the weights. False for a lone file."""
    why: tuple[str, ...] = ()

    @property
    def main(self) -> Path:
        """The file that messages name."""
        return self.index or self.weights[0]


def locate(path: Path, subfolder: str | None = None, weights: str | None = None) -> Place:
    """The files meant by `path`. Raises CheckpointError if it does not exist or holds no weights, or several.

    `weights` is diffusers' file variant: "fp16" for diffusion_pytorch_model.fp16.safetensors.
    """
    target = path / subfolder if subfolder else path
    if not target.exists():
        raise CheckpointError(f"{target}: does not exist; check the name" + (" and the subfolder" if subfolder else ""))
    if target.is_dir():
        return _folder(target, weights)
    if target.suffix.lower() == ".json":
        return _json(target)
    return _file(target)


def _folder(folder: Path, weights: str | None = None) -> Place:
    chosen = _choose(folder, weights)
    if chosen is not None:
        place = _index(chosen) if INDEX_MARK in chosen.name else _file(chosen)
        return replace(place, in_folder=place.config is not None)
    if (folder / "vae").is_dir():
        place = _folder(folder / "vae", weights)
        return replace(place, why=(f"{folder.name} is a whole pipeline: its subfolder `vae` is read", *place.why))
    if weights:
        raise CheckpointError(f"{folder}: holds no {weight_names('.safetensors', weights)[0]} and no .bin of that name")
    looked = f"{_PREFERRED[0]}, another of {', '.join(SUFFIXES)}, or a subfolder vae"
    raise CheckpointError(f"{folder}: holds no weights of a VAE; looked for {looked}")


def _choose(folder: Path, weights: str | None) -> Path | None:
    names = (*weight_names(".safetensors", weights), *weight_names(".bin", weights)) if weights else _PREFERRED
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if weights:
        return None
    found = sorted(item for item in folder.iterdir() if item.is_file() and item.suffix.lower() in SUFFIXES)
    # The two halves of a TAESD are one network: naming either is enough.
    stems = {item.stem for item in found}
    rest = [item for item in found if "encoder" not in item.name or stems.isdisjoint(twin_stems(item))]
    if len(rest) > 1:
        listed = ", ".join(item.name for item in found[:6]) + (", ..." if len(found) > 6 else "")
        raise CheckpointError(f"{folder}: holds several weight files ({listed}); name the one that is meant")
    return rest[0] if rest else None


def twin_stems(file: Path) -> tuple[str, ...]:
    """Names, without extension, of the other half of a two-file network: taesd_encoder.pth -> taesd_decoder."""
    stem = file.stem
    swaps = (("encoder", "decoder"), ("decoder", "encoder"), ("Encoder", "Decoder"), ("Decoder", "Encoder"))
    return tuple(new.join(stem.rsplit(old, 1)) for old, new in swaps if old in stem)


def _file(file: Path) -> Place:
    config = file.parent / CONFIG
    standard = file.name.startswith((STEM, "diffusion_flax_model"))
    if not config.is_file():
        return Place((file,))
    return Place((file,), config, in_folder=standard)


def _json(file: Path) -> Place:
    if file.name == CONFIG:
        return _folder(file.parent)
    if INDEX_MARK in file.name:
        return _index(file)
    raise CheckpointError(f"{file}: is no config.json and no *.index.json; name the weights file or its folder")


def _index(index: Path) -> Place:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"{index}: has no `weight_map` of names to files, so it is no index of shards")
    names = sorted(set(weight_map.values()))
    for name in names:
        # A shard lies beside its index; a path that leads elsewhere is not followed.
        if Path(name).name != name:
            raise CheckpointError(f"{index}: names the shard {name!r}, which is no plain file name")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: names the shard {name}, which is not in {index.parent}; download it too")
    config = index.parent / CONFIG
    return Place(
        tuple(index.parent / name for name in names),
        config if config.is_file() else None,
        index=index,
        weight_map=tuple(weight_map.items()),
        in_folder=True,
    )
