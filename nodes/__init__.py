"""The nodes that the pack registers with ComfyUI: id to class, id to the name shown.

Ids are written into users' workflows: each begins with `ExactVAE` and never changes.
"""

from __future__ import annotations

from .images import ExactVAEDecode, ExactVAEDecodeTiled, ExactVAEEncode, ExactVAEEncodeTiled
from .loader import ExactVAELoader
from .planning import ExactVAEPlan
from .videos import ExactVAEVideoDecode, ExactVAEVideoEncode

NODE_CLASS_MAPPINGS: dict[str, type] = {
    "ExactVAELoader": ExactVAELoader,
    "ExactVAEDecode": ExactVAEDecode,
    "ExactVAEEncode": ExactVAEEncode,
    "ExactVAEDecodeTiled": ExactVAEDecodeTiled,
    "ExactVAEEncodeTiled": ExactVAEEncodeTiled,
    "ExactVAEPlan": ExactVAEPlan,
    "ExactVAEVideoDecode": ExactVAEVideoDecode,
    "ExactVAEVideoEncode": ExactVAEVideoEncode,
}

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {
    "ExactVAELoader": "Exact VAE Loader",
    "ExactVAEDecode": "VAE Decode (Exact)",
    "ExactVAEEncode": "VAE Encode (Exact)",
    "ExactVAEDecodeTiled": "VAE Decode Tiled (Exact)",
    "ExactVAEEncodeTiled": "VAE Encode Tiled (Exact)",
    "ExactVAEPlan": "VAE Plan",
    "ExactVAEVideoDecode": "Video Decode (Exact)",
    "ExactVAEVideoEncode": "Video Encode (Exact)",
}
