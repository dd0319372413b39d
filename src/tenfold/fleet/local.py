"""The fleet of this machine: slots are processes, and turns run beside the controller, one at a time in each slot."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tenfold.fleet.dispatcher import Dispatcher
from tenfold.fleet.fleet import Demand, Fleet, Lend, Limits, Move, Slot
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.roles import Role
from tenfold.launch.job import Handle, Launcher
from tenfold.serve.start import free_url
from tenfold.spec.errors import TenfoldError


class LocalWorld:
    """Opened on a ledger, it goes on with the leases that stand there. Servers take requests by way of `dispatcher`. A slot is part
    of the fleet once it was opened."""

    def __init__(self, folder: Path, ledger: Ledger, roles: dict[str, Role], launcher: Launcher, dispatcher: Dispatcher):
        self.demand: Callable[[float], Demand] = lambda now: Demand()
        self.limits = Limits()
        self._folder, self._ledger, self._roles, self._launcher, self._dispatcher = folder, ledger, roles, launcher, dispatcher
        self._running: dict[str, tuple[Handle, str]] = {}
        self._redone_s: dict[str, float] = {}  # before the loan
        for lease in ledger.leases(current=True):
            if lease.until is not None and lease.until <= time.time():  # its process ended itself then
                ledger.turn(lease.slot, ledger.owners[lease.slot], None, "its deadline, while there was no controller", lease.until)
        self._pool = ThreadPoolExecutor(len(ledger.owners))
        self._turns: dict[str, Future[None]] = {}

    def open(self, slot: str) -> None:
        """Start the role of the slot's lease."""
        self._turns[slot] = self._pool.submit(self._start, slot)

    def observe(self, now: float) -> Fleet:
        """Raises what a turn raised, and TenfoldError for a role that ended before its time."""
        slots = []
        for lease in (lease for lease in self._ledger.leases(current=True) if lease.slot in self._turns):
            turning, role = not self._turns[lease.slot].done(), self._roles[lease.role]
            if not turning:
                self._turns[lease.slot].result()
                running = self._running.get(lease.slot)
                if running and running[0].status() != "running" and not role.finished:
                    raise TenfoldError(f"{lease.role} in {lease.slot} ended before its time: started again, the fleet goes on.")
            owner, idle = self._ledger.owners[lease.slot], lease.until is None and role.finished
            slots.append(Slot(lease.slot, owner, lease.role, lease.since, lease.until, turning, idle))
        return Fleet(tuple(slots), self.demand(now), self.limits)

    def apply(self, move: Move) -> None:
        self._turns[move.slot] = self._pool.submit(self._turn, move)

    def close(self) -> None:
        """Let every role save and leave."""
        self._pool.shutdown(cancel_futures=True)
        for _, url in self._running.values():
            self._dispatcher.close(url)
        self._launcher.close()

    def _turn(self, move: Move) -> None:
        """Take the server out of the dispatcher, so that nothing new comes while it answers what it has; then one role follows
        the other."""
        before, asked = self._ledger.of(move.slot), time.time()
        role, until = (move.role, move.until) if isinstance(move, Lend) else (self._ledger.owners[move.slot], None)
        if until is not None:
            self._redone_s[move.slot] = self._roles[before.role].redone_s()
        self._ledger.note(before.id, asked=asked)
        if running := self._running.pop(move.slot, None):
            self._dispatcher.close(running[1])
            left_s = (before.until or float("inf")) - self.limits.tick_s - asked
            self._launcher.drain(running[0], max(0.1, min(self.limits.leave_s, left_s)))
        self._ledger.turn(move.slot, role, until, move.why, time.time())
        self._start(move.slot)

    def _start(self, slot: str) -> None:
        """Start the role of the slot's lease, and wait until it works, or the loan is due. Raises TenfoldError where it ends."""
        lease, began, limits, url = self._ledger.of(slot), time.time(), self.limits, free_url()
        role, due = self._roles[lease.role], lease.until or began + limits.start_s
        if role.finished:
            return
        handle = self._launcher.submit(role.job(self._folder / f"{slot}.lock", url, lease.until, limits.leave_s))
        self._running[slot] = handle, url
        while not role.is_ready(url, began):
            if handle.future.done() and not role.finished:
                raise TenfoldError(f"{handle.job.name} ended before it was ready.") from handle.future.exception()
            if time.time() > due - (limits.leave_s + 2 * limits.tick_s if lease.until else 0.0):
                return
            time.sleep(0.05)
        if lease.ready is None:
            self._ledger.note(lease.id, ready=time.time())
            self._price(slot)
        self._dispatcher.open(url, lease.role)

    def _price(self, slot: str) -> None:
        """Where a loan is over, note what it cost: its owner's seconds of leaving and starting, and of work done again."""
        own = [lease for lease in self._ledger.leases() if lease.slot == slot]
        if own[-1].until is None and len(own) > 2:
            before, loan, back = own[-3:]
            times = ((before.asked, before.ended), (back.since, back.ready))
            redone_s = self._roles[back.role].redone_s() - self._redone_s.get(slot, 0.0)
            self._ledger.note(loan.id, lost_s=redone_s + sum(end - start for start, end in times if start and end))
