"""Planning: trace a network's forward, work out what each way of running it needs, choose the one that fits."""

from .planner import Budget, Plan, Rung, plan
from .trace import Trace, trace

__all__ = ["Budget", "Plan", "Rung", "Trace", "plan", "trace"]
