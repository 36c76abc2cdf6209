"""The inputs that several nodes share: how ComfyUI shows them, and what they mean."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..vae_core import ExactVAEError
from ..vae_core.device import parse_limit

Input = tuple[Any, ...]

DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

SAMPLES: Input = ("LATENT", {"tooltip": "The latents to decode."})
PIXELS: Input = (
    "IMAGE",
    {
        "tooltip": "The pictures to encode: a batch as so many single pictures, or with a video VAE as the frames of one clip.",
    },
)
VAE_INPUT: Input = (
    "VAE",
    {
        "tooltip": "From Exact VAE Loader or from any of ComfyUI's own loaders; the weights of those are shared, not copied."
    },
)
MASK: Input = ("MASK", {"tooltip": "Becomes the latent's noise mask: a sampler works only where it is white."})
MEMORY_LIMIT: Input = (
    "STRING",
    {
        "default": "auto",
        "tooltip": "Most device memory that the run may use, weights included: a number of GiB such as 6, or 800MiB, or 50%. "
        "auto: what is free. Less memory means smaller tiles, never another picture.",
    },
)
PRECISION: Input = (
    list(DTYPES),
    {
        "default": "auto",
        "tooltip": "Number format to compute in. auto: that of the loaded weights. Values that overflow fp16 are computed again in "
        "fp32, so that no picture comes out black.",
    },
)
FIT: Input = (
    ["crop", "pad"],
    {
        "default": "crop",
        "tooltip": "Sizes that are no multiple of 8 pixels (FLUX.2: 16), and numbers of frames that a video VAE does not take. "
        "crop: cut about the centre and at the end, as ComfyUI does. pad: nothing is cut; the decode nodes give back what it was.",
    },
)
TILE_SIZE: Input = (
    "INT",
    {
        "default": 512,
        "min": 64,
        "max": 8192,
        "step": 64,
        "tooltip": "Largest edge of a tile. exact: in cells of each layer's output, which are pixels in the last layers; on a CPU "
        "a tile may be as wide as the picture, with as many cells. blend: in pixels of the picture.",
    },
)
METHOD: Input = (
    ["exact", "blend"],
    {
        "default": "exact",
        "tooltip": "exact: tiles inside the network, the same picture as without tiles. blend: the classic overlapping tiles, "
        "cross-faded: approximate, for comparison.",
    },
)
OVERLAP: Input = (
    "INT",
    {
        "default": 64,
        "min": 0,
        "max": 4096,
        "step": 8,
        "tooltip": "Overlap of neighbouring tiles in pixels; for blend only.",
    },
)
FPS: Input = (
    "FLOAT",
    {
        "default": 16.0,
        "min": 0.01,
        "max": 1000.0,
        "step": 0.001,
        "round": 0.001,
        "tooltip": "Frames a second of the video: 16 for Wan 2.1, 8 or 16 for CogVideoX.",
    },
)
CRF: Input = (
    "INT",
    {
        "default": -1,
        "min": -1,
        "max": 63,
        "tooltip": "Constant rate factor: lower is better and larger. From 0 to 51 for h264 and h265, to 63 for vp9 and av1. -1: a "
        "good one for the codec (18 for h264).",
    },
)
OUTPUTS: Input = (
    ["video", "images", "both"],
    {
        "default": "video",
        "tooltip": "video: a file, written frame by frame, whose length costs no memory. images: all frames in memory as a batch, "
        "12 bytes for each pixel of each frame. What is not asked for is not given to other nodes.",
    },
)
AUDIO: Input = ("AUDIO", {"tooltip": "Sound beside the video, cut where the video ends."})
RESUME: Input = (
    "BOOLEAN",
    {
        "default": True,
        "tooltip": "Of clips of more than 64 latents, finished parts are kept in output/exact_vae_unfinished until the video is "
        "there: a run that was interrupted goes on when it is queued again.",
    },
)
IMAGES: Input = ("IMAGE", {"tooltip": "The frames of one clip. Either these or a video."})
VIDEO: Input = ("VIDEO", {"tooltip": "A video; a file is read frame by frame, and never held in memory as a whole."})
HIDDEN = {"unique_id": "UNIQUE_ID", "prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def limit_of(text: Any) -> str | None:
    """A memory limit as vae_core takes it: plain numbers are GiB, "auto" is none."""
    text = str(text).strip()
    if text.lower() in ("", "auto"):
        return None
    return f"{text}GiB" if re.fullmatch(r"\d+(\.\d+)?", text) else text


def checked_limit(text: Any) -> bool | str:
    """For VALIDATE_INPUTS: True, or what is wrong in a sentence. None stands for a value that another node gives."""
    if text is None:
        return True
    try:
        limit = limit_of(text)
        if limit is not None:
            parse_limit(limit, 1 << 40)
    except ExactVAEError:
        return f"{text!r} is not understood; write auto, a number of GiB such as 6, a size such as 800MiB, or 50%"
    return True
