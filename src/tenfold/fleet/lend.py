"""The policy `lend`: slots go to chat while its demand is above what its own can answer, each with a date of return."""

import math
from dataclasses import dataclass

from tenfold.fleet.fleet import Fleet, Lend, Move, Return


@dataclass(frozen=True)
class LendByThreshold:
    """Lends above one share of what the chat slots can answer, and returns below a lower one, so that nothing flaps.

    Both are of the highest demand that comes or is expected within a switch. A loan ends when the demand is expected to be back
    under the lower share; it and the rest after it last as long as a switch at least, and a loan `longest_s` at most.
    """

    role: str = "chat"
    lend_above: float = 0.9
    return_below: float = 0.75
    longest_s: float = 3600.0

    def decide(self, now: float, fleet: Fleet) -> list[Move]:
        """At most one move, and none while a slot turns."""
        demand, switch_s = fleet.demand, fleet.limits.switch_s
        if any(slot.turning for slot in fleet.slots):
            return []
        held = [slot for slot in fleet.slots if slot.role == self.role]
        rested = [slot for slot in fleet.slots if now - slot.since >= switch_s or slot.idle]
        rate = demand.within(switch_s)
        free = sorted((slot for slot in rested if slot.role != self.role), key=lambda slot: not slot.idle)
        loans = [slot for slot in rested if slot.until is not None and slot.role == self.role]
        if free and rate > self.lend_above * demand.per_slot * len(held):
            why = f"{rate:.1f} requests/s are more than {len(held)} x {demand.per_slot:.1f}"
            return [Lend(free[0].name, self.role, self._until(now, fleet, len(held)), why)]
        if loans and rate < self.return_below * demand.per_slot * (len(held) - 1):
            return [Return(loans[-1].name, f"{rate:.1f} requests/s need it no more")]
        return []

    def _until(self, now: float, fleet: Fleet, held: int) -> float:
        """When the demand is expected to need the loan no more, with the time to come and to leave."""
        demand, limits = fleet.demand, fleet.limits
        over = [i for i, rate in enumerate(demand.expected) if rate > self.return_below * demand.per_slot * held]
        needed = max(2 * limits.switch_s, demand.bin_s * (max(over, default=0) + 1) - demand.into_s)
        return now + min(self.longest_s, math.ceil(needed + 2 * limits.leave_s + 5 * limits.tick_s))
