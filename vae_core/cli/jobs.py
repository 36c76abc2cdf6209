"""Which files a command reads and which it writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..whole_files import check_target


class Job(NamedTuple):
    """One file in, one out."""

    source: Path
    target: Path
    folder: Path | None = None
    """For what becomes many pictures, where the output is a folder: that itself, or one in it if there are more inputs."""


def plan_jobs(
    inputs: Sequence[str],
    output: str,
    *,
    reads: Iterable[str],
    writes: Sequence[str],
    overwrite: bool,
    as_one: Callable[[Path], bool] = lambda folder: False,
    bare_is_folder: bool = False,
) -> list[Job]:
    """Pair inputs with outputs, before anything is computed.

    A folder among the inputs stands for its files with an ending in `reads`, or, if it is `as_one`, for itself. One
    input goes to `output`, or into it where that is a folder; more go into the folder `output`, under their own names
    with `writes[0]` for an ending. With `bare_is_folder`, an `output` without an ending is a folder.

    Raises:
        InputError: no files, two that would get one name, another ending, or an output that exists and is to be kept.
    """
    sources = [source for name in inputs for source in _files(Path(name), tuple(reads), as_one)]
    several = len(sources) > 1 or Path(inputs[0]) != sources[0]
    names_folder = output.endswith(os.sep) or (bare_is_folder and not Path(output).suffix)
    if not (several or names_folder or Path(output).is_dir()):
        if Path(output).suffix.lower() not in writes:
            raise InputError(f"{output}: its name should end in {' or '.join(writes)}")
        check_target(output, overwrite=overwrite)
        return [Job(sources[0], Path(output))]
    jobs = [_job(source, Path(output), writes[0], several) for source in sources]
    _check_names(jobs)
    if Path(output).is_file():
        raise InputError(f"{output}: is a file; several outputs go into a folder")
    if Path(output).is_dir():
        for job in jobs:
            check_target(job.target, overwrite=overwrite)
    return jobs


def _job(source: Path, output: Path, ending: str, several: bool) -> Job:
    return Job(source, output / f"{source.stem}{ending}", output / source.stem if several else output)


def _check_names(jobs: Sequence[Job]) -> None:
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target in taken:
            raise InputError(f"{taken[job.target]} and {job.source} would both become {job.target}; give them apart")
        taken[job.target] = job.source


def _files(path: Path, endings: tuple[str, ...], as_one: Callable[[Path], bool]) -> list[Path]:
    if not path.is_dir() or as_one(path):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in endings and not file.name.startswith("."))
    if not found:
        raise InputError(f"{path}: this folder holds no {', '.join(endings)} file")
    return found
