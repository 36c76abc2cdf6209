"""JSON that comes from outside: every way of being wrong is a CheckpointError with one sentence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


class _DuplicateKey(ValueError):
    pass


def parse_object(text: bytes | str, what: str) -> dict[str, Any]:
    """The JSON object in `text`. `what` begins the sentence of the error: "x.safetensors: its header"."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except _DuplicateKey as error:
        raise CheckpointError(f"{what} names {error} twice, so that one of the two would be lost") from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{what} is not valid JSON ({reason}); the file is damaged: download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a JSON {type(value).__name__}, where an object {{...}} is expected")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_object(text, f"{path}: its text")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python keeps the last of two equal keys in silence; a header in which one tensor shadows another is a lie.
    result = dict(pairs)
    if len(result) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _DuplicateKey(f"`{key}`")
    return result
