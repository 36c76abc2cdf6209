"""The browser modules of web/lib: their tests are JavaScript, run by node where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WEB = HERE.parents[1] / "web"
TESTS = sorted(HERE.glob("*.test.mjs"))
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_modules():
    assert NODE is not None and TESTS
    done = subprocess.run([NODE, "--test", *map(str, TESTS)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_main_has_side_effects_and_nothing_is_fetched_from_elsewhere():
    """ComfyUI imports every .js file below web/."""
    for file in WEB.rglob("*.js"):
        source = file.read_text(encoding="utf-8")
        assert "http://" not in source.replace("http://www.w3.org/2000/svg", "") and "https://" not in source, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source), file.name
        if file.name != "main.js":
            assert "scripts/" not in source, file.name
            assert not re.search(r"^[a-zA-Z.]+\(", source, re.MULTILINE), f"{file.name} does something when imported"
