"""Job files that run `tenfold train` on a cluster: an sbatch script, a Kubernetes manifest, a Ray job.

A node runs one `torchrun` (`python -m torch.distributed.run`), whose workers meet at the first node. The files are made
from `templates/`, which are meant to be read.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jinja2

from tenfold.launch.options import Launch
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import read_config

SYSTEMS = {"slurm": "slurm.sh", "kubernetes": "kubernetes.yaml", "ray": "ray.py"}
PROGRAMS = {"slurm": "sbatch", "kubernetes": "kubectl", "ray": "ray"}


def write_job(launch: Launch, system: str, folder: Path) -> Path:
    """Write the job file of `launch` for `system` (one of `SYSTEMS`) to `folder`; returns its path.

    Raises TenfoldError for a run file that is not one, and for values that no cluster takes.
    """
    _check(launch, system)
    path = folder / f"{launch.name}.{SYSTEMS[system]}"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(_render(launch, system))
    return path


def submit(path: Path, system: str, save_s: int) -> str:
    """Hand a job file to its system; returns what it answered. Raises TenfoldError where that fails."""
    program = PROGRAMS[system]
    if shutil.which(program) is None:
        raise TenfoldError(f"{program} is not on this machine: submit {path} from one that has it.")
    # Ray kills a job three seconds after SIGTERM unless it is told to wait.
    wait = f'{{"env_vars": {{"RAY_JOB_STOP_WAIT_TIME_S": "{save_s}"}}}}'
    arguments = {
        "slurm": [str(path)],
        "kubernetes": ["apply", "-f", str(path)],
        "ray": ["job", "submit", "--no-wait", "--runtime-env-json", wait, "--", "python", str(path.resolve())],
    }
    done = subprocess.run([program, *arguments[system]], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TenfoldError(f"{program} did not take {path}: {lines[-1]}")
    return done.stdout.strip()


def _check(launch: Launch, system: str) -> None:
    if system not in SYSTEMS:
        raise TenfoldError(f"There is no way to launch on {system!r}: say slurm, kubernetes or ray.")
    read_config(launch.run)
    for name in ("nodes", "least_nodes", "save_s"):
        value = getattr(launch, name)
        if value is not None and value < 1:
            raise TenfoldError(f"A launch needs at least 1 as {name}, not {value}.")
    if launch.gpus_per_node < 0:
        raise TenfoldError(f"A node cannot have {launch.gpus_per_node} GPUs.")
    if launch.least_nodes is not None and launch.least_nodes > launch.nodes:
        raise TenfoldError(f"A launch on {launch.nodes} nodes cannot need {launch.least_nodes} at least.")
    if not re.fullmatch(r"(\d+-)?\d{1,3}:\d\d:\d\d", launch.limit):
        raise TenfoldError(f"The time limit {launch.limit!r} is not one: write hours:minutes:seconds, such as 24:00:00.")
    if system == "kubernetes" and launch.image is None:
        raise TenfoldError("Kubernetes needs a container image that holds tenfold: say --image.")
    if system == "kubernetes" and not launch.home.startswith("/"):
        raise TenfoldError(f"In a container the home {launch.home!r} must be an absolute path: say --home /generations.")


def _render(launch: Launch, system: str) -> str:
    # Files for people and other programs, not HTML: values are quoted where they stand.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tenfold.launch"), undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters |= {"json": json.dumps, "words": shlex.split}
    run = "/run/tenfold/run.toml" if system == "kubernetes" else str(launch.run.resolve())

    # Slurm's nodes share this one's file system, and so its Python; an image and a Ray cluster have their own.
    python = shlex.quote(sys.executable) if system == "slurm" else "python"

    def torchrun(rendezvous_id: str, endpoint: str) -> str:
        return _torchrun(launch, python, run, rendezvous_id, endpoint)

    template = environment.get_template(f"{SYSTEMS[system]}.jinja")
    facts = {**asdict(launch), "run": run, "name": launch.name, "run_text": launch.run.read_text()}
    return template.render(**facts, torchrun=torchrun) + "\n"


def _torchrun(launch: Launch, python: str, run: str, rendezvous_id: str, endpoint: str) -> str:
    """The command of one node. A signal that torchrun gets goes to its workers, which then have `save_s` to save."""
    least = launch.least_nodes or launch.nodes
    directory = Path(launch.home) / launch.run.stem
    # Of its own accord an agent keeps one store over all starts, where a start may read the addresses of the one before.
    return (
        f"env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 {python} -m torch.distributed.run --nnodes={least}:{launch.nodes} "
        f"--nproc-per-node={launch.gpus_per_node or 1} --max-restarts=100 "
        f"--rdzv-backend=c10d --rdzv-id={rendezvous_id} --rdzv-endpoint={endpoint} "
        f"--signals-to-handle=SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout={max(1, launch.save_s - 20)} "
        f"-m tenfold train {shlex.quote(run)} --out {shlex.quote(str(directory))} --home {shlex.quote(launch.home)}"
    )
