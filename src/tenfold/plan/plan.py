"""A plan: a model, its tokens, machines, and everything that follows."""

from tenfold.plan.workload import Layout, Memory, StepTime, Workload

__all__ = ["Layout", "Memory", "StepTime", "Workload"]
