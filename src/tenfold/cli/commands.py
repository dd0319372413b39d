"""Brings every room's commands onto the command line."""

from tenfold.cli import climb, data, law, plan, serve, train  # noqa: F401
