"""The fleet's ledger under crashes: errors at random writes of random histories, and real `kill -9` of a writer.

    python -m bench.fleet.ledger --histories 1000 --kills 200 [--postgresql postgresql+psycopg://user@host/database]

After each crash the ledger is opened again. It must hold everything that was acknowledged, no half-written change, one current
lease per slot, no id twice, and no finished work that started again. A kill hits a process that changes leases at a random
moment.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event

from bench.harness import options, write_results
from tenfold.fleet.ledger import Ledger, Turn, metadata
from tenfold.spec.errors import TenfoldError

OWNERS = {f"slot-{i}": ("chat", "train")[i % 2] for i in range(4)}
ROLES, WORK = ("chat", "train", "rank"), [f"job-{i}" for i in range(6)]


class Crash(BaseException):
    """Stands for the end of the process at this point."""


class History:
    """A ledger, and what it acknowledged so far."""

    def __init__(self, where: str):
        self.where, self.now, self.seen, self.done, self.broken = where, 0.0, dict[int, Any](), set[str](), list[str]()
        self.ledger = Ledger(where, OWNERS)
        self._acknowledge()

    def turn(self, turns: list[Turn], gone: bool = True, crash_at: int | None = None) -> None:
        """Give slots to other roles; the change must happen completely or not at all."""
        before = len(self.ledger.leases())
        if self._try(lambda: self.ledger.turn_all(turns, self.now, gone), crash_at):
            self._acknowledge()
        elif len(self.ledger.leases()) - before not in (0, len(turns)):
            self.broken.append("half a gang")

    def finish(self, work: str, crash_at: int | None = None) -> None:
        """Record that work is finished."""
        if self._try(lambda: self.ledger.finish(work, self.now), crash_at):
            self.done.add(work)

    def note(self, crash_at: int | None = None) -> None:
        """Record that a lease is ready."""
        lease = self.ledger.leases(current=True)[0]
        if self._try(lambda: self.ledger.note(lease.id, ready=self.now), crash_at) and self.ledger.of(lease.slot).ready != self.now:
            self.broken.append("a note was lost")

    def check(self) -> list[str]:
        """The broken promises, as sentences; empty if all hold."""
        leases, finished = self.ledger.leases(), self.ledger.finished()
        current = [lease.slot for lease in self.ledger.leases(current=True)]
        by_id = {lease.id: (lease.slot, lease.role, lease.since, lease.until, lease.why, lease.work) for lease in leases}
        broken = list(self.broken)
        broken += ["a slot without a lease, or with two"] if sorted(current) != sorted(OWNERS) else []
        broken += ["an id twice"] if len(by_id) != len(leases) else []
        broken += ["what was acknowledged is lost or changed"] if any(by_id.get(i) != row for i, row in self.seen.items()) else []
        broken += ["finished work is forgotten"] if not self.done <= finished else []
        for slot in OWNERS:
            own = [lease for lease in leases if lease.slot == slot]
            if [lease.ended for lease in own[:-1]] != [lease.since for lease in own[1:]]:
                broken.append("a gap between leases, or two at once")
        return broken

    def _acknowledge(self) -> None:
        rows = self.ledger.leases()
        self.seen |= {lease.id: (lease.slot, lease.role, lease.since, lease.until, lease.why, lease.work) for lease in rows}

    def _try(self, call: Callable[[], None], crash_at: int | None) -> bool:
        """Make the call, with a crash at the given write or at the commit after it; whether it was acknowledged."""
        self.now += 1.0
        writes = 0

        def at_write(_: Any, __: Any, statement: str, *___: Any) -> None:
            nonlocal writes
            writes += statement.startswith("INSERT")
            if writes == crash_at and statement.startswith("INSERT"):
                raise Crash

        def at_commit(_: Any) -> None:
            if crash_at is not None and writes < crash_at:
                raise Crash

        engine = self.ledger.engine
        event.listen(engine, "before_cursor_execute", at_write)
        event.listen(engine, "commit", at_commit)
        try:
            call()
            return True
        except TenfoldError:
            return False
        except Crash:
            self.ledger.close()
            self.ledger = Ledger(self.where, OWNERS)
            return False
        finally:
            event.remove(engine, "before_cursor_execute", at_write)
            event.remove(engine, "commit", at_commit)


def random_history(where: str, seed: int, steps: int = 12) -> list[str]:
    """One history, with a crash in about a third of its steps; the broken promises."""
    draw, history = random.Random(seed), History(where)
    for _ in range(steps):
        crash_at = draw.choice([None, None, 1, 2, 3]) if draw.random() < 0.6 else None
        what = draw.random()
        if what < 0.7:
            gang = draw.sample(sorted(OWNERS), draw.randint(1, 3))
            until = draw.choice([None, history.now + draw.randint(1, 6)])
            work = draw.choice([None, *WORK])
            history.turn([Turn(slot, draw.choice(ROLES), until, "why", work) for slot in gang], draw.random() < 0.8, crash_at)
        elif what < 0.85:
            history.finish(draw.choice(WORK), crash_at)
        else:
            history.note(crash_at)
    broken = history.check()
    history.ledger.close()
    return broken


WRITER = """
import random, sys
from bench.fleet.ledger import OWNERS
from tenfold.fleet.ledger import Ledger, Turn
ledger = Ledger(sys.argv[1], OWNERS)
number = len(ledger.leases())
print("open", flush=True)
while True:
    number += 1
    gang = random.sample(sorted(OWNERS), random.randint(1, 3))
    ledger.turn_all([Turn(slot, "chat", None, f"turn {number}") for slot in gang], float(number))
    print(number, *gang, flush=True)
"""


def killed(where: str, turns: int) -> list[str]:
    """Kill a writer after `turns` changes, in the middle of the next; the broken promises."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, where], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    told = [line.split() for _, line in zip(range(turns + 1), writer.stdout, strict=False)]
    writer.kill()
    told += [line.split() for line in writer.stdout.read().split("\n")[:-1]]
    writer.wait()
    ledger = Ledger(where)
    turned: dict[str, set[str]] = {}
    for lease in ledger.leases():
        turned.setdefault(lease.why, set()).add(lease.slot)
    current = [lease.slot for lease in ledger.leases(current=True)]
    ledger.close()
    lost = any(turned.get(f"turn {number}") != set(gang) for number, *gang in told if number != "open")
    return [
        *(["what was acknowledged is lost"] if lost else []),
        *(["a slot has two"] if sorted(current) != sorted(OWNERS) else []),
    ]


def emptied(url: str) -> str:
    """Drop the ledger's tables in a database; returns its URL."""
    from sqlalchemy import create_engine, text

    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP VIEW IF EXISTS current_leases"))
        metadata.drop_all(connection)
    engine.dispose()
    return url


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--postgresql", help="a database to use beside SQLite; its tables of a ledger are dropped")
    given, rows = parser.parse_args(), []
    for engine in ["SQLite", *(["PostgreSQL"] if given.postgresql else [])]:
        broken: list[str] = []
        for seed in range(given.histories):
            with tempfile.TemporaryDirectory() as folder:
                broken += random_history(str(Path(folder) / "ledger.db") if engine == "SQLite" else emptied(given.postgresql), seed)
        with tempfile.TemporaryDirectory() as folder:
            where = str(Path(folder) / "ledger.db") if engine == "SQLite" else emptied(given.postgresql)
            draw = random.Random(0)
            for _ in range(given.kills):
                broken += killed(where, draw.randint(1, 12))
        rows.append({"database": engine, "histories": given.histories, "kills": given.kills, "broken": broken})
        print(rows[-1], flush=True)
    words = "; ".join(
        f"{r['database']}: {len(r['broken'])} broken in {r['histories']} histories and {r['kills']} kills" for r in rows
    )
    write_results("fleet_ledger", rows, [("the fleet's ledger under crashes at every write and `kill -9`", words)])


if __name__ == "__main__":
    main()
