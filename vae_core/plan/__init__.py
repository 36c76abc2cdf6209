"""Planning: work out what each way of running a traced network needs and costs, and choose the cheapest that fits."""

from .footprint import whole_bytes
from .plan import COSTS, Budget, Costs, Plan, Rung, readable, tiles_text
from .planner import Case, Planner, plan_blend
from .tilings import Tilings

__all__ = [
    "COSTS",
    "Budget",
    "Case",
    "Costs",
    "Plan",
    "Planner",
    "Rung",
    "Tilings",
    "plan_blend",
    "readable",
    "tiles_text",
    "whole_bytes",
]
