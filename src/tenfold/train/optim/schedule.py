"""Learning-rate schedules, as the share of the peak at each step."""

import math


def schedule(kind: str, step: int, steps: int, warmup: float, decay: float) -> float:
    """The share of the peak learning rate at `step` (from 0) of `steps`; `warmup` and `decay` are shares of the run.

    `wsd`: linear warm-up, constant, linear decay to zero (MiniCPM, arXiv 2404.06395). `cosine`: linear warm-up, then a
    half cosine to a tenth.
    """
    warmup_steps = max(1.0, warmup * steps)
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "cosine":
        share = (step - warmup_steps + 1) / max(1.0, steps - warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, share)))
    return min(1.0, (steps - step) / max(1.0, decay * steps))
