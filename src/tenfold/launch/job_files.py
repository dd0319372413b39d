"""Job files, from which Slurm, Kubernetes, Ray and this machine start a command. Their Jinja templates are in `templates/`.

On each node the command runs once, or under one `torchrun`; the `torchrun`s of all nodes meet at the first node.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import jinja2

from tenfold.launch.command import command_words
from tenfold.launch.job import Job, Launcher
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_text

MOST_NAME = 50  # characters: Kubernetes allows 63 for a Service, and a pod's name is longer than its job's


@dataclass(frozen=True)
class JobFileLauncher(Launcher):
    """Writes a job's file to `folder` and submits it. The nodes of a job meet at TCP port `port` of the first node."""

    folder: Path = Path()
    port: int = 29400

    template: ClassVar[str]

    @property
    def python(self) -> str:
        """The interpreter that `python` in a command stands for: that of the container image or of the cluster's nodes."""
        return "python"

    def write(self, job: Job, members: Sequence[Job] = ()) -> Path:
        """Write the job file; returns its path. `members` are the jobs of an array, which differ in their commands only.

        Raises TenfoldError for a job that the system does not accept.
        """
        if job.function is not None:
            system = self.template.split(".")[0].title()
            raise TenfoldError(f"{system} starts only command lines, and the job {job.name!r} is a function: run it on local.")
        self.check(job)
        write_text(self.path(job), self._render(job, members or [job]))
        return self.path(job)

    def write_all(self, name: str, jobs: Sequence[Job]) -> list[Path]:
        """Write the job files of the sweep `name`; returns their paths."""
        return [self.write(job) for job in jobs]

    def path(self, job: Job) -> Path:
        """Where the job file is written."""
        return self.folder / f"{file_name(job)}.{self.template}"

    def facts(self, job: Job) -> dict[str, Any]:
        """Further values for the template."""
        return {}

    def words(self, job: Job) -> Job:
        """The job with its command's paths as they are on the nodes."""
        return job

    def _render(self, job: Job, members: Sequence[Job]) -> str:
        # The files are no HTML: the templates quote each value for its own format.
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("tenfold.launch"), undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
        )
        environment.filters |= {"json": yaml_text, "quoted": shlex.quote, "sbatch": sbatch_quoted, "shell": shell_line}

        def command(job: Job, rendezvous_id: str, endpoint: str, nodes: str = "") -> list[str]:
            meet = ("--rdzv-backend=c10d", f"--rdzv-id={rendezvous_id}", f"--rdzv-endpoint={endpoint}")
            return command_words(self.words(job), self.python, meet, nodes)

        facts = {"job": job, "members": members, "needs": job.resources, "name": file_name(job), "port": self.port}
        template = environment.get_template(f"{self.template}.jinja")
        return template.render(**facts, command=command, later=later, **self.facts(job)) + "\n"


def later(name: str) -> str:
    """A placeholder, within a word of a command, for the shell variable `name`, which is set when the job runs.

    It is enclosed in zero bytes, which no word of a command can contain.
    """
    return f"\0{name}\0"


def shell_line(words: Sequence[str]) -> str:
    """The words as a line of bash: quoted, and with a shell variable in the place of each placeholder of `later`."""

    def quoted(word: str) -> str:
        parts = enumerate(re.split("\0(.*?)\0", word))
        return "".join(f'"${part}"' if i % 2 else shlex.quote(part) for i, part in parts if part) or "''"

    return " ".join(map(quoted, words))


def sbatch_quoted(value: str) -> str:
    """A value quoted for a line #SBATCH. Unlike a shell, `sbatch` reads a backslash as an escape even in single quotes."""
    return value if re.fullmatch(r"[\w./:,@%+&=-]+", value, re.ASCII) else "'" + re.sub(r"([\\'])", r"\\\1", value) + "'"


def yaml_text(value: Any) -> str:
    """A value as JSON that is also valid YAML: a character beyond 16 bits becomes one escape instead of a surrogate pair."""

    def one(found: re.Match[str]) -> str:
        if not found[1]:
            return found[0]  # an escaped backslash
        (letter,) = json.loads('"' + found[1] + '"')
        return f"\\U{ord(letter):08x}"

    return re.sub(r"\\\\|(\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})", one, json.dumps(value)).replace("\x7f", "\\x7f")


def file_name(job: Job) -> str:
    """The job's name as Kubernetes accepts it: at most 50 lower-case letters, digits and hyphens.

    A longer name, or one of other letters than those of ASCII, ends in a hash: two such names must not have one file.
    """
    name = f"tenfold-{re.sub(r'[^a-z0-9]+', '-', job.name.lower())}".strip("-")
    if len(name) <= MOST_NAME and job.name.isascii():
        return name
    return f"{name[: MOST_NAME - 9].strip('-')}-{sha256(job.name.encode()).hexdigest()[:8]}"


def shipped(job: Job) -> dict[str, Path]:
    """The job's files by the names that their copies get on another machine: valid keys of a Kubernetes ConfigMap.

    Raises TenfoldError if two files would get the same name.
    """
    found: dict[str, Path] = {}
    for path in job.files:
        name = re.sub(r"[^-._a-zA-Z0-9]", "-", path.name)
        if name in found:
            raise TenfoldError(f"{found[name]} and {path} would both be named {name} where the job {job.name!r} runs: rename one.")
        found[name] = path
    return found


def call(program: str, arguments: Sequence[str], about: str) -> str:
    """Run a system's program, such as sbatch, and return what it prints. `about` names the subject in errors.

    Raises TenfoldError if the program is missing, or if it fails, with the last line that it printed.
    """
    if shutil.which(program) is None:
        raise TenfoldError(f"{program} is not on this machine, but {about} needs it: run this command where it is installed.")
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TenfoldError(f"{program} failed on {about}: {lines[-1]}")
    return done.stdout.strip()


def last_lines(path: Path, lines: int) -> str:
    """The last `lines` lines of a log; an empty text if the file does not exist yet."""
    if not path.exists():
        return ""
    with path.open(encoding="utf-8", errors="replace") as stream:
        return "".join(deque(stream, lines)).rstrip("\n")
