"""The streamed run of a network: Fields that live where the plan put them, passes that run tile by tile."""

from .moments import Moments
from .run import OnProgress, Progress, Streamed, StreamField

__all__ = ["Moments", "OnProgress", "Progress", "StreamField", "Streamed"]
