"""Planning: trace a network's forward, work out what each way of running it needs, choose the one that fits."""

from .plan import Budget, Plan, Rung
from .planner import plan, plan_blend
from .trace import Trace, trace

__all__ = ["Budget", "Plan", "Rung", "Trace", "plan", "plan_blend", "trace"]
