"""`tenfold launch`: the same run on a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli import AsJson, app, print_json


@app.command("launch")
def launch(
    run: Annotated[Path, typer.Argument(help="A run file.")],
    on: Annotated[str, typer.Option(help="slurm, kubernetes or ray.")],
    nodes: Annotated[int, typer.Option(help="Nodes to train on.")],
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of a node; 0 trains on its CPU.")] = 8,
    least_nodes: Annotated[int | None, typer.Option(help="Go on with so few when others are lost; by default all.")] = None,
    limit: Annotated[str | None, typer.Option(help="Time limit, hours:minutes:seconds; Slurm is asked for 24:00:00.")] = None,
    save_s: Annotated[int, typer.Option(help="Seconds to save in, ahead of the limit or after SIGTERM.")] = 180,
    home: Annotated[str, typer.Option(help="Where corpora and runs are kept, on all nodes alike.")] = "generations",
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's account.")] = None,
    image: Annotated[str | None, typer.Option(help="The container image, for Kubernetes.")] = None,
    claim: Annotated[str | None, typer.Option(help="The volume claim that --home is on, for Kubernetes: tenfold.")] = None,
    port: Annotated[int, typer.Option(help="Where the nodes meet on the first; other jobs on it need another.")] = 29400,
    out: Annotated[Path, typer.Option(help="Where the job file is written.")] = Path(),
    submit: Annotated[bool, typer.Option("--submit", help="Submit it too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the job file that trains a run on many machines, show it, and submit it if asked to.

    Examples:

      tenfold launch run.toml --on slurm --nodes 2048 --limit 48:00:00 --submit

      tenfold launch run.toml --on kubernetes --nodes 4 --image registry.example/tenfold:1 --home /generations
    """
    from tenfold.launch.job import Resources, open_launcher
    from tenfold.launch.job_files import JobFileLauncher
    from tenfold.spec.errors import TenfoldError
    from tenfold.spec.units import parse_clock
    from tenfold.train.jobs import command_job

    options = {"partition": partition, "account": account, "image": image, "claim": claim}
    options |= {"home": home} if on == "kubernetes" else {}
    launcher = open_launcher(on, folder=out, port=port, **options)
    if not isinstance(launcher, JobFileLauncher):
        raise TenfoldError(f"The launcher {on!r} writes no job file: say slurm, kubernetes or ray.")
    needs = Resources(nodes, least_nodes, processes=gpus_per_node or 1, gpus=gpus_per_node)
    job = command_job(run, needs, home, grace_s=save_s, time_limit_s=parse_clock(limit) if limit else None)
    handle = launcher.submit(job) if submit else None
    path = launcher.write(job) if handle is None else launcher.path(job)
    answer = handle.said if handle else None
    if as_json:
        print_json({"file": str(path), "job": path.read_text(), "submitted": answer})
        return
    print(path.read_text())
    print(f"Written to {path}." if answer is None else f"Written to {path} and submitted: {answer}")
