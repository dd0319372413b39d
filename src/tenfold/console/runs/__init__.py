"""Reads the directory of a run: its record, where its time went, its faults, and whether it is training."""
