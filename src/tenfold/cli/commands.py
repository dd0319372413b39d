"""Brings every room's commands onto the command line."""

from tenfold.cli import law  # noqa: F401
