"""Imports go one way: errors, spec, geometry, schedule → nets, media → checkpoint | stream | plan → execution → clip_run →
clips, resume → vae → loading → cli → nodes.

Read from the source with `ast`, so that an import inside a function counts like one at the top of a file.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vae_core", "nodes")
STAGES = ("checkpoint", "stream", "plan", "blend", "device")
RANKS = (
    ("errors", "spec", "geometry", "schedule", "whole_files"),
    ("nets", "media"),
    STAGES,
    ("models", "report", "latent_space"),
    ("execution",),
    ("clip_run",),
    ("clips", "resume"),
    ("vae",),
    ("loading",),
    ("vae_core",),
    ("cli",),
    ("__main__",),
    ("nodes",),
)
"""Lowest first. A part is a module or folder of vae_core, `vae_core` its own __init__, `nodes` the folder beside it."""

HOST = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "server",
)
"""What ComfyUI's modules are called."""

FOREIGN = (*HOST, "nodes", "diffusers")
"""What vae_core runs without: the host, our own nodes, and the library that tests compare with."""


def module_name(path: Path) -> str:
    """`vae_core/nets/kl.py` → `vae_core.nets.kl`; a package's `__init__.py` → the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    return {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def base_package(name: str, level: int) -> str:
    """The package that `level` dots mean inside the module `name`; the repository's root is the empty string."""
    package = name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]
    for _ in range(level - 1):
        package = package.rpartition(".")[0]
    return package


def imported(name: str) -> Iterator[tuple[str, bool]]:
    """Every module that `name` imports, wherever in the file, as (absolute dotted name, was written relatively)."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = base_package(name, node.level) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                target = f"{stem}.{alias.name}" if stem else alias.name
                yield (target if target in SOURCES else stem or target), bool(node.level)


def part(name: str) -> str:
    """The part of RANKS that a module belongs to."""
    top, *rest = name.split(".")
    return rest[0] if top == "vae_core" and rest else top


def rank(name: str) -> int:
    return next((i for i, parts in enumerate(RANKS) if part(name) in parts), -1)


def edges() -> list[tuple[str, str]]:
    return [(name, target) for name in SOURCES for target, _ in imported(name) if target in SOURCES]


def test_every_module_has_a_rank():
    assert [name for name in SOURCES if rank(name) < 0] == []


def allowed(importer: str, target: str) -> bool:
    if part(importer) == part(target):
        return True
    if part(target) == "device" and part(importer) in ("stream", "plan"):
        return True
    lowest = rank(importer) == rank(target) == 0
    return lowest or rank(target) < rank(importer)


def test_imports_go_down():
    assert [f"{a} imports {b}" for a, b in edges() if not allowed(a, b)] == []


def test_checkpoint_stream_and_plan_do_not_know_each_other():
    apart = {"checkpoint", "stream", "plan"}
    met = [f"{a} imports {b}" for a, b in edges() if part(a) != part(b) and {part(a), part(b)} <= apart]
    assert met == []


def test_no_cycles():
    graph: dict[str, set[str]] = {name: set() for name in SOURCES}
    for name, target in edges():
        if target != name:
            graph[name].add(target)
    TopologicalSorter(graph).prepare()  # raises CycleError and names the cycle


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("vae_core")])
def test_core_stands_alone(name):
    outside = {target.split(".")[0] for target, relative in imported(name) if not relative}
    assert outside.isdisjoint(FOREIGN)


def test_loading_needs_no_more_of_torch_than_torch_itself():
    """The compiler alone takes as long to import as the rest of torch: a decorator of `torch.compiler` would bring it."""
    code = """
import sys, torch
there = set(sys.modules)
import vae_core; vae_core.load; vae_core.AutoencoderKL
print(*{"torch._dynamo", "torch._inductor", "sympy", "PIL", "av", "msgpack", "diffusers"} & set(sys.modules) - there)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


def test_own_modules_are_imported_relatively():
    """ComfyUI loads the pack under a name of its own; an absolute import would load vae_core a second time."""
    absolute = [f"{a} imports {b}" for a in SOURCES for b, relative in imported(a) if not relative and b in SOURCES]
    assert absolute == []


def test_only_host_py_sees_comfyui():
    seen = {
        name for name in SOURCES for target, relative in imported(name) if not relative and target.split(".")[0] in HOST
    }
    assert seen == {"nodes.host"}


def uses_torch_cuda(name: str) -> bool:
    attribute = any(
        isinstance(node, ast.Attribute)
        and node.attr == "cuda"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        for node in ast.walk(TREES[name])
    )
    return attribute or any(target.startswith("torch.cuda") for target, _ in imported(name))


def test_only_device_py_uses_torch_cuda():
    used = {name for name in SOURCES if uses_torch_cuda(name)}
    assert all(name.startswith("vae_core.device") for name in used), used
