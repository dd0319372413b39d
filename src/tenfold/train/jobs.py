"""A run on several processes: of this machine, or as a job for a cluster."""

from pathlib import Path
from typing import Any

from tenfold.launch.job import Job, JobStopped, Launcher, Resources, run
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.parallel.processes import start_processes
from tenfold.train.result import RunResult
from tenfold.train.run_file import read_config
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

RESTARTS = 100


def train_on(launcher: Launcher, resources: Resources, config: RunConfig, directory: Path, home: Path, **more: Any) -> RunResult:
    """Train with the processes of `resources`, going on from the last checkpoint whenever some are lost.

    `more` are fields of `run_job`. Raises TenfoldError for what another start would not mend, and when it was stopped.
    """
    open_task(config, home, quiet=more.get("quiet", False))  # its data is made once, before there are several processes
    try:
        return run(launcher, run_job(resources, config, directory, home, **more))
    except (JobStopped, KeyboardInterrupt) as stop:
        said = str(stop) or "Stopped by Ctrl-C."
        raise TenfoldError(f"{said.rstrip('.')}: `tenfold resume {directory}` goes on from the last save.") from None


def run_job(
    resources: Resources, config: RunConfig, directory: Path, home: Path, *, quiet: bool = False, grace_s: int = 30,
    work: Any = None,
) -> Job:  # fmt: skip
    """The job of a run. `work` takes the place of `train_process` (to inject faults)."""
    return Job(
        directory.name, function=work or train_process, arguments=(config, directory, home, quiet), resources=resources,
        restarts=RESTARTS, grace_s=grace_s, directory=directory,
    )  # fmt: skip


def train_process(config: RunConfig, directory: Path, home: Path, quiet: bool) -> RunResult:
    """What each process does."""
    start_processes(config.health.hang_after_s)
    return fit(open_task(config, home, quiet=quiet), config, directory, standard_hooks(config, quiet=quiet))


def command_job(run_file: Path, resources: Resources, home: str, *, grace_s: int = 180, time_limit_s: int | None = None) -> Job:
    """`tenfold train` of a run file as a job for a cluster. Raises TenfoldError for a file that is not one."""
    read_config(run_file)
    path, directory = str(run_file.resolve()), str(Path(home) / run_file.stem)
    return Job(
        run_file.stem, command=("python", "-m", "tenfold", "train", path, "--out", directory, "--home", home), resources=resources,
        restarts=RESTARTS, grace_s=grace_s, time_limit_s=time_limit_s, files=(Path(path),),
    )  # fmt: skip
