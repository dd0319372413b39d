"""Brings every room's commands onto the command line."""

from tenfold.cli import climb, data, law, train  # noqa: F401
