"""Functions that make bad files, by kind of fault, and how each file must be refused."""

from . import flax, folders, headers, not_weights, not_whole, pickles
from .registry import BAD

__all__ = ["BAD", "flax", "folders", "headers", "not_weights", "not_whole", "pickles"]
