"""The example workflows in the real frontend: each loads, runs and shows its panels, in the classic canvas and in Nodes 2.0.

COMFYUI_FRONTEND names the static folder of another frontend than the installed one. Needs playwright and Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import ComfyServer
from PIL import Image
from skimage import data

from vae_core.media import open_sink

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install exact-vae[browser]"
)

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
FRONTEND = os.environ.get("COMFYUI_FRONTEND")
OFFLINE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PANELS = {
    "api": ["ExactVAELoader", "ExactVAEEncode", "ExactVAEDecodeTiled"],
    "big_picture": ["ExactVAELoader", "ExactVAEEncode", "ExactVAEDecode", "ExactVAEPlan"],
    "image_round_trip": ["ExactVAELoader", "ExactVAEEncode", "ExactVAEDecode"],
    "qwen_image": ["ExactVAELoader", "ExactVAEDecode"],
    "text_to_image": ["ExactVAEDecode"],
    "tiny_vae_preview": ["ExactVAELoader", "ExactVAEEncode", "ExactVAEDecodeTiled", "ExactVAEDecodeTiled"],
    "video_round_trip": ["ExactVAELoader", "ExactVAEVideoEncode", "ExactVAEVideoDecode"],
    "wan_text_to_video": ["ExactVAELoader", "ExactVAEVideoDecode"],
}

SMALLER = {
    "big_picture": {1536: 256},
    "qwen_image": {1328: 64},
    "text_to_image": {20: 1, 512: 64},
    "wan_text_to_video": {832: 64, 480: 48, 81: 9},
}
"""Sizes and steps, where they are all that takes time."""

NOT_SAMPLED = {"qwen_image": "EmptySD3LatentImage", "wan_text_to_video": "EmptyHunyuanLatentVideo"}
"""Their diffusion and text models are not here: loaded whole, they decode what sampling starts from."""

EXAMPLES = {file.stem for file in (ROOT / "example_workflows").glob("*.json")}

READY = """() => window.app?.graph && window.app.extensionManager
    && window.LiteGraph?.registered_node_types?.ExactVAEDecode"""

RUN = """async () => {
    const { api } = window.comfyAPI.api;
    const end = new Promise((resolve) => {
        for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
            api.addEventListener(kind, ({ detail }) => resolve([kind, detail?.exception_message ?? ""]));
    });
    await window.app.queuePrompt(0, 1);
    return await end;
}"""

OURS = """() => window.app.graph.serialize().nodes.filter((node) => node.type.startsWith("ExactVAE"))
    .map((node) => [node.id, node.type, node.widgets_values ?? []])"""

DECODE_THAT = """(type) => {
    const nodes = window.app.graph._nodes;
    const decode = nodes.find((node) => /^ExactVAE.*Decode$/.test(node.type));
    nodes.find((node) => node.type === type).connect(0, decode, decode.findInputSlot("samples"));
}"""

SHOWN = """() => [...document.querySelectorAll(".exact-vae-panel")].map((panel) => panel.innerText.trim()).filter(Boolean)"""

pytestmark = [
    pytest.mark.usefixtures("taesd_weights"),
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed; CHROMIUM may name one"),
]


@pytest.fixture(scope="module")
def server(
    taesd_weights: Path, sd1_checkpoint: Path, foreign_video_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("inputs")
    inputs = {name: folder / name for name in ("example.png", "clip.mp4")}
    Image.fromarray(data.rocket()).resize((160, 112)).save(inputs["example.png"])
    write_clip(inputs["clip.mp4"])
    models = {f"vae_approx/{file.name}": file for file in taesd_weights.iterdir()}
    models["checkpoints/v1-5-pruned-emaonly-fp16.safetensors"] = sd1_checkpoint
    models |= {f"vae/{name}.safetensors": foreign_video_vae for name in ("wan_2.1_vae", "qwen_image_vae")}
    # Nothing is cached: of a cached loader the browser is told nothing, and a page that was just opened cannot know it.
    arguments = ["--disable-api-nodes", "--cache-none", *(["--front-end-root", FRONTEND] if FRONTEND else [])]
    with ComfyServer({"exact-vae": ROOT}, models=models, inputs=inputs, arguments=arguments) as server:
        server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False})
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OFFLINE))
        yield browser
        browser.close()


def write_clip(file: Path) -> None:
    rocket = torch.from_numpy(data.rocket().copy()).movedim(-1, 0) / 127.5 - 1
    with open_sink(file, fps=12) as sink:
        for i in range(7):
            sink.write(rocket[:, None, 100:160, 200 + 4 * i : 280 + 4 * i])


def workflow(name: str) -> dict[str, Any]:
    """The example, smaller where its size is all that takes time."""
    ui = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    small = SMALLER.get(name, {})
    for node in ui["nodes"]:
        if not node["type"].startswith("ExactVAE"):
            node["widgets_values"] = [
                small.get(v, v) if type(v) is int else v for v in node.get("widgets_values") or []
            ]
    return ui


def ours(ui: dict[str, Any]) -> list[list[Any]]:
    """Our nodes as a file has them: id, type, and the values of their widgets."""
    nodes = (node for node in ui["nodes"] if node["type"].startswith("ExactVAE"))
    return [[node["id"], node["type"], node.get("widgets_values") or []] for node in nodes]


def test_no_example_is_left_out():
    assert PANELS.keys() == EXAMPLES


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])
def test_an_example_loads_runs_and_shows_its_panels(server, browser, name, nodes_2):
    server.post("/settings/Comfy.VueNodes.Enabled", nodes_2)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"{error}\n{error.stack or ''}"))
    page.on("console", lambda said: complaints.append(f"{said.text} {said.location}") if said.type == "error" else None)
    page.goto(f"http://127.0.0.1:{server.port}")
    page.wait_for_function(READY, timeout=120_000)
    ui = workflow(name)
    page.evaluate("async (ui) => window.app.loadGraphData(ui, true, true, 'example')", ui)
    page.wait_for_timeout(500)
    loaded = page.evaluate(OURS)
    assert sorted(loaded) == sorted(ours(ui)) and sorted(kind for _, kind, _ in loaded) == sorted(PANELS[name])
    if name in NOT_SAMPLED:
        page.evaluate(DECODE_THAT, NOT_SAMPLED[name])
    assert page.evaluate(RUN) == ["execution_success", ""]
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)
    panels = page.evaluate(SHOWN)
    if not nodes_2 or has_dom_widgets(page):
        assert len(panels) == len(PANELS[name]), panels
        assert any("exact" in text for text in panels)
    assert [text for text in complaints if "exact-vae" in text] == []
    page.close()


def has_dom_widgets(page: Any) -> bool:
    """Nodes 2.0 of frontend 1.27.10 shows no DOM widgets, whosever they are; that of 1.35.9 does."""
    version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__ ?? '0.0'")
    return tuple(map(int, version.split(".")[:2])) >= (1, 28)
