"""The ComfyUI entry: names the nodes and the browser folder.

Guarded, because other tools import this file too: pytest and type checkers find it at the root of the repository and
load it outside a package, where a relative import fails. ComfyUI always loads it as one.
"""

if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"

    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
