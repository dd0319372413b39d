"""The law on published points: refits, and back-tests at ten and thirty times the compute.

    python bench/published_laws.py POINTS_DIRECTORY

The directory holds `chinchilla_epoch`, `olmo_ladder` and `porian` (see docs/law.md for what they are).
"""
