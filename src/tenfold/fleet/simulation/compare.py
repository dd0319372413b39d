"""Compares policies on one fleet file, with the same seeds for each."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tenfold.fleet.setup import Setup
from tenfold.fleet.simulation.outcome import Outcome
from tenfold.fleet.simulation.results import figures, over_seeds
from tenfold.fleet.simulation.simulator import Simulation
from tenfold.spec.plugins import load


@dataclass
class Comparison:
    """By policy: the figures of each seed (`runs`), and the outcome of the first seed (`first`)."""

    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    first: dict[str, Outcome] = field(default_factory=dict)

    def means(self) -> dict[str, dict[str, Any]]:
        return {name: over_seeds(runs) for name, runs in self.runs.items()}


def compare(setup: Setup, policies: Sequence[str], seeds: int, say: Callable[[str], None] = lambda text: None) -> Comparison:
    """Simulate each policy with each seed; `say` gets a line for each run. Raises TenfoldError for an unknown policy."""
    chosen = {name: load("policies", name) for name in policies}
    table, found = setup.file.simulation, Comparison()
    for name, policy in chosen.items():
        for seed in range(seeds):
            out = Simulation(setup, policy(), seed).run()
            found.runs.setdefault(name, []).append(figures(out, table.days + table.drain_days))
            found.first.setdefault(name, out)
            one = found.runs[name][-1]
            say(f"{name}, seed {seed}: {out.events:,} events, queueing {one['queueing_s']:.0f} s, missed {one['missed']:.3%}")
    return found


def with_own(setup: Setup, share: float) -> Setup:
    """The same fleet, in which every service owns `share` of the nodes that its busiest bin needs: another fixed split.

    The jobs stay those of the original split.
    """
    services = {}
    for name, known in setup.services.items():
        own = max(known.table.least, round(share * float(known.rates.max()) / known.table.requests_per_s))
        services[name] = dataclasses.replace(known, table=msgspec.structs.replace(known.table, own=own))
    return dataclasses.replace(setup, services=services, work_of=setup.work_of or setup)


def best_static(setup: Setup, seeds: int, missed: float, shares: Sequence[float]) -> tuple[float, list[dict[str, float]]]:
    """The best fixed split in hindsight, and its figures: of `shares` that miss at most the share `missed` of requests, the one
    with the shortest completion time; where none does, the largest share."""
    tried = {share: compare(with_own(setup, share), ["static"], seeds).runs["static"] for share in shares}

    def mean(share: float, key: str) -> float:
        return sum(run[key] for run in tried[share]) / seeds

    kept = [share for share in shares if mean(share, "missed") <= missed] or [max(shares)]
    best = min(kept, key=lambda share: mean(share, "completion_s"))
    return best, tried[best]
