"""A simulated fleet of slots: switches take simulated time only. The ledger is the same as that of a live fleet."""

from collections.abc import Iterator, Mapping

from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.on_slots import Word
from tenfold.fleet.operate.wishes import Wishes
from tenfold.fleet.pools import Policy
from tenfold.fleet.slots.slots import DRAINED, Demands, Fleet, Limits, Move, Slot, holder_after
from tenfold.fleet.slots.tick import tick


class SimulatedWorld:
    """A simulated `World` with the `demands` of its services, by role. `delays` yields for each move the seconds in which a role
    leaves and in which the next one starts; both are cut off at the limits, as in a live world."""

    def __init__(self, ledger: Ledger, demands: Demands, limits: Limits, delays: Iterator[tuple[float, float]]):
        self._ledger, self._demands, self._limits, self._delays = ledger, demands, limits, delays
        self.wishes, self.slot_w = Wishes(ledger), 0.0
        self._now, self._ready, self._leases = 0.0, dict.fromkeys(ledger.owners, 0.0), ledger.leases(current=True)

    def observe(self, now: float) -> Fleet:
        self._now = now
        owners = self._ledger.owners
        slots = [
            Slot(x.slot, owners[x.slot], x.role, x.since, x.until, now < self._ready[x.slot], watts=self.slot_w)
            for x in self._leases
        ]
        demands = {name: demand(now) for name, demand in self._demands.items()}
        return Fleet(tuple(slots), demands, self._limits, wishes=self.wishes.open(now))

    def answer(self, said: Mapping[int, Word], now: float) -> None:
        self.wishes.answer(said, now)

    def apply(self, move: Move) -> None:
        leave_s, start_s = next(self._delays)
        limits = self._limits
        before = next(lease for lease in self._leases if lease.slot == move.slot)
        gone = self._now + (0.0 if before.role == DRAINED else min(leave_s, limits.leave_s))
        role, until = holder_after(move, self._ledger.owners[move.slot])
        latest = gone + limits.start_s if until is None else until - limits.leaving_s
        ready = gone if role == DRAINED else max(gone, min(gone + start_s, latest))
        self._ledger.note(before.id, asked=self._now)
        self._ledger.turn(move.slot, role, until, move.why, gone)
        self._leases, self._ready[move.slot] = self._ledger.leases(current=True), ready
        self._ledger.note(next(lease.id for lease in self._leases if lease.slot == move.slot), ready=ready)


def simulate(world: SimulatedWorld, policy: Policy, seconds: float, tick_s: float) -> list[tuple[float, Move]]:
    """Run the control loop every `tick_s` simulated seconds; returns the moves with their times."""
    times = [i * tick_s for i in range(int(seconds / tick_s) + 1)]
    return [(now, move) for now in times for move in tick(now, world, policy)]
