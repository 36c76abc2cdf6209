"""What happened during a run: mishaps and how they were met, and where the time went."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Journal:
    """Filled by a run, read by its report. `sample` is called now and then, to look at the memory in use."""

    sample: Callable[[], None] = lambda: None
    events: list[str] = field(default_factory=list)
    """Sentences, in order."""
    retries: int = 0
    """Attempts that were repeated, for want of memory or for non-finite values."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By kind of pass. On CUDA a pass without statistics may end in the time of the next one."""

    def again(self, sentence: str) -> None:
        """Something is attempted once more."""
        self.retries += 1
        self.events.append(sentence)

    def clock(self, kind: str, since: float) -> float:
        """Book the time since `since` under a kind of pass, and return the time now."""
        now = time.perf_counter()
        self.seconds[kind] += now - since
        return now
