"""Brings every room's commands onto the command line."""

from tenfold.cli import climb, data, launch, law, model, plan, serve, train  # noqa: F401
