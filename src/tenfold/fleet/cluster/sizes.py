"""The sizes that services and runs of a live fleet were given, in its ledger beside the leases.

Rows are only added: the last one of a holder is what it should have, though its nodes may still turn."""

from dataclasses import dataclass

from sqlalchemy import Column, Float, Integer, String, Table, func, insert, select

from tenfold.fleet.ledger import Ledger, metadata
from tenfold.fleet.pools import Job

sizes = Table(
    "sizes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("holder", String(200), nullable=False, index=True),
    Column("nodes", Integer, nullable=False),
    Column("until", Float),
    Column("start", Integer, nullable=False),  # which of a run's jobs it is
    Column("came", Float),
    Column("since", Float),
    Column("begins", Float),
    Column("begun", Float),
    Column("work_s", Float),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True)
class Given:
    """A holder's size; of a run also its job's number, when it came, and its progress as of `Job`."""

    holder: str
    nodes: int
    until: float | None = None
    start: int = 0
    came: float | None = None
    since: float | None = None
    begins: float | None = None
    begun: float | None = None
    work_s: float | None = None

    def told(self, job: Job) -> Job:
        """The job, with what was written of it."""
        job.nodes, job.begun = self.nodes, self.begun
        job.came, job.since, job.begins, job.work_s = (
            float(value or 0) for value in (self.came, self.since, self.begins, self.work_s)
        )
        return job


class Sizes:
    """Those of one ledger, whose controller is the one writer."""

    def __init__(self, ledger: Ledger):
        metadata.create_all(ledger.engine)
        self._engine = ledger.engine

    def give(self, given: Given) -> None:
        """Write a size down, before anything is done for it."""
        with self._engine.begin() as connection:
            connection.execute(insert(sizes).values(**vars(given)))

    def last(self) -> dict[str, Given]:
        """What each holder should have."""
        newest = select(func.max(sizes.c.id)).group_by(sizes.c.holder)
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            rows = connection.execute(select(sizes).where(sizes.c.id.in_(newest)).order_by(sizes.c.id))
            fields = [{key: value for key, value in row._mapping.items() if key != "id"} for row in rows]
        return {one["holder"]: Given(**one) for one in fields}


def of_job(job: Job, start: int) -> Given:
    """What is to be written of a run."""
    return Given(job.name, job.nodes, None, start, job.came, job.since, job.begins, job.begun, job.work_s)
