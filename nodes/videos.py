"""The nodes that decode latents into a video file, and encode one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..vae_core.execution import How
from .filming import FORMATS, Film, Outputs, filmed, unfilmed
from .hosted import Fit
from .images import Node
from .inputs import (
    AUDIO,
    CRF,
    FIT,
    FPS,
    HIDDEN,
    IMAGES,
    MEMORY_LIMIT,
    OUTPUTS,
    PRECISION,
    RESUME,
    SAMPLES,
    VAE_INPUT,
    VIDEO,
    limit_of,
)
from .running import Asked

FORMAT: tuple[Any, ...] = (
    [*FORMATS],
    {
        "default": "mp4 (h264)",
        "tooltip": "Of the file. h264 plays everywhere; h265 and av1 are smaller and slower to write; only vp9 keeps transparency.",
    },
)


class ExactVAEVideoDecode(Node):
    """Latents → a video file, in memory that does not grow with the clip."""

    DESCRIPTION = (
        "Decodes the latents of a clip straight into a video file, a few frames at a time, so that memory does not grow with the "
        "length of the clip. The frames are those of the plain decode: nothing is cut in time or space that is not put together "
        "exactly. Save Video copies the file without encoding it anew."
    )
    SEARCH_ALIASES = ["video decode", "decode video latent", "latent to video", "wan vae decode", "stream video", "mp4"]
    RETURN_TYPES = ("VIDEO", "IMAGE")
    RETURN_NAMES = ("video", "images")
    OUTPUT_TOOLTIPS = (
        "The video, a file in ComfyUI's temporary folder.",
        "The frames as one batch, where they are asked for.",
    )
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"samples": SAMPLES, "vae": VAE_INPUT, "fps": FPS, "format": FORMAT},
            "optional": {
                "crf": CRF,
                "outputs": OUTPUTS,
                "memory_limit": MEMORY_LIMIT,
                "precision": PRECISION,
                "resume": RESUME,
                "audio": AUDIO,
            },
            "hidden": HIDDEN,
        }

    def decode(
        self,
        samples: Mapping[str, Any],
        vae: Any,
        fps: float,
        format: str,
        crf: int = -1,
        outputs: Outputs = "video",
        memory_limit: str = "auto",
        precision: str = "auto",
        resume: bool = True,
        audio: Mapping[str, Any] | None = None,
        unique_id: str | None = None,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        how = How(memory_limit=limit_of(memory_limit))
        asked = Asked(how, precision, node_id=unique_id, prompt=prompt, workflow=extra_pnginfo)
        film = Film(outputs, fps, format, None if crf < 0 else crf, audio, resume)
        return filmed(self.adopted, vae, samples, asked, film)


class ExactVAEVideoEncode(Node):
    """A video, or frames → latents, in memory that does not grow with the clip."""

    DESCRIPTION = (
        "Encodes a video, or a batch of images as the frames of a clip, into latents. A video file is read a few frames at a time, "
        "so that memory does not grow with the length of the clip."
    )
    SEARCH_ALIASES = ["video encode", "encode video", "video to latent", "wan vae encode", "stream video"]
    RETURN_TYPES = ("LATENT", "FLOAT", "AUDIO")
    RETURN_NAMES = ("latent", "fps", "audio")
    OUTPUT_TOOLTIPS = (
        "The latents: the posterior's mean, as ComfyUI's own VAE Encode gives.",
        "Frames a second of the video; images have none.",
        "The sound of the video, for Video Decode (Exact); nothing where it has none.",
    )
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"vae": VAE_INPUT},
            "optional": {
                "fit": FIT,
                "memory_limit": MEMORY_LIMIT,
                "precision": PRECISION,
                "images": IMAGES,
                "video": VIDEO,
            },
            "hidden": HIDDEN,
        }

    def encode(
        self,
        vae: Any,
        fit: Fit = "crop",
        memory_limit: str = "auto",
        precision: str = "auto",
        images: Tensor | None = None,
        video: Any = None,
        unique_id: str | None = None,
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        asked = Asked(How(memory_limit=limit_of(memory_limit)), precision, fit, unique_id)
        return unfilmed(self.adopted, vae, images, video, asked)
