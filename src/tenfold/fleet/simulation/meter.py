"""Meters of a simulated pool: node-seconds, energy and missed requests, added up at every change."""

from dataclasses import dataclass

from tenfold.fleet.pools import Pool, Service
from tenfold.fleet.setup import HOUR_S, PoolFacts, SiteFacts


@dataclass(slots=True)
class Serving:
    """A service in the simulation: its nodes that answer (`ready`) and that start, cancelled starts, and the requests that
    arrived and that were missed."""

    service: Service
    ready: int = 0
    starting: int = 0
    called_off: int = 0
    asked: float = 0.0
    missed: float = 0.0


@dataclass(slots=True)
class Meter:
    """Node-seconds of a pool by use, and the energy, money, carbon and water that follow from them."""

    facts: PoolFacts
    site: SiteFacts
    pool: Pool
    serving: list[Serving]
    last: float = 0.0
    down: int = 0
    training_s: float = 0.0
    answering_s: float = 0.0
    held_s: float = 0.0
    up_s: float = 0.0
    all_s: float = 0.0
    kwh: float = 0.0
    usd: float = 0.0
    kgco2: float = 0.0
    litres: float = 0.0
    over_cap_s: float = 0.0
    _before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def advance(self, now: float) -> None:
        """Add the use since the last change."""
        seconds = now - self.last
        if seconds <= 0:
            return
        self.last, pool = now, self.pool
        self.training_s += seconds * (pool.training + pool.leaving)
        self.up_s += seconds * pool.nodes
        self.all_s += seconds * (pool.nodes + self.down)
        for serving in self.serving:
            service = serving.service
            can, rate = serving.ready * service.per_node, service.rate
            serving.asked += rate * seconds
            if rate > can:
                serving.missed += (rate - can) * seconds
            self.held_s += seconds * service.nodes
            self.answering_s += seconds * min(rate, can) / service.per_node

    def watts(self) -> float:
        """The present power of the pool; nodes of services count at full power."""
        facts, pool = self.facts, self.pool
        return (pool.nodes + self.down) * facts.idle_w + (pool.training + pool.serving + pool.leaving) * (
            facts.busy_w - facts.idle_w
        )

    def settle(self, now: float) -> None:
        """Account for the energy used since the last call, at the price of the hour of `now`. Call `advance` before."""
        used = (self.training_s, self.answering_s, self.all_s)
        training, answering, whole = (a - b for a, b in zip(used, self._before, strict=True))
        self._before = used
        facts, hour = self.facts, int(now / HOUR_S)
        joules = whole * facts.idle_w + (training + answering) * (facts.busy_w - facts.idle_w)
        kwh = joules / 3.6e6
        self.kwh += kwh
        self.usd += kwh * self.site.usd_per_kwh[hour % len(self.site.usd_per_kwh)]
        self.kgco2 += kwh * self.site.kgco2_per_kwh[hour % len(self.site.kgco2_per_kwh)]
        self.litres += kwh * self.site.litres_per_kwh
