"""The figures of a simulation, their means with intervals over seeds, and ratios between policies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from tenfold.fleet.setup import DAY_S, HOUR_S
from tenfold.fleet.simulation.outcome import Outcome

WORDS = {
    "queueing_s": "queueing, mean s", "queueing_p95_s": "queueing, p95 s", "completion_s": "completion, mean s",
    "completion_p95_s": "completion, p95 s", "jobs": "jobs that came", "unfinished": "jobs unfinished",
    "missed": "requests beyond the bounds, share",
    "usage": "useful work, share of node-hours", "training_share": "training, share of node-hours",
    "serving_share": "held by services, share", "idle_share": "idle, share", "lost_policy_h": "lost to switches, node-hours",
    "lost_failures_h": "lost to failures, node-hours", "stops": "jobs stopped", "moves": "moves", "energy_mwh": "energy, MWh",
    "energy_usd": "energy, USD", "carbon_t": "carbon, t CO2", "water_m3": "water, m3", "peak_mw": "highest power, MW",
    "over_cap_h": "over the cap, pool-hours", "events": "events",
}  # fmt: skip


def figures(out: Outcome, days: float) -> dict[str, float]:
    """The figures of one simulation of so many days, with those in which jobs only finish. A job that never started waited until
    the end; an unfinished job has no completion time. Jobs, stops and moves are counted to the end; node-hours, their shares,
    energy, power and requests only in the days in which jobs arrive."""
    meters, end_s = list(out.meters.values()), days * DAY_S
    queued = np.array([(begun if begun is not None else end_s) - came for came, begun, _, _ in out.jobs] or [0.0])
    completed = np.array([ended - came for came, _, ended, _ in out.jobs if ended is not None] or [0.0])
    asked = sum(s.asked for m in meters for s in m.serving)
    up, held = sum(m.up_s for m in meters), sum(m.held_s for m in meters)
    training, answering = sum(m.training_s for m in meters), sum(m.answering_s for m in meters)
    lost = sum(out.lost_s.values())
    return {
        "queueing_s": float(queued.mean()), "queueing_p95_s": float(np.quantile(queued, 0.95)),
        "completion_s": float(completed.mean()), "completion_p95_s": float(np.quantile(completed, 0.95)),
        "jobs": len(out.jobs), "unfinished": sum(ended is None for _, _, ended, _ in out.jobs),
        "missed": sum(s.missed for m in meters for s in m.serving) / asked if asked else 0.0,
        "usage": (training - lost + answering) / up, "training_share": training / up, "serving_share": held / up,
        "idle_share": 1 - (training + held) / up, "lost_policy_h": out.lost_s["policy"] / HOUR_S,
        "lost_failures_h": out.lost_s["failures"] / HOUR_S, "stops": out.stops, "moves": out.moves,
        "energy_mwh": sum(m.kwh for m in meters) / 1e3, "energy_usd": float(sum(m.usd for m in meters)),
        "carbon_t": float(sum(m.kgco2 for m in meters)) / 1e3, "water_m3": sum(m.litres for m in meters) / 1e3,
        "peak_mw": out.peak_w / 1e6, "over_cap_h": sum(m.over_cap_s for m in meters) / HOUR_S,
        "events": out.events,
    }  # fmt: skip


def over_seeds(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Each figure's mean over the runs and its 95 % interval (Student's t); with a single run the interval is the mean."""
    found: dict[str, Any] = {}
    for key in runs[0]:
        values = np.array([run[key] for run in runs], float)
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
        found[key] = {"mean": float(values.mean()), "low": float(values.mean()) - half, "high": float(values.mean()) + half}
    return found


def ratios(ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Geometric means over seeds of theirs / ours, and of ours / theirs for usage: above 1, ours is better."""

    def mean(key: str, turned: bool = False) -> float:
        pairs = [(a[key], b[key]) if turned else (b[key], a[key]) for a, b in zip(ours, theirs, strict=True)]
        return float(np.exp(np.mean([np.log(max(x, 1e-9) / max(y, 1e-9)) for x, y in pairs])))

    return {"queueing": mean("queueing_s"), "completion": mean("completion_s"), "usage": mean("usage", True),
            "lost": mean("lost_policy_h")}  # fmt: skip
