"""Files that exist under their final names only when they are whole.

Writing goes to a hidden name in the same folder, which is renamed at the end; whatever interrupts it, also Ctrl-C,
leaves nothing behind. The file has the permissions of any new file, whoever wrote it: some writers, safetensors'
`save_file` among them, keep what they make from other users.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def check_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise `InputError` if no file can be written at `path`: no such folder, a folder itself, or a file to be kept."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it, or name another")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: already exists; name another, or let it be overwritten (--force, overwrite=True)")


@contextmanager
def whole(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the name to write to, with the ending of `path`; if the block succeeds, it becomes `path`.

    Raises `InputError` as `check_target` does, before the block and, since the block may take minutes, after it again.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        check_target(path, overwrite=overwrite)
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
