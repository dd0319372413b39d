"""Job files: what Slurm, Kubernetes and Ray start a command from. They are made from `templates/`, which are meant to be read.

On each node the command runs once, or under one `torchrun`, whose processes meet at the first node.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jinja2

from tenfold.launch.command import command_words
from tenfold.launch.job import Job, Launcher
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_text


@dataclass(frozen=True)
class JobFileLauncher(Launcher):
    """Writes a job's file to `folder`, and hands it in. The nodes of a job meet at `port` of the first."""

    folder: Path = Path()
    port: int = 29400

    template: ClassVar[str]
    python: ClassVar[str] = "python"  # of an image, or of the cluster's nodes

    def write(self, job: Job) -> Path:
        """Write the job file; returns its path. Raises TenfoldError for a job that the system does not take."""
        if job.function is not None:
            raise TenfoldError(f"{self.template.split('.')[0].title()} starts command lines, and {job.name!r} is a function.")
        self.check(job)
        write_text(self.path(job), self._render(job))
        return self.path(job)

    def path(self, job: Job) -> Path:
        """Where the job file is written."""
        return self.folder / f"{file_name(job)}.{self.template}"

    def check(self, job: Job) -> None:
        """Raise TenfoldError for a job that this system does not take."""

    def facts(self, job: Job) -> dict[str, Any]:
        """Further values for the template."""
        return {}

    def words(self, job: Job) -> Job:
        """The job with its command as the nodes see it."""
        return job

    def _render(self, job: Job) -> str:
        # Files for people and other programs, not HTML: values are quoted where they stand.
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("tenfold.launch"), undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
        )
        environment.filters |= {"json": json.dumps, "quoted": shlex.quote}
        seen = self.words(job)

        def command(rendezvous_id: str, endpoint: str) -> list[str]:
            meet = ("--rdzv-backend=c10d", f"--rdzv-id={rendezvous_id}", f"--rdzv-endpoint={endpoint}")
            return command_words(seen, self.python, meet)

        facts = {"job": job, "needs": job.resources, "name": file_name(job), "port": self.port, "command": command}
        return environment.get_template(f"{self.template}.jinja").render(**facts, **self.facts(job)) + "\n"


def file_name(job: Job) -> str:
    """The job's name as Kubernetes takes it: lower-case letters, digits and hyphens, at most 50."""
    return f"tenfold-{re.sub(r'[^a-z0-9]+', '-', job.name.lower())}"[:50].strip("-")


def call(program: str, arguments: Sequence[str], about: str) -> str:
    """What a system's program answers. Raises TenfoldError where it is missing or refuses, with its last line."""
    if shutil.which(program) is None:
        raise TenfoldError(f"{program} is not on this machine: it is needed for {about}; do that from one that has it.")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TenfoldError(f"{program} did not take {about}: {lines[-1]}")
    return done.stdout.strip()
