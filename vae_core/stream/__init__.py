"""Running a network as planned: whole, or streamed over tiles with Fields that live where the plan put them."""

from .moments import Moments
from .progress import OnProgress, Progress, share
from .run import Streamed, StreamField, run_streamed
from .whole import run_whole

__all__ = ["Moments", "OnProgress", "Progress", "StreamField", "Streamed", "run_streamed", "run_whole", "share"]
