"""Run on a cluster."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.launch.options import Launch
from tenfold.spec.commands import Given, Json, print_json


class JobOptions(Struct, frozen=True):
    """What is done with a job file."""

    out: Annotated[Path, Meta(description="Folder that the job file is written to.")] = Path()
    submit: Annotated[bool, Meta(description="Submit it too.")] = False
    json: Json = False


def launch(
    run: Annotated[Path, Meta(description="A run file.")],
    /,
    *,
    on: Annotated[Literal["slurm", "kubernetes", "ray"], Meta(description="The cluster's system.")],
    nodes: Annotated[int, Meta(description="Nodes to train on.")],
    asked: Given[Launch],
    job: JobOptions = JobOptions(),
) -> None:
    """Write the job file that trains a run on many machines, show it, and submit it if asked to.

    Examples:

      tenfold launch run.toml --on slurm --nodes 2048 --limit 48:00:00 --submit

      tenfold launch run.toml --on kubernetes --nodes 4 --image registry.example/tenfold:1 --home /generations
    """
    from tenfold.launch import job_files

    wanted = Launch(run, nodes, **asked)
    path = job_files.write_job(wanted, on, job.out)
    answer = job_files.submit(path, on, wanted.save_s) if job.submit else None
    if job.json:
        print_json({"file": str(path), "job": path.read_text(), "submitted": answer})
        return
    print(path.read_text())
    print(f"Written to {path}." if answer is None else f"Written to {path} and submitted: {answer}")
