"""The translations: every language says the same things."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOCALES = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())
FILES = ("main.json", "nodeDefs.json", "settings.json")


def texts(language: str, file: str) -> dict[str, str]:
    """Path of keys → text."""
    return dict(_leaves(json.loads((LOCALES / language / file).read_text(encoding="utf-8")), ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}")
    else:
        yield path, value


def test_english_is_there():
    assert "en" in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("file", FILES)
def test_keys_are_those_of_english(language: str, file: str):
    assert texts(language, file).keys() == texts("en", file).keys()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("file", FILES)
def test_texts_are_plain(language: str, file: str):
    """The frontend reads braces, @ and | in a message as instructions."""
    for path, text in texts(language, file).items():
        assert isinstance(text, str) and text.strip() == text and text, path
        assert not set("{}@|") & set(text), path


def test_settings_are_those_of_the_browser_side():
    main = (LOCALES.parent / "web" / "main.js").read_text(encoding="utf-8")
    names = {path.split("/")[1] for path in texts("en", "settings.json")}
    assert names == {"ExactVAE_Preview", "ExactVAE_Panel"}
    for name in names:
        assert f'"{name.replace("_", ".")}"' in main
