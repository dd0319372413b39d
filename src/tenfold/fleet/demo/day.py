"""One day of a fleet with two slots, live or simulated: who had which slot when, and when each request was answered.

A simulated day has the same requests and policy as the live one, and uses what was measured of the machine before both.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.fleet.demo.wave import demand_at
from tenfold.fleet.ledger import Lease, Ledger
from tenfold.fleet.pools import Policy
from tenfold.fleet.slots.simulated import SimulatedWorld, simulate
from tenfold.fleet.slots.slots import Limits
from tenfold.fleet.spans import SWITCHING, Span, spans_of
from tenfold.spec.files import read_lines

OWNERS = {"slot-1": "chat", "slot-2": "train"}


@dataclass(frozen=True)
class Known:
    """Measurements of this machine before the day, in seconds, and the day's demand.

    Under load a server takes `answers_s` for an answer of `tokens` tokens, and `writes_s` of it from the first token on: the first
    value beside training, the second beside another chat server. The first token of a single request takes `first_s`. A step of
    training takes `step_s`; the other times are those in which the roles leave and start.
    `days` are rates in requests/s for each hour of `hour_s` seconds; the last day is the one that is played.
    """

    model: str
    minutes: float
    tokens: int
    answers_s: tuple[float, float]
    writes_s: tuple[float, float]
    first_s: float
    train_leave_s: float
    chat_start_s: float
    chat_leave_s: float
    train_start_s: float
    step_s: float
    hour_s: float
    days: list[list[float]]

    @property
    def per_slot(self) -> float:
        """The requests/s that a slot can answer beside training."""
        return 1 / self.answers_s[0]

    @property
    def day_s(self) -> float:
        return 24 * self.hour_s

    @property
    def limits(self) -> Limits:
        """Limits with several times the measured time to leave."""
        leave_s = max(20.0, 4 * self.train_leave_s, 4 * self.chat_leave_s)
        return Limits(leave_s=leave_s, switch_s=self.train_leave_s + self.chat_start_s)


@dataclass(frozen=True)
class Day:
    """A day of `seconds` seconds. `came` is the time of each request, and `first_s` the time from it to the first token.

    `answering_s` are slot-seconds from first tokens to last ones, `moves` the changes of roles in order, `loans` their number,
    `in_time` says that all were returned by their deadlines, `lost` counts accepted requests that broke off, and `sent_again` those
    that were sent to another server.
    """

    seconds: float
    spans: list[Span]
    came: np.ndarray
    first_s: np.ndarray
    answering_s: float
    moves: list[str]
    loans: int = 0
    in_time: bool = True
    lost: int = 0
    sent_again: int = 0

    def slot_s(self, what: str) -> float:
        """The slot-seconds of a role, or of switching."""
        return sum(span.end - span.start for span in self.spans if span.what == what)

    def figures(self, bound_s: float) -> dict[str, Any]:
        """The day's figures. `usage` is the share of the slots' time in which they trained or wrote answers; `run_waits_s` is the
        time in which the run did not train, because it had no slot, saved or started."""
        training = self.slot_s("train")
        percentiles = {f"p{q}": float(np.percentile(self.first_s, q)) for q in (50, 95, 99)}
        return {
            "requests": len(self.came), "loans": self.loans, "moves": self.moves, "returned_in_time": self.in_time,
            "accepted_lost": self.lost, "sent_again": self.sent_again,
            "first_token_s": {"mean": float(self.first_s.mean()), **percentiles},
            "within_bound": float((self.first_s <= bound_s).mean()),
            "usage": (training + self.answering_s) / (len(OWNERS) * self.seconds),
            "training_s": training, "answering_s": self.answering_s, "switching_s": self.slot_s(SWITCHING),
            "run_waits_s": self.seconds - training,
        }  # fmt: skip


def live_day(folder: Path, began: float, seconds: float) -> Day:
    """A live day, from its files. Raises TenfoldError for a ledger that cannot be read."""
    ledger = Ledger(folder / "ledger.db")
    leases, rows = ledger.leases(), sorted(read_lines(folder / "answers.jsonl"), key=lambda row: row["came"])
    ledger.close()
    loans = [lease for lease in leases if lease.until is not None]
    return Day(
        seconds, spans_of(leases, began, seconds),
        np.array([row["came"] for row in rows]), np.array([row["late_s"] + row["first_s"] for row in rows]),
        answering_s=sum(row["seconds"] - row["first_s"] for row in rows), moves=_moves(leases), loans=len(loans),
        in_time=all(loan.ended <= loan.until for loan in loans if loan.ended and loan.until),
        lost=sum(row["lost"] for row in rows), sent_again=sum(row["sent"] - 1 for row in rows),
    )  # fmt: skip


def simulated_day(known: Known, arrivals: Sequence[float], policy: Policy) -> Day:
    """The day with the same requests and policy in a simulated world."""
    ledger = Ledger(":memory:", OWNERS)
    for lease in ledger.leases():
        ledger.note(lease.id, ready=0.0)
    delays = itertools.cycle([(known.train_leave_s, known.chat_start_s), (known.chat_leave_s, known.train_start_s)])
    world = SimulatedWorld(
        ledger, {"chat": lambda now: demand_at(now, arrivals, known.days[-2], known.hour_s, known.per_slot)}, known.limits, delays
    )
    simulate(world, policy, known.day_s, known.limits.tick_s)
    leases = ledger.leases()
    ledger.close()
    spans = spans_of(leases, 0.0, known.day_s)
    open_ = [(span.start, span.end) for span in spans if span.what == "chat"]
    waits, servers = zip(*queue(arrivals, open_, known.answers_s), strict=True)
    loans = sum(lease.until is not None for lease in leases)
    return Day(
        known.day_s, spans, np.asarray(arrivals), np.array(waits) + known.first_s,
        answering_s=sum(known.writes_s[count - 1] for count in servers), moves=_moves(leases), loans=loans,
    )  # fmt: skip


def queue(arrivals: Sequence[float], open_: Sequence[tuple[float, float]], answers_s: Sequence[float]) -> list[tuple[float, int]]:
    """For each request the seconds until its answer begins, and the number of open servers (at most `len(answers_s)`).

    `open_` are (start, end) of servers. A request goes to the open server with the fewest unfinished requests, and of several such
    to the one that is free first. A server answers in the order of arrival; with n open servers an answer takes `answers_s[n - 1]`.
    A request that arrives while no server is open waits for the next one.
    """
    asked: list[deque[float]] = [deque() for _ in open_]  # when each server's unfinished answers end
    found = []
    for came in sorted(arrivals):
        at = came if any(start <= came < end for start, end in open_) else min(start for start, _ in open_ if start > came)
        for ends in asked:
            while ends and ends[0] <= at:
                ends.popleft()
        here = [ends for ends, (start, end) in zip(asked, open_, strict=True) if start <= at < end]
        fewest = min(here, key=lambda ends: (len(ends), max(ends, default=at)))
        begins, open_now = fewest[-1] if fewest else at, min(len(here), len(answers_s))
        fewest.append(begins + answers_s[open_now - 1])
        found.append((begins - came, open_now))
    return found


def _moves(leases: Sequence[Lease]) -> list[str]:
    """The changes of roles, in order."""
    return [f"{lease.slot} to {lease.role}" for lease in leases if lease.why != "its own"]
