"""The held-out photographs, never seen when the embedded VAE was trained. They lie in scikit-image's package: no download."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

HELD_OUT = ("astronaut", "chelsea", "coffee", "rocket")
EDGE_PX = 256


def photograph(name: str) -> Tensor:
    """One of HELD_OUT as `1 3 256 256` in [-1, 1]: its short side reduced by Lanczos' filter, the middle square cut out."""
    picture = Image.fromarray(getattr(data, name)())
    scale = EDGE_PX / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    left, top = (picture.width - EDGE_PX) // 2, (picture.height - EDGE_PX) // 2
    square = np.array(picture.crop((left, top, left + EDGE_PX, top + EDGE_PX)))
    return torch.from_numpy(square).permute(2, 0, 1)[None] / 127.5 - 1
