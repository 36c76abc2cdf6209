"""The repository as ComfyUI loads it, in a process of its own: by path, under a name that is a path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LOAD_AS_COMFYUI_DOES = """
import importlib.util, json, os, sys
folder = sys.argv[1]
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
print(json.dumps({
    "nodes": sorted(module.NODE_CLASS_MAPPINGS),
    "named": sorted(module.NODE_DISPLAY_NAME_MAPPINGS),
    "web": module.WEB_DIRECTORY,
    "absolute": sorted(m for m in sys.modules if m.split(".")[0] in ("vae_core", "nodes")),
}))
"""


def run_python(code: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["exact-vae", "exact_vae", "Exact VAE 2"])
def test_loads_from_a_folder_of_any_name(tmp_path, folder):
    pack = tmp_path / "custom_nodes" / folder
    pack.parent.mkdir()
    pack.symlink_to(ROOT, target_is_directory=True)
    loaded = json.loads(run_python(LOAD_AS_COMFYUI_DOES, str(pack), cwd=tmp_path))
    assert loaded["named"] == loaded["nodes"]
    assert all(name.startswith("ExactVAE") for name in loaded["nodes"])
    assert loaded["web"] == "./web"
    assert loaded["absolute"] == [], "the pack must not load itself a second time under another name"


def test_loads_without_its_optional_parts_and_without_heavy_ones(tmp_path):
    """ComfyUI imports packs one after the other at its start."""
    optional = ("msgpack", "tqdm", "av", "diffusers", "transformers", "torchvision", "scipy", "cv2", "matplotlib")
    without = f"import sys; sys.modules.update(dict.fromkeys({optional}))"
    loaded = json.loads(run_python(f"{without}\n{LOAD_AS_COMFYUI_DOES}", str(ROOT), cwd=tmp_path))
    assert len(loaded["nodes"]) == 8


def test_web_folder_has_its_one_entry():
    assert (ROOT / "web" / "main.js").is_file()


def test_entry_does_nothing_outside_a_package(tmp_path):
    """Pytest and type checkers meet the root __init__.py as a plain file."""
    code = "import runpy, sys; print(sorted(k for k in runpy.run_path(sys.argv[1]) if not k.startswith('__')))"
    assert run_python(code, str(ROOT / "__init__.py"), cwd=tmp_path).strip() == "[]"


def test_core_loads_without_host_and_nodes(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import vae_core; "
        "print([m for m in ('comfy', 'folder_paths', 'nodes', 'diffusers') if m in sys.modules])"
    )
    assert run_python(code, str(ROOT), cwd=tmp_path).strip() == "[]"


def test_requirements_are_the_project_s_without_torch():
    """The manager installs requirements.txt, pip reads pyproject.toml: one list, written twice, kept equal here."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or later")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == [need for need in project["dependencies"] if not need.startswith("torch")]
