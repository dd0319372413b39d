"""The sizes that the services and runs of a live fleet should have, in its ledger beside the leases.

Rows are only added. A holder's last row is the size that it should have; the cluster may still be on the way to it."""

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
    Column("start", Integer, nullable=False),  # the number of the run's job
    Column("came", Float),
    Column("since", Float),
    Column("begins", Float),
    Column("begun", Float),
    Column("work_s", Float),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True)
class Given:
    """A holder's size; for a run also its job's number, its arrival and its progress, as in `pools.Job`."""

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
        """Copy the size and progress into `job`, and return it."""
        job.nodes, job.begun = self.nodes, self.begun
        job.came, job.since, job.begins, job.work_s = (
            float(value or 0) for value in (self.came, self.since, self.begins, self.work_s)
        )
        return job


class Sizes:
    """The sizes in one ledger, which only its controller writes."""

    def __init__(self, ledger: Ledger):
        metadata.create_all(ledger.engine)
        self._engine = ledger.engine

    def give(self, given: Given) -> None:
        """Write a size, before it is carried out."""
        with self._engine.begin() as connection:
            connection.execute(insert(sizes).values(**vars(given)))

    def last(self) -> dict[str, Given]:
        """The size that each holder should have."""
        newest = select(func.max(sizes.c.id)).group_by(sizes.c.holder)
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            rows = connection.execute(select(sizes).where(sizes.c.id.in_(newest)).order_by(sizes.c.id))
            fields = [{key: value for key, value in row._mapping.items() if key != "id"} for row in rows]
        return {one["holder"]: Given(**one) for one in fields}


def of_job(job: Job, start: int) -> Given:
    """The row to be written for a run."""
    return Given(job.name, job.nodes, None, start, job.came, job.since, job.begins, job.begun, job.work_s)
