"""The example workflows: the UI's format and the API's tell the same graph, of nodes and widgets that exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_schema import inputs, is_link

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "api",
    "big_picture",
    "image_round_trip",
    "qwen_image",
    "text_to_image",
    "tiny_vae_preview",
    "video_round_trip",
    "wan_text_to_video",
)
NOTES = ("Note", "MarkdownNote")


def ui_format(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def api_format(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "examples" / "api_format" / f"{name}.json").read_text(encoding="utf-8"))


def test_each_is_there_in_both_formats_with_a_thumbnail():
    folder = ROOT / "example_workflows"
    assert {file.name for file in folder.iterdir()} == {f"{name}.{kind}" for name in NAMES for kind in ("json", "jpg")}
    assert {file.stem for file in (ROOT / "examples" / "api_format").iterdir()} == set(NAMES)
    for name in NAMES:
        with Image.open(folder / f"{name}.jpg") as thumbnail:
            assert thumbnail.format == "JPEG" and max(thumbnail.size) <= 768


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_tell_the_same_graph(exact, name):
    ui, api = ui_format(name), api_format(name)
    sources = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    nodes = {str(node["id"]): node for node in ui["nodes"] if node["type"] not in NOTES}
    assert {key: node["type"] for key, node in nodes.items()} == {key: n["class_type"] for key, n in api.items()}
    for key, node in nodes.items():
        links = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        given = api[key]["inputs"]
        assert {name: value for name, value in given.items() if isinstance(value, list)} == links
        if node["type"] in exact.nodes:
            widgets = [w for w, spec in inputs(exact.nodes[node["type"]]).items() if not is_link(spec)]
            stored = dict(zip(widgets, node["widgets_values"], strict=True))
            # A widget that is linked keeps the value that it had.
            assert stored == {w: stored[w] if w in links else given[w] for w in widgets}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_allowed(exact, name):
    for node in api_format(name).values():
        if node["class_type"] not in exact.nodes:
            continue
        known = inputs(exact.nodes[node["class_type"]])
        assert node["inputs"].keys() <= known.keys()
        for widget, value in node["inputs"].items():
            if isinstance(value, list):
                continue
            spec = known[widget]
            if isinstance(spec[0], list) and widget != "vae_name":
                assert value in spec[0]
            if spec[0] == "INT":
                assert spec[1]["min"] <= value <= spec[1]["max"]


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_note_and_no_nodes_on_top_of_each_other(name):
    nodes = ui_format(name)["nodes"]
    assert any(node["type"] in NOTES for node in nodes)
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
