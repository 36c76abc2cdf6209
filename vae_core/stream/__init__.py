"""Running a network as planned: whole, streamed over tiles with Fields that live where the plan put them, or depth first."""

from .homes import Homes, scratch_folder
from .journal import Journal
from .moments import Moments
from .progress import Finished, OnProgress, Progress, along, share
from .run import NonFinite, run_streamed
from .whole import run_whole

__all__ = [
    "Finished",
    "Homes",
    "Journal",
    "Moments",
    "NonFinite",
    "OnProgress",
    "Progress",
    "along",
    "run_streamed",
    "run_whole",
    "scratch_folder",
    "share",
]
