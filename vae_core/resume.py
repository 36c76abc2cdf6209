"""Taking up a decode that was stopped: finished chunks, and the causal cache after the last of them, in a folder.

    job.json                    whose work it is
    chunk-000003.safetensors    `pixels`, as decoded
    cache-000003.safetensors    the causal cache after that chunk: "image/layer" → frames

Each file has its name only when it is whole, and a chunk counts once both of its files are there. So whenever a process is killed,
what is in the folder is whole, and the run that goes on from there computes the same as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import InputError
from .nets.passes import CausalCache, Op
from .whole_files import whole

FORMAT = "exact-vae resume 1"
CHUNK = "chunk-{:06}.safetensors"
SAMPLED_ELEMENTS = 64
"""Of each weight: enough to tell one set of weights from another."""


def job_key(net: nn.Module, latents: Tensor) -> str:
    """What a decode's result depends on, in 64 hexadecimal digits: the latents, the network and its weights, and their dtype."""
    digest = hashlib.sha256(f"{FORMAT} {type(net).__name__} {tuple(latents.shape)} {latents.dtype}".encode())
    digest.update(_bytes(latents))
    for name, weight in net.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(_bytes(weight.flatten()[:SAMPLED_ELEMENTS]))
    return digest.hexdigest()


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def forget(folder: str | Path) -> None:
    """Delete a folder of finished chunks; nothing happens where there is none, or where it is not such a folder."""
    if (Path(folder) / "job.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)


def frames_kept(folder: str | Path) -> int:
    """How many frames a run that goes on from a folder need not decode again; 0 where it could not go on."""
    numbers = _finished(Path(folder))
    try:
        return sum(_frames_in(Path(folder) / CHUNK.format(i)) for i in range(max(numbers, default=-1) + 1))
    except (OSError, SafetensorError):
        return 0


def _frames_in(chunk: Path) -> int:
    with safe_open(chunk, framework="pt") as file:
        return file.get_slice("pixels").get_shape()[2]


def _finished(folder: Path) -> list[int]:
    """Numbers of the chunks after which there is a causal cache."""
    return [int(m[1]) for f in folder.glob("cache-*") if (m := re.fullmatch(r"cache-(\d+)\.safetensors", f.name))]


class FinishedChunks:
    """The folder of one decode. Raises InputError where it is that of another one, or no such folder at all."""

    def __init__(self, folder: str | Path, key: str, net: nn.Module):
        self.folder, self.layers = Path(folder), dict(net.named_modules())
        self._claim(key)
        self.count = self._counted()
        """Chunks that are finished."""

    def _claim(self, key: str) -> None:
        job = self.folder / "job.json"
        if not job.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(f"{self.folder}: holds something else than a stopped decode; name another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(job) as part:
                part.write_text(json.dumps({"format": FORMAT, "job": key}))
        try:
            claimed = json.loads(job.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{job}: cannot be read ({error}); delete {self.folder} to begin anew") from error
        if claimed != {"format": FORMAT, "job": key}:
            raise InputError(
                f"{self.folder}: holds the work of another decode, of other latents or another VAE; delete it, or name another"
            )

    def _counted(self) -> int:
        last = max(_finished(self.folder), default=-1)
        missing = next((i for i in range(last + 1) if not self._chunk(i).is_file()), None)
        if missing is not None:
            raise InputError(f"{self._chunk(missing)}: is missing; delete {self.folder} to begin anew")
        return last + 1

    def _chunk(self, number: int) -> Path:
        return self.folder / CHUNK.format(number)

    def _cache(self, number: int) -> Path:
        return self.folder / f"cache-{number:06}.safetensors"

    def chunks(self) -> Iterator[Tensor]:
        """The pixels of the finished chunks, read one by one."""
        for number in range(self.count):
            yield _read(self._chunk(number))["pixels"]

    def caches(self) -> list[CausalCache]:
        """The causal cache after the last finished chunk, of each clip of the batch."""
        stored = _read(self._cache(self.count - 1))
        caches: list[dict[Op, Tensor]] = [{} for _ in {name.partition("/")[0] for name in stored}]
        for name, frames in stored.items():
            image, _, layer = name.partition("/")
            caches[int(image)][cast(Op, self.layers[layer])] = frames
        return [*caches]

    def keep(self, pixels: Tensor, caches: Sequence[CausalCache]) -> None:
        """Another chunk is finished, and has left this causal cache. Raises OSError where the disk is full."""
        names = {id(layer): name for name, layer in self.layers.items()}
        stored = {f"{i}/{names[id(op)]}": frames for i, cache in enumerate(caches) for op, frames in cache.items()}
        _write(self._chunk(self.count), {"pixels": pixels})
        _write(self._cache(self.count), stored)
        self._cache(self.count - 1).unlink(missing_ok=True)
        self.count += 1


GoOn = Callable[[int, "list[CausalCache] | None"], Iterator[tuple[Tensor, Sequence[CausalCache]]]]
"""(number of the next chunk, causal caches before it) → each chunk from there on, and the caches after it."""


def resumed(
    finished: FinishedChunks, go_on: GoOn, note: Callable[[str], None]
) -> Iterator[tuple[Tensor, Sequence[CausalCache]]]:
    """The finished chunks, then those that `go_on` makes, each kept in the folder before it is given away.

    A full disk ends the keeping, with a note, and not the run.
    """
    start, keeps = finished.count, True
    if start:
        note(f"{start} chunks had been decoded before the run was stopped; they were taken over from {finished.folder}")
        for pixels in finished.chunks():
            yield pixels, ()
    for made, caches in go_on(start, finished.caches() if start else None):
        if keeps:
            try:
                finished.keep(made, caches)
            except OSError as error:
                keeps = False
                note(
                    f"{finished.folder}: nothing more can be kept there, so that this run could not go on later ({error})"
                )
        yield made, caches
        del made  # or it would be held while the next one is computed


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with whole(path, overwrite=True) as part:
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, part)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete {path.parent} to begin anew") from error
