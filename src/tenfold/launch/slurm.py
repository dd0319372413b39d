"""Jobs on Slurm, through `sbatch`, `squeue`, `scontrol` and `scancel`."""

import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from tenfold.launch.job import Handle, Job, Resources, Seen, Status
from tenfold.launch.job_files import JobFileLauncher, call, last_lines
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_text

STATUS: dict[str, Status] = {
    "PENDING": "waiting", "CONFIGURING": "waiting", "REQUEUED": "waiting", "REQUEUE_HOLD": "waiting", "SUSPENDED": "waiting",
    "RESV_DEL_HOLD": "waiting", "RUNNING": "running", "COMPLETING": "running", "STOPPED": "running", "RESIZING": "running",
    "SIGNALING": "running", "STAGE_OUT": "running", "COMPLETED": "finished", "CANCELLED": "stopped",
}  # fmt: skip
UP = ("idle", "mixed", "allocated", "completing", "planned", "reserved")  # of sinfo, which adds * if a node does not answer
DAY_S = 86400
OPTIONS = ("partition", "account", "qos", "reservation", "constraint", "gres", "switches")  # named as sbatch's own


@dataclass(frozen=True)
class SlurmLauncher(JobFileLauncher):
    """Runs jobs as Slurm batch jobs. Ahead of its time limit, a job gets `signal`, saves, and is queued again, at most `requeues`
    times.

    With `image` the nodes run the command in this container, through the Slurm plugin pyxis; `home` and the folders of the job's
    files are mounted in it.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    gres: str | None = None
    switches: str | None = None
    image: str | None = None
    home: str | None = None
    signal: Literal["USR1", "TERM", "INT"] = "USR1"
    requeues: int = 100

    template: ClassVar[str] = "slurm.sh"

    @property
    def python(self) -> str:
        """The interpreter on the nodes: this one, since the nodes share this machine's file system; in a container, `python`."""
        return "python" if self.image else sys.executable

    def check(self, job: Job) -> None:
        for name in OPTIONS:
            if re.search(r"[\x00-\x1f\x7f]", getattr(self, name) or ""):
                raise TenfoldError(f"Slurm's option {name} cannot be {getattr(self, name)!r}: write it on one line.")
        if re.search(r"[\x00-\x1f\x7f\\]", str(self.folder.resolve())):
            raise TenfoldError(f"Slurm cannot write logs to {str(self.folder.resolve())!r}: choose another folder with --out.")
        if self.image and not (self.home or "").startswith("/"):
            raise TenfoldError(f"In a container the home {self.home!r} must be an absolute path, such as --home /generations.")

    def facts(self, job: Job) -> dict[str, Any]:
        limit, folder = job.time_limit_s or DAY_S, str(self.folder.resolve())
        return {
            "limit": f"{limit // 3600:02}:{limit % 3600 // 60:02}:{limit % 60:02}",
            "options": {name: getattr(self, name) for name in OPTIONS if getattr(self, name) is not None},
            "folder": folder, "log_folder": folder.replace("%", "%%"), "requeues": self.requeues, "signal": self.signal,
            "container": self._container(job), "elastic": (job.resources.least_nodes or job.resources.nodes) < job.resources.nodes,
        }  # fmt: skip

    def write_all(self, name: str, jobs: Sequence[Job]) -> list[Path]:
        """Write the jobs as one Slurm job array."""
        return [self.write(replace(jobs[0], name=name), jobs)]

    def submit(self, job: Job) -> Handle:
        return self.submit_all(job.name, [job])[0]

    def submit_all(self, name: str, jobs: Sequence[Job], at_once: int | None = None) -> list[Handle]:
        (path,) = self.write_all(name, jobs)
        array = [f"--array=0-{len(jobs) - 1}{f'%{at_once}' if at_once else ''}"] if len(jobs) > 1 else []
        said = call("sbatch", [*array, str(path)], str(path))
        number = said.split()[-1]
        return [Handle(job, f"{number}_{i}" if array else number, said, file=path) for i, job in enumerate(jobs)]

    def status(self, handle: Handle) -> Status:
        status = STATUS.get(self._asked(handle, "%T"), "failed")
        return "stopped" if handle.drained and status in ("finished", "failed") else status

    def interrupt(self, handle: Handle) -> None:
        if self.status(handle) == "waiting":
            self.stop(handle)
        else:  # signal only the job steps: the batch script would queue the job again
            call("scancel", ["--signal=TERM", handle.id], f"job {handle.id}")

    def stop(self, handle: Handle) -> None:
        call("scancel", [handle.id], f"job {handle.id}")

    def logs(self, handle: Handle, lines: int) -> str:
        found = sorted(self.folder.glob(f"*-{handle.id}.log"))
        return last_lines(found[0], lines) if found else ""

    def resize(self, handle: Handle, resources: Resources) -> Handle:
        """Shrink a running job that can go on with fewer nodes: it saves, and goes on with the nodes that it keeps.

        If Slurm does not allow that, or if more nodes are asked for, the job is drained and submitted again. Raises TenfoldError if
        the job does not give up its nodes within its `grace_s`.
        """
        if not handle.job.resources.shrinks_to(resources) or self.status(handle) != "running":
            return super().resize(handle, resources)
        asked = self.folder / f"tenfold-{handle.id}.nodes"
        write_text(asked, str(resources.nodes))
        call("scancel", ["--batch", "--signal=USR2", handle.id], f"job {handle.id}")
        end = time.monotonic() + handle.job.grace_s
        while True:
            answered = not asked.exists()  # checked before squeue: Slurm takes the nodes away, then the script removes the file
            if int(self._asked(handle, "%D")) <= resources.nodes:
                return replace(handle, job=replace(handle.job, resources=resources))
            if answered:  # Slurm refused: the job has saved, and would be queued again with its old size
                self.stop(handle)
                return self.submit(replace(handle.job, resources=resources))
            if time.monotonic() > end:
                raise TenfoldError(f"Job {handle.id} has not left its nodes after {handle.job.grace_s} s: see its log.")
            time.sleep(0.2)

    def up(self) -> int:
        where = [f"--partition={self.partition}"] if self.partition else []
        said = call("sinfo", ["--noheader", "--Node", "--format=%N %T", *where], "the nodes of the cluster")
        # A minus marks a node that is planned for another job, a plus one on which another job is ending.
        return len({name for name, state in map(str.split, said.splitlines()) if state.rstrip("+-") in UP})

    def seen(self) -> dict[str, Seen]:
        said = call("squeue", ["--noheader", "--states=all", "--me", "--format=%A|%T|%D|%j"], "the jobs of the cluster")
        lines = (line.split("|", 3) for line in said.splitlines())  # a name may hold any character
        rows = sorted((int(number), state, int(nodes), name) for number, state, nodes, name in lines)
        return {name: Seen(str(number), STATUS.get(state, "failed"), nodes) for number, state, nodes, name in rows}

    def _asked(self, handle: Handle, what: str) -> str:
        """The field `what` (a format of `squeue`) of the job. Raises TenfoldError if Slurm does not list it."""
        said = call("squeue", ["--noheader", "--states=all", f"--format={what}", f"--jobs={handle.id}"], f"job {handle.id}")
        if not said:
            raise TenfoldError(f"Slurm does not list job {handle.id}, so it ended a while ago: see `sacct --jobs {handle.id}`.")
        return said.split()[0]

    def _container(self, job: Job) -> str:
        """The options of pyxis for `srun`."""
        if self.image is None:
            return ""
        folders = dict.fromkeys([str(self.home), *(str(path.parent) for path in job.files)])
        mounts = ",".join(f"{folder}:{folder}" for folder in folders)
        return f" --container-image={shlex.quote(self.image)} --container-mounts={shlex.quote(mounts)}"
