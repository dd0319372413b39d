"""The fleet of this machine: a slot is a process. Switches run in threads beside the controller, one at a time in each slot."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.fleet.clock import Clock
from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Lease, Ledger
from tenfold.fleet.operate.on_slots import Word
from tenfold.fleet.operate.wishes import Wishes
from tenfold.fleet.slots.sleepers import Sleepers, Worker
from tenfold.fleet.slots.slots import DRAINED, Demand, Demands, Fleet, Limits, Move, Slot, Wish, holder_after
from tenfold.fleet.slots.watch import Watch
from tenfold.launch.job import Launcher
from tenfold.serve.start import free_url
from tenfold.spec.errors import TenfoldError

if TYPE_CHECKING:  # PyTorch
    from tenfold.fleet.slots.roles import Role


class LocalWorld:
    """A `World` of local processes. It continues with the current leases of the ledger. Each service gets its requests through
    its front of `fronts`.

    A slot is part of the fleet once it has been opened. A role that ends early or hangs is started again, as often as `limits`
    allow, and so is the front.
    """

    def __init__(self, folder: Path, ledger: Ledger, roles: "dict[str, Role]", launcher: Launcher, fronts: Mapping[str, Front]):
        self.demands: Demands = {name: lambda now: Demand() for name in fronts}
        self.limits, self.slot_w, self.clock = Limits(), 0.0, Clock(folder / "clock.json")
        self.folder, self._ledger, self._roles, self._launcher, self._fronts = folder, ledger, roles, launcher, fronts
        self._wishes, self._watch = Wishes(ledger), Watch(len(ledger.owners))
        self.sleepers = Sleepers()
        self._running: dict[str, Worker] = {}
        self._failed: dict[str, list[float]] = {}
        self._redone_s: dict[str, float] = {}  # seconds of repeated work before the loan, by slot
        for lease in ledger.leases(current=True):
            if lease.until is not None and lease.until <= self.clock():  # its process killed itself at that time
                ledger.turn(lease.slot, ledger.owners[lease.slot], None, "its deadline, while no controller ran", lease.until)
        self._pool = ThreadPoolExecutor(len(ledger.owners))
        self._turns: dict[str, tuple[Future[None], Move | None]] = {}

    def open(self, slot: str) -> None:
        """Start the role that the slot's current lease names."""
        self._turns[slot] = self._pool.submit(self._start, slot), None

    def observe(self, now: float) -> Fleet:
        """The fleet as it is now. Raises what a switch raised, and TenfoldError for a role or front that fails again and again."""
        for service, front in self._fronts.items():
            if not front.runs():
                self._count_failure(f"front of {service}", f"The front of {service}")
                front.start()
        done = {slot for slot, (turn, _) in self._turns.items() if turn.done()}  # read before the leases, which a switch changes
        slots = [self._slot(lease, lease.slot in done) for lease in self._ledger.leases(current=True) if lease.slot in self._turns]
        demands = {name: demand(now) for name, demand in self.demands.items()}
        return Fleet(tuple(slots), demands, self.limits, self._open_wishes())

    def apply(self, move: Move) -> None:
        self._turns[move.slot] = self._pool.submit(self._turn, move), move

    def answer(self, said: Mapping[int, Word], now: float) -> None:
        self._wishes.answer(said, time.time())

    def close(self) -> None:
        """Let every role save and leave."""
        self._pool.shutdown(cancel_futures=True)
        self._watch.close()
        for worker in self._running.values():
            self._close(worker.url)
        self._launcher.close()

    def _open_wishes(self) -> tuple[Wish, ...]:
        """The open wishes, with their ends moved to the fleet's clock."""
        ahead_s = self.clock.ahead_s()
        return tuple(replace(wish, until=wish.until + ahead_s) for wish in self._wishes.open(time.time()))

    def _slot(self, lease: Lease, done: bool) -> Slot:
        """The slot as it is, or, while its switch is not `done`, as it will be."""
        slot, turning, owner, role, until = lease.slot, not done, self._ledger.owners[lease.slot], lease.role, lease.until
        turn, move = self._turns[slot]
        if done:
            turn.result()
            turning = self._mend(lease)
        elif move:
            role, until = holder_after(move, owner)
        idle = until is None and self._roles[role].finished
        return Slot(slot, owner, role, lease.since, until, turning, idle, watts=self.slot_w)

    def _is_due(self, lease: Lease) -> bool:
        """Whether a borrower has only the time left that it needs to leave."""
        return lease.until is not None and lease.until <= self.clock() + self.limits.leaving_s

    def _mend(self, lease: Lease) -> bool:
        """Start the slot's role again where it ended early or hangs; returns whether that was done.

        A borrower that is due is not started again, since its slot goes back to the owner.
        """
        slot = lease.slot
        if lease.role == DRAINED or slot not in self._running:
            return False
        role, handle, url = self._roles[lease.role], self._running[slot].handle, self._running[slot].url
        if role.finished:
            return False
        if handle.status() == "running":
            if self._watch.silent_s(slot, lambda: role.sign(url)) <= self.limits.hung_s:
                return False
            self._launcher.stop(handle)
        self._close(url)
        if self._is_due(lease):
            return False
        self._count_failure(slot, f"{lease.role} in {slot}")
        self.open(slot)
        return True

    def _count_failure(self, key: str, name: str) -> None:
        now, limits = self.clock(), self.limits
        failed = [then for then in self._failed.get(key, []) if then > now - limits.restarts_s]
        if len(failed) >= limits.restarts:
            raise TenfoldError(f"{name} failed {len(failed) + 1} times: see its output for the cause.")
        self._failed[key] = [*failed, now]

    def _turn(self, move: Move) -> None:
        """Switch a slot to another role. A server is removed from the front first, so that it gets no new requests while it
        finishes its answers. In a drained slot no process stays, asleep or awake."""
        before, asked = self._ledger.of(move.slot), self.clock()
        role, until = holder_after(move, self._ledger.owners[move.slot])
        if before.until is None:
            self._redone_s[move.slot] = self._roles[before.role].redone_s()
        self._ledger.note(before.id, asked=asked)
        gone = asked if before.until is None else min(asked, before.until)
        if running := self._running.pop(move.slot, None):
            self._watch.forget(move.slot)
            self._close(running.url)
            if running.handle.status() == "running":
                left_s = (before.until or float("inf")) - self.limits.tick_s - asked
                left_s = max(0.1, min(self.limits.leave_s, left_s))
                if role == DRAINED or not self.sleepers.add(move.slot, before.role, running, left_s):
                    self._launcher.drain(running.handle, max(0.1, left_s - (self.clock() - asked)))
                gone = self.clock()
        if role == DRAINED:
            for sleeper in self.sleepers.leave(move.slot):
                self._launcher.drain(sleeper.handle, self.limits.leave_s)
        self._ledger.turn(move.slot, role, until, move.why, gone)
        self._start(move.slot)

    def _start(self, slot: str) -> None:
        """Start the role of the slot's lease and wait until it works or the loan is due. A role that fails is started again."""
        lease = self._ledger.of(slot)
        while lease.role != DRAINED and not self._roles[lease.role].finished and not self._is_due(lease):
            try:
                self._try(lease)
                break
            except TenfoldError:
                self._count_failure(slot, f"{lease.role} in {slot}")
            time.sleep(min(1.0, self.limits.tick_s))

    def _try(self, lease: Lease) -> None:
        """Start the role once. Raises TenfoldError where it ends, or is not ready within `limits.start_s`."""
        role, limits, slot, began = self._roles[lease.role], self.limits, lease.slot, self.clock()
        end = None if lease.until is None else time.monotonic() + lease.until - began
        starts = role.starts()
        worker = self.sleepers.wake(slot, lease.role, end) or self._submit(slot, role, end)
        handle, url = worker.handle, worker.url
        self._watch.forget(slot)
        self._running[slot] = worker
        while not role.is_ready(url, starts):
            if handle.future.done() and not role.finished:
                raise TenfoldError(f"{handle.job.name} ended before it was ready.") from handle.future.exception()
            if self._is_due(lease):
                return
            if self.clock() > began + limits.start_s:
                self._launcher.stop(handle)
                raise TenfoldError(f"{handle.job.name} was not ready in {limits.start_s:.0f} s.")
            time.sleep(0.05)
        if lease.ready is None:
            self._ledger.note(lease.id, ready=self.clock())
            self._price(slot)
        if lease.role in self._fronts:
            self._fronts[lease.role].open(url)

    def _close(self, url: str) -> None:
        """Remove a server from its front. A role that is no service has none."""
        for front in self._fronts.values():
            front.close(url)

    def _submit(self, slot: str, role: "Role", end: float | None) -> Worker:
        """Start a new process for the role."""
        lock, url, leave_s = self.folder / f"{slot}.lock", free_url(), self.limits.leave_s
        if not self.sleepers.keep_bytes:
            return Worker(self._launcher.submit(role.job(lock, url, end, leave_s)), url)
        orders, theirs = Pipe()
        with theirs:
            return Worker(self._launcher.submit(role.job(lock, url, end, leave_s, theirs)), url, orders)

    def _price(self, slot: str) -> None:
        """Where the owner is back after one or more loans, write the cost to the first loan's lease: the owner's seconds of leaving
        and starting, and of repeated work."""
        *before, back = [lease for lease in self._ledger.leases() if lease.slot == slot]
        loans = list(takewhile(lambda lease: lease.until is not None, reversed(before)))
        if back.until is None and loans:
            owner = before[-len(loans) - 1]
            times = ((owner.asked, owner.ended), (back.since, back.ready))
            redone_s = self._roles[back.role].redone_s() - self._redone_s.get(slot, 0.0)
            self._ledger.note(loans[-1].id, lost_s=redone_s + sum(end - start for start, end in times if start and end))
