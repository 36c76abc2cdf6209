"""Pictures, clips and latents, in and out of files."""

from .images import Picture, check_image, numbered, read_image, write_image
from .latents import Latents, read_latents, write_latents
from .video_frames import frame_rate
from .video_sinks import Sink, Target, check_sink, open_sink
from .video_sources import Source, open_source

__all__ = [
    "Latents",
    "Picture",
    "Sink",
    "Source",
    "Target",
    "check_image",
    "check_sink",
    "frame_rate",
    "numbered",
    "open_sink",
    "open_source",
    "read_image",
    "read_latents",
    "write_image",
    "write_latents",
]
