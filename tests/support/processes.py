"""Processes that a test starts."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def interruptible(command: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """A process that Ctrl-C reaches, also where the tests run in the background of a shell, whose children ignore it."""
    return subprocess.Popen(
        [*command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
