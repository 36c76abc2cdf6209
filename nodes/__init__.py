"""The nodes that the pack registers with ComfyUI: id to class, id to the name shown. None as yet.

Ids are written into users' workflows: each begins with `ExactVAE` and never changes.
"""

from __future__ import annotations

NODE_CLASS_MAPPINGS: dict[str, type] = {}

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
