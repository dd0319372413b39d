"""The ledger's invariants: any order of turns, crashes at every write, kills, fencing, and two controllers at once."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from bench.fleet.ledger import OWNERS, ROLES, WORK, History, killed, random_history
from tenfold.fleet.ledger import Ledger, Turn
from tenfold.spec.errors import TenfoldError

CRASHES = st.sampled_from([None, None, 1, 2, 3])


class Machine(RuleBasedStateMachine):
    """Turns, ends of work and notes in any order, each with a crash at one of its writes or at its commit."""

    def __init__(self):
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.history = History(f"{self.folder.name}/ledger.db")

    @rule(
        gang=st.lists(st.sampled_from(sorted(OWNERS)), min_size=1, max_size=3, unique=True),
        role=st.sampled_from(ROLES),
        lasts=st.none() | st.integers(1, 6),
        work=st.none() | st.sampled_from(WORK),
        gone=st.booleans(),
        crash_at=CRASHES,
    )
    def turn(self, gang, role, lasts, work, gone, crash_at):
        until = None if lasts is None else self.history.now + lasts
        self.history.turn([Turn(slot, role, until, "why", work) for slot in gang], gone, crash_at)

    @rule(work=st.sampled_from(WORK), crash_at=CRASHES)
    def finish(self, work, crash_at):
        self.history.finish(work, crash_at)

    @rule(crash_at=CRASHES)
    def note(self, crash_at):
        self.history.note(crash_at)

    @invariant()
    def holds(self):
        assert self.history.check() == []

    def teardown(self):
        self.history.ledger.close()
        self.folder.cleanup()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=8, stateful_step_count=10, deadline=None)


def test_a_crash_at_any_write_of_a_gang_leaves_all_of_it_or_nothing(tmp_path):
    for crash_at in (1, 2, 3, 4):
        history = History(str(tmp_path / f"{crash_at}.db"))
        history.turn([Turn(slot, "chat", 9.0, "a wave") for slot in sorted(OWNERS)[:3]], crash_at=crash_at)
        assert len(history.ledger.leases()) == len(OWNERS) and history.check() == []
        history.turn([Turn(slot, "chat", 9.0, "a wave") for slot in sorted(OWNERS)[:3]])
        assert len(history.ledger.leases()) == len(OWNERS) + 3 and history.check() == []
        history.ledger.close()


def test_a_slot_of_a_worker_that_nobody_saw_leave_waits_for_its_deadline(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", {"a": "train"})
    with pytest.raises(TenfoldError, match="may still run"):
        ledger.turn_all([Turn("a", "chat", 20.0)], now=5.0, gone=False)
    ledger.turn("a", "chat", 20.0, "a wave", 5.0)
    with pytest.raises(TenfoldError, match="deadline at 20"):
        ledger.turn_all([Turn("a", "train")], now=19.9, gone=False)
    ledger.turn_all([Turn("a", "train")], now=20.0, gone=False)
    assert [lease.role for lease in ledger.leases()] == ["train", "chat", "train"]


def test_finished_work_never_runs_again_and_takes_its_gang_with_it(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", {"a": "train", "b": "train"})
    ledger.finish("run-1", 3.0)
    ledger.finish("run-1", 4.0)
    with pytest.raises(TenfoldError, match="run-1 was finished"):
        ledger.turn_all([Turn("a", "train", work="run-2"), Turn("b", "train", work="run-1")], 5.0)
    assert len(ledger.leases()) == 2 and ledger.finished() == {"run-1"}


def test_of_two_controllers_one_is_refused_by_the_database(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", {"a": "train"})
    ledger.turn("a", "chat", None, "", 1.0)
    row = "INSERT INTO leases (slot, follows, role, since, why) VALUES ('a', 1, 'rank', 2.0, '')"
    with pytest.raises(IntegrityError), ledger.engine.begin() as connection:
        connection.execute(text(row))
    assert [lease.role for lease in ledger.leases(current=True)] == ["chat"]


def test_random_histories_and_a_kill_break_nothing(tmp_path):
    assert [random_history(str(tmp_path / f"{seed}.db"), seed) for seed in range(10)] == [[]] * 10
    assert killed(str(tmp_path / "killed.db"), 4) == []


@pytest.mark.slow
def test_many_histories_and_kills_break_nothing(tmp_path):
    assert not any(random_history(str(tmp_path / f"{seed}.db"), seed) for seed in range(1000))
    assert not any(killed(str(tmp_path / "killed.db"), 1 + number % 10) for number in range(200))
