"""Tenfold takes a team from the model it has to the next generation, at ten times the compute."""

__version__ = "0.1.0"
