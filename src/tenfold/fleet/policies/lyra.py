"""The policy `lyra`: idle servers are lent to training, and jobs are elastic, as in Lyra/Aryl (arXiv 2202.07896)."""

import math
from dataclasses import dataclass

import numpy as np

from tenfold.fleet.policies.queueing import grown, now_needed, reclaim, shrink, start
from tenfold.fleet.pools import Job, Pool, Size


@dataclass(frozen=True)
class Lyra:
    """Services release nodes that the next minutes will not need, and reclaim them when their rate rises: first the nodes that
    elastic jobs have beyond their least, then whole jobs, in the order of the cost of preempting them (greedy).

    Jobs start shortest first. Free nodes are divided among elastic jobs as a multiple-choice knapsack: one size for each job, with
    the largest sum of reductions of completion time. A preempted job loses its work since its last checkpoint. `load` is the share
    of a node's throughput that a service uses.
    """

    load: float = 0.9
    units: int = 200  # into which the knapsack divides the free nodes, at most

    def decide(self, now: float, pool: Pool) -> list[Size]:
        sizes = now_needed(pool, self.load, foreseen=True)
        more, running = grown(pool, sizes), pool.running.values()
        if more > pool.room:
            short = more - pool.room - pool.leaving
            return reclaim(running, short, lambda job: job.unsaved_s(now) * job.least, False, "servers are reclaimed") + sizes
        room = pool.room - more
        if not pool.waiting:
            return sizes + (self._extra(now, list(running), room) if pool.periodic and room > 0 else [])
        waiting = sorted(pool.waiting, key=lambda job: job.left_s(now))
        started = start(waiting, room)
        if not started and not pool.leaving and waiting[0].least <= room + sum(job.nodes - job.least for job in running):
            return sizes + shrink(running, waiting[0].least - room, "a job waits")[0]
        return sizes + started

    def _extra(self, now: float, running: list[Job], room: int) -> list[Size]:
        """Larger sizes of elastic jobs, by the knapsack over `room` free nodes."""
        jobs = [job for job in running if job.nodes < job.most and now >= job.begins]
        unit = max(1, math.ceil(room / self.units))
        bins = room // unit
        best, chosen = np.zeros(bins + 1), []
        for job in jobs:
            choices = sorted({0, *(min(n * unit, job.most - job.nodes) for n in _steps((job.most - job.nodes) // unit))})
            left = job.left_s(now)
            gains = [left / job.speed(job.nodes) - left / job.speed(job.nodes + n) - (job.restart_s if n else 0) for n in choices]
            table = np.full((len(choices), bins + 1), -np.inf)
            for row, (n, gain) in enumerate(zip(choices, gains, strict=True)):
                used = math.ceil(n / unit)
                if used <= bins:
                    table[row, used:] = best[: bins + 1 - used] + gain
            pick = table.argmax(0)
            best = table[pick, np.arange(bins + 1)]
            chosen.append((job, choices, pick))
        sizes, at = [], bins
        for job, choices, pick in reversed(chosen):
            n = choices[pick[at]]
            at -= math.ceil(n / unit)
            if n:
                sizes.append(Size(job.name, job.nodes + n, None, "chosen by the knapsack"))
        return sizes


def _steps(most: int) -> list[int]:
    """At most a dozen numbers from 1 to `most`, evenly spaced."""
    return sorted({round(x) for x in np.linspace(1, most, min(most, 12))}) if most > 0 else []
