"""Brings every room's commands onto the command line."""

from tenfold.cli import climb, data, law, model, plan, train  # noqa: F401
