"""The launcher jobs for the runs and services of a fleet file, and the `pools.Job` that policies see of a run."""

from hashlib import sha256
from pathlib import Path

from tenfold.fleet.pools import Job
from tenfold.fleet.setup import HOUR_S, Setup
from tenfold.launch import job as launch
from tenfold.launch.job_files import file_name


class Started:
    """Makes the fleet's jobs. Their names end in a hash of `folder`, so that fleets on the same cluster do not share names."""

    def __init__(self, setup: Setup, folder: Path):
        self._setup, self._file = setup, setup.file
        self._fleet = sha256(str(folder.resolve()).encode()).hexdigest()[:6]

    def seen_of(self, name: str) -> Job:
        """A run as policies see it, before its first start."""
        t = self._file.runs[name]
        work_s = t.hours * HOUR_S / self._setup.pools[t.pool].speed
        return Job(
            name, t.least, t.most or t.least, 0.0, work_s, save_s=t.save_s, restart_s=t.restart_s, interval_s=t.interval_s,
            scaling=t.scaling,
        )  # fmt: skip

    def run(self, name: str, start: int, nodes: int) -> launch.Job:
        """Job number `start` of a run."""
        t = self._file.runs[name]
        gpus = self._file.pools[t.pool].accelerators_per_node
        needs = launch.Resources(nodes, min(t.least, nodes), t.processes_per_node or gpus, gpus=gpus)
        return launch.Job(f"run-{name}-{start}-{self._fleet}", tuple(t.command), resources=needs, grace_s=t.save_s)

    def service(self, service: str, work: str) -> launch.Job:
        """A service's job on one node; `work` is its name in the ledger."""
        t = self._file.services[service]
        needs = launch.Resources(gpus=self._file.pools[t.pool].accelerators_per_node)
        return launch.Job(f"serve-{work}-{self._fleet}", tuple(t.command or ()), resources=needs, grace_s=t.leave_s)


def is_alive(seen: launch.Seen | None) -> bool:
    return seen is not None and seen.status in ("waiting", "running")


def told_of(job: launch.Job, seen: dict[str, launch.Seen]) -> launch.Seen | None:
    """The job's state on the cluster; None where the cluster does not know it."""
    return seen.get(file_name(job))


def bring(
    launcher: launch.Launcher, wanted: launch.Job | None, start: int, handle: launch.Handle | None, before: int
) -> int:  # fmt: skip
    """Resize the running job of `handle` to that of `wanted`, or end it where `wanted` is None. Without a handle, start `wanted`.

    Returns the number of the run's present job: `start`, or `before` where the running job continues.
    """
    if handle is not None and wanted is not None:
        launcher.resize(handle, wanted.resources)
        return before
    if handle is not None:
        launcher.drain(handle, handle.job.grace_s)
    if wanted is not None:
        launcher.submit(wanted)
    return start
