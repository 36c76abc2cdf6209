"""What a command tells while it runs: text on standard output, notes and a progress bar on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from .. import Report

Progress = Callable[[int, int, Any], None]

BAR = "{desc} {percentage:3.0f} % |{bar}| {elapsed} so far, {remaining} left"


class Failed(Exception):
    """A command ran and its result is not good; the message says why."""


@dataclass(frozen=True)
class Console:
    """Says nothing but errors when `quiet`; with `json`, standard output is kept for the result."""

    quiet: bool = False
    json: bool = False

    def say(self, text: str) -> None:
        if not (self.quiet or self.json):
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Something the user should know, that stops nothing."""
        if not self.quiet:
            print(f"note: {text}", file=sys.stderr)

    def tell(self, report: Report | None) -> None:
        """Notes on everything that did not go as planned."""
        for event in () if report is None else report.events:
            self.note(event)

    @contextmanager
    def progress(self, label: str, where: Callable[[], str] | None = None) -> Iterator[Progress | None]:
        """A bar with the time left; yields the callback that advances it. `where` tells what it is at, after the label."""
        if self.quiet:
            yield None
            return
        # A log file gets a line now and then instead of ten a second.
        interval = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(desc=label, bar_format=BAR, mininterval=interval, dynamic_ncols=True, smoothing=0) as bar:

            def advance(done: int, total: int, info: Any) -> None:
                bar.total = total
                tell_where()
                bar.update(done - bar.n)

            def tell_where() -> None:
                if where is not None:
                    bar.set_description(f"{label} {where()}", refresh=False)

            yield advance
            tell_where()
            bar.update((bar.total or 0) - bar.n)


def shape_text(shape: Sequence[int]) -> str:
    """(4, 64, 64) → "4×64×64"."""
    return "×".join(str(size) for size in shape)
