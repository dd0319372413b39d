"""Jobs on Slurm, through `sbatch`, `squeue`, `scontrol` and `scancel`."""

import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tenfold.launch.job import Handle, Job, Resources, Status
from tenfold.launch.job_files import JobFileLauncher, call
from tenfold.spec.errors import TenfoldError

STATUS: dict[str, Status] = {
    "PENDING": "waiting", "CONFIGURING": "waiting", "REQUEUED": "waiting", "REQUEUE_HOLD": "waiting", "SUSPENDED": "waiting",
    "RUNNING": "running", "COMPLETING": "running", "STOPPED": "running", "COMPLETED": "finished", "CANCELLED": "stopped",
}  # fmt: skip
DAY_S = 86400


@dataclass(frozen=True)
class SlurmLauncher(JobFileLauncher):
    """Ahead of the time limit a job saves and is queued again."""

    partition: str | None = None
    account: str | None = None

    template: ClassVar[str] = "slurm.sh"
    python: ClassVar[str] = sys.executable  # the nodes share this one's file system, and so its Python

    def facts(self, job: Job) -> dict[str, Any]:
        limit = job.time_limit_s or DAY_S
        clock = f"{limit // 3600:02}:{limit % 3600 // 60:02}:{limit % 60:02}"
        return {"partition": self.partition, "account": self.account, "limit": clock}

    def submit(self, job: Job) -> Handle:
        path = self.write(job)
        said = call("sbatch", [str(path)], str(path))
        return Handle(job, said.split()[-1], said)

    def status(self, handle: Handle) -> Status:
        state = call("squeue", ["--noheader", "--states=all", "--format=%T", f"--jobs={handle.id}"], f"job {handle.id}")
        if not state:
            raise TenfoldError(f"Slurm has forgotten job {handle.id}: it ended a while ago; look at `sacct --jobs {handle.id}`.")
        status = STATUS.get(state.split()[0], "failed")
        return "stopped" if handle.drained and status in ("finished", "failed") else status

    def interrupt(self, handle: Handle) -> None:
        if self.status(handle) == "waiting":
            self.stop(handle)
        else:  # to the steps, not to the script that queues again
            call("scancel", ["--signal=TERM", handle.id], f"job {handle.id}")

    def stop(self, handle: Handle) -> None:
        call("scancel", [handle.id], f"job {handle.id}")

    def resize(self, handle: Handle, resources: Resources) -> Handle:
        """In place where only the nodes change; of a job that runs Slurm only takes nodes away."""
        if replace(handle.job.resources, nodes=resources.nodes) != resources:
            return super().resize(handle, resources)
        call("scontrol", ["update", f"JobId={handle.id}", f"NumNodes={resources.nodes}"], f"job {handle.id}")
        return replace(handle, job=replace(handle.job, resources=resources))
