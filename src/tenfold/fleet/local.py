"""The fleet of this machine: slots are processes, and turns run beside the controller, one at a time in each slot."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tenfold.fleet.dispatcher import Dispatcher
from tenfold.fleet.fleet import Demand, Fleet, Lend, Limits, Move, Slot
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.roles import Role
from tenfold.launch.job import Handle, Launcher
from tenfold.spec.errors import TenfoldError

RESTARTS = 3  # of a role that ends before its time


@dataclass
class Running:
    """A role's process, and where it may listen."""

    handle: Handle
    url: str


class LocalWorld:
    """Opened on a ledger, it goes on with the leases that stand there. Servers take requests by way of `dispatcher`."""

    def __init__(self, folder: Path, ledger: Ledger, roles: dict[str, Role], launcher: Launcher, dispatcher: Dispatcher):
        self.demand: Callable[[float], Demand] = lambda now: Demand(0.0, (), 1.0, 1.0)
        self.limits = Limits()
        self._folder, self._ledger, self._roles, self._launcher, self._dispatcher = folder, ledger, roles, launcher, dispatcher
        self._running: dict[str, Running] = {}
        self._redone_s: dict[str, float] = {}  # until the loan, by slot
        self._restarts = 0
        self._pool = ThreadPoolExecutor(len(ledger.owners))
        for lease in ledger.leases(current=True):
            if lease.until is not None and lease.until <= time.time():  # the process ended itself then
                ledger.turn(lease.slot, ledger.owners[lease.slot], None, "its deadline, while there was no controller", lease.until)
        self._turns: dict[str, Future[None]] = {slot: self._pool.submit(self._start, slot) for slot in ledger.owners}

    def observe(self, now: float) -> Fleet:
        """Raises what a turn raised. A role that ended before its time is started again."""
        slots = []
        for lease in self._ledger.leases(current=True):
            slot, turn, role = lease.slot, self._turns[lease.slot], self._roles[lease.role]
            if turn.done():
                turn.result()
                if not role.finished and self._running[slot].handle.status() != "running":
                    self._turns[slot] = turn = self._pool.submit(self._start_again, slot)
            idle = lease.until is None and role.finished
            slots.append(Slot(slot, self._ledger.owners[slot], lease.role, lease.since, lease.until, not turn.done(), idle))
        return Fleet(tuple(slots), self.demand(now), self.limits)

    def apply(self, move: Move) -> None:
        self._turns[move.slot] = self._pool.submit(self._turn, move)

    def close(self) -> None:
        """Let every role save and leave."""
        for slot in self._ledger.owners:
            self._turns[slot].cancel()
        self._pool.shutdown()
        for running in self._running.values():
            self._dispatcher.close(running.url)
        self._launcher.close()

    def _turn(self, move: Move) -> None:
        before, asked = self._ledger.of(move.slot), time.time()
        role, until = (move.role, move.until) if isinstance(move, Lend) else (self._ledger.owners[move.slot], None)
        self._ledger.note(before.id, asked=asked)
        self._redone_s[move.slot] = self._roles[before.role].redone_s() if until else self._redone_s.get(move.slot, 0.0)
        self._leave(move.slot, self.limits.leave_s if before.until is None else min(self.limits.leave_s, before.until - asked))
        self._ledger.turn(move.slot, role, until, move.why, time.time())
        self._start(move.slot)

    def _leave(self, slot: str, within_s: float) -> None:
        """Take the slot's server out of the dispatcher first, so that nothing new comes while it answers what it has."""
        if running := self._running.pop(slot, None):
            self._dispatcher.close(running.url)
            self._launcher.drain(running.handle, within_s)

    def _start(self, slot: str) -> None:
        """Start the role of the slot's lease, and wait until it works, or the loan is due. Raises what ended it."""
        lease, began, limits = self._ledger.of(slot), time.time(), self.limits
        role, url = self._roles[lease.role], _free_url()
        if role.finished:
            return
        job = role.job(self._folder / f"{slot}.lock", url, lease.until, limits.leave_s)
        running = self._running[slot] = Running(self._launcher.submit(job), url)
        due = lease.until - limits.leave_s - 2 * limits.tick_s if lease.until else began + limits.start_s
        while not role.is_ready(url, began):
            if running.handle.future.done() and not role.finished:
                raise TenfoldError(f"{running.handle.job.name} ended before it was ready.") from running.handle.future.exception()
            if time.time() > due:
                if lease.until is None:
                    raise TenfoldError(f"{running.handle.job.name} was not ready within {limits.start_s:.0f} s.")
                return
            time.sleep(0.05)
        if lease.ready is None:
            self._ledger.note(lease.id, ready=time.time())
            self._price(slot)
        self._dispatcher.open(url, lease.role)

    def _start_again(self, slot: str) -> None:
        self._restarts += 1
        running = self._running.pop(slot)
        self._dispatcher.close(running.url)
        if self._restarts > RESTARTS:
            raise TenfoldError(f"{running.handle.job.name} ended again.") from running.handle.future.exception()
        self._start(slot)

    def _price(self, slot: str) -> None:
        """Where a loan is over, note what it cost: its owner's seconds of leaving and starting, and of work done again."""
        owner, loan, back = ([None, None] + [lease for lease in self._ledger.leases() if lease.slot == slot])[-3:]
        if owner and loan and back and back.until is None and owner.ended and owner.asked and back.ready:
            redone_s = self._roles[back.role].redone_s() - self._redone_s.get(slot, 0.0)
            self._ledger.note(loan.id, lost_s=owner.ended - owner.asked + back.ready - back.since + redone_s)


def _free_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
