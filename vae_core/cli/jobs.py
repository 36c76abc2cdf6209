"""Which files a command reads and which it writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..whole_files import check_target


class Job(NamedTuple):
    """One file in, one out."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[str], output: str, *, reads: Iterable[str], writes: Sequence[str], overwrite: bool
) -> list[Job]:
    """Pair inputs with outputs, before anything is computed.

    A folder among the inputs stands for its files with an ending in `reads`. One input file goes to `output`, or into
    it where that is a folder; more go into the folder `output`, under their own names with `writes[0]` for an ending.

    Raises:
        InputError: no files, two that would get one name, another ending, or an output that exists and is to be kept.
    """
    sources = [source for name in inputs for source in _files(Path(name), tuple(reads))]
    into_folder = len(sources) > 1 or Path(inputs[0]).is_dir() or Path(output).is_dir() or output.endswith(os.sep)
    if not into_folder:
        if Path(output).suffix.lower() not in writes:
            raise InputError(f"{output}: its name should end in {' or '.join(writes)}")
        check_target(output, overwrite=overwrite)
        return [Job(sources[0], Path(output))]
    jobs = [Job(source, Path(output) / f"{source.stem}{writes[0]}") for source in sources]
    _check_names(jobs)
    if Path(output).is_file():
        raise InputError(f"{output}: is a file; several outputs go into a folder")
    if Path(output).is_dir():
        for job in jobs:
            check_target(job.target, overwrite=overwrite)
    return jobs


def _check_names(jobs: Sequence[Job]) -> None:
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.target in taken:
            raise InputError(f"{taken[job.target]} and {job.source} would both become {job.target}; give them apart")
        taken[job.target] = job.source


def _files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in endings and not file.name.startswith("."))
    if not found:
        raise InputError(f"{path}: this folder holds no {', '.join(endings)} file")
    return found
