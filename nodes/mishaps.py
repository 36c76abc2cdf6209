"""Nothing is lost: the latents of a decode that fails are saved, and the error says where."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from . import host

log = logging.getLogger(__name__)


@contextmanager
def latent_kept(samples: Tensor, prompt: Any = None, workflow: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Saves the latents if the block fails, and adds to the error where they are. Not if the user has cancelled."""
    try:
        yield
    except Exception as error:
        if not host.PRESENT or host.is_interrupt(error):
            raise
        try:
            file = host.save_latent(samples, prompt, workflow)
        except Exception as problem:
            log.warning("the latents could not be saved: %s", problem)
            raise error from None
        # The same error, so that ComfyUI still sees what kind it is; its text is all that the user sees.
        advice = "to try again, put that file into ComfyUI's input folder and load it with LoadLatent"
        error.args = (f"{error}\nThe latents are saved as {file}; {advice}.",)
        raise
