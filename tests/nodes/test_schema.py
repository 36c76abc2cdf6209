"""What ComfyUI reads of the node classes, and what users' workflows depend on."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

WIDGETS = {
    "ExactVAELoader": ["vae_name", "variant", "dtype"],
    "ExactVAEDecode": ["memory_limit", "precision"],
    "ExactVAEEncode": ["fit", "memory_limit", "precision"],
    "ExactVAEDecodeTiled": ["tile_size", "method", "overlap", "memory_limit", "precision"],
    "ExactVAEEncodeTiled": ["tile_size", "method", "overlap", "fit", "memory_limit", "precision"],
    "ExactVAEPlan": ["width", "height", "direction", "batch_size", "memory_limit", "tile_size", "frames"],
    "ExactVAEVideoDecode": ["fps", "format", "crf", "outputs", "memory_limit", "precision", "resume"],
    "ExactVAEVideoEncode": ["fit", "memory_limit", "precision"],
}
"""In the order in which workflows store their values: append only."""

LINKS = ("LATENT", "IMAGE", "VAE", "MASK", "AUDIO", "VIDEO")


def inputs(node: type, *kinds: str) -> dict[str, Any]:
    given = node.INPUT_TYPES()  # type: ignore[attr-defined]
    return {name: spec for kind in kinds or ("required", "optional") for name, spec in given.get(kind, {}).items()}


def is_link(spec: Any) -> bool:
    return spec[0] in LINKS


def test_ids_and_widgets_stay(exact):
    assert {
        name: [w for w, s in inputs(node).items() if not is_link(s)] for name, node in exact.nodes.items()
    } == WIDGETS


def test_every_node_has_its_texts(exact):
    assert exact.titles.keys() == exact.nodes.keys()
    for name, node in exact.nodes.items():
        assert name.startswith("ExactVAE") and node.CATEGORY == "latent/exact vae"
        assert node.DESCRIPTION.endswith(".") and node.SEARCH_ALIASES
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
        for widget, spec in inputs(node).items():
            assert spec[1]["tooltip"].endswith("."), (name, widget)


def test_every_input_reaches_the_function_and_optional_ones_have_its_default(exact):
    for name, node in exact.nodes.items():
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        taken = set(parameters) - {"self"}
        assert taken == set(inputs(node, "required", "optional", "hidden")), name
        for widget, spec in inputs(node, "optional").items():
            shown = None if is_link(spec) else spec[1]["default"]
            assert parameters[widget].default == shown, (name, widget)
        for hidden in inputs(node, "hidden"):
            assert parameters[hidden].default is None


def test_defaults_are_allowed(exact):
    for node in exact.nodes.values():
        for spec in inputs(node).values():
            options = spec[1]
            if isinstance(spec[0], list) and "default" in options:
                assert options["default"] in spec[0]
            if spec[0] == "INT":
                assert options["min"] <= options["default"] <= options["max"]


@pytest.mark.parametrize("text", ["auto", "", "6", "0.5", " 6GiB", "800MiB", "50%", "1.5 GB", None, 8])
def test_memory_limits_that_are_understood(exact, text):
    assert exact.nodes["ExactVAEDecode"].VALIDATE_INPUTS(memory_limit=text) is True


@pytest.mark.parametrize("text", ["lots", "-1", "0", "0%", "120%", "6 apples", "nan"])
def test_memory_limits_that_are_not_get_a_sentence(exact, text):
    for name in ("ExactVAEDecode", "ExactVAEEncodeTiled", "ExactVAEPlan"):
        said = exact.nodes[name].VALIDATE_INPUTS(memory_limit=text)
        assert isinstance(said, str) and repr(text) in said and "auto" in said


def test_plain_numbers_are_gib(exact):
    limit_of = exact.part("nodes.inputs").limit_of
    assert [limit_of(text) for text in ("auto", "6", "0.5", "800MiB", "50%")] == [
        None,
        "6GiB",
        "0.5GiB",
        "800MiB",
        "50%",
    ]


def test_translations_name_every_input_and_output(exact):
    for language in ("en", "zh"):
        texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        assert texts.keys() == exact.nodes.keys()
        for name, node in exact.nodes.items():
            assert texts[name]["display_name"] and texts[name]["description"]
            assert texts[name]["inputs"].keys() == inputs(node).keys(), (language, name)
            assert texts[name]["outputs"].keys() == {str(i) for i in range(len(node.RETURN_TYPES))}
    english = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert {name: text["display_name"] for name, text in english.items()} == exact.titles


def test_every_node_has_a_help_page(exact):
    for name in exact.nodes:
        for language in ("en", "zh"):
            assert (ROOT / "web" / "docs" / name / f"{language}.md").read_text(encoding="utf-8").startswith("# ")


def test_the_loaders_variants_are_those_of_the_table(exact):
    variants = exact.part("vae_core").VARIANTS
    assert inputs(exact.nodes["ExactVAELoader"])["variant"][0] == ["auto", *variants]
