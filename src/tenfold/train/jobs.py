"""Train with several processes, on this machine or as a job on a cluster."""

import functools
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tenfold.launch.job import Job, JobStopped, Launcher, Resources, run
from tenfold.spec.errors import TenfoldError, when_stopped
from tenfold.train.config import RunConfig
from tenfold.train.hook import Hook
from tenfold.train.parallel.processes import start_processes
from tenfold.train.result import RunResult
from tenfold.train.run_file import read_config, write_config
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

RESTARTS = 100  # how often a job is restarted after processes were lost


def train_on(launcher: Launcher, resources: Resources, config: RunConfig, directory: Path, home: Path, **more: Any) -> RunResult:
    """Train with the processes of `resources`, restarting from the last checkpoint whenever processes are lost.

    `more` are further arguments of `run_job`. Raises TenfoldError for a failure that a restart would not fix, and if the run was
    stopped.
    """
    open_task(config, home, quiet=more.get("quiet", False))  # prepares the data once, before several processes need it
    goes_on = f"`tenfold resume {directory}` goes on from the last save"
    try:
        with when_stopped(goes_on):
            return run(launcher, run_job(resources, config, directory, home, **more))
    except JobStopped as stop:
        raise TenfoldError(f"{str(stop).rstrip('.')}: {goes_on}.") from None


def run_job(
    resources: Resources, config: RunConfig, directory: Path, home: Path, *, quiet: bool = False, grace_s: int = 30,
    work: Any = None,
) -> Job:  # fmt: skip
    """The job that trains a run. `work` replaces `train_process`, to inject faults in tests."""
    return Job(
        directory.name, function=work or train_process, arguments=(config, directory, home, quiet), resources=resources,
        restarts=RESTARTS, grace_s=grace_s, directory=directory,
    )  # fmt: skip


def train_process(config: RunConfig, directory: Path, home: Path, quiet: bool, more: Sequence[Hook] = ()) -> RunResult:
    """The work of each process of a run, with `more` hooks after the standard ones."""
    start_processes(config.health.hang_after_s)
    return fit(open_task(config, home, quiet=quiet), config, directory, [*standard_hooks(config, quiet=quiet), *more])


def command_job(run_file: Path, resources: Resources, home: str, **fields: Any) -> Job:
    """A cluster job that runs `tenfold train` on a run file; `fields` are further fields of `Job`.

    Raises TenfoldError if the file is not a valid run file.
    """
    read_config(run_file)
    path, kept = str(run_file.resolve()), Path(home).absolute()  # absolute, because the job may start in another folder
    command = "python", "-m", "tenfold", "train", path, "--out", str(kept / run_file.stem), "--home", str(kept)
    return Job(run_file.stem, command=command, resources=resources, files=(Path(path),), **{"restarts": RESTARTS, **fields})


def write_sweep(run_file: Path, sweep: Sequence[str], folder: Path) -> list[Path]:
    """Write one run file to `folder` for each combination of values in `sweep`, such as `("seed=0,1", "optimizer.beta2=0.9,0.99")`.

    Returns the paths of the files. Raises TenfoldError for an unknown setting or an invalid value.
    """
    axes: dict[str, list[str]] = {}
    for axis in sweep:
        key, sign, values = (part.strip() for part in axis.partition("="))
        if not sign or not all(values.split(",")):
            raise TenfoldError(f"--sweep takes KEY=VALUE,VALUE, such as optimizer.learning_rate=1e-3,3e-3, not {axis!r}.")
        if again := [other for other in axes if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.")]:
            raise TenfoldError(f"--sweep gives {key} twice, by {again[0]} too: give all its values at once, separated by commas.")
        axes[key] = values.split(",")
    configs = [read_config(run_file, _tables(dict(zip(axes, choice, strict=True)))) for choice in itertools.product(*axes.values())]
    paths = [folder / f"{run_file.stem}-{i}.toml" for i in range(len(configs))]
    for config, path in zip(configs, paths, strict=True):
        write_config(config, path)
    return paths


def _tables(settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings with dotted keys as nested tables. A value that is not valid TOML is taken as a string."""
    tables: dict[str, Any] = {}
    for key, text in settings.items():
        *outer, last = key.split(".")
        table = functools.reduce(lambda found, name: found.setdefault(name, {}), outer, tables)
        try:
            table[last] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[last] = text.strip()
    return tables
