"""Brings every room's commands onto the command line."""

