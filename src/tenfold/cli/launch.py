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
    limit: Annotated[str, typer.Option(help="Time asked of Slurm, hours:minutes:seconds.")] = "24:00:00",
    save_s: Annotated[int, typer.Option(help="Seconds to save in, ahead of the limit or after SIGTERM.")] = 180,
    home: Annotated[str, typer.Option(help="Where corpora and runs are kept, on all nodes alike.")] = "generations",
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's account.")] = None,
    image: Annotated[str | None, typer.Option(help="The container image, for Kubernetes.")] = None,
    claim: Annotated[str, typer.Option(help="The volume claim that --home is on, for Kubernetes.")] = "tenfold",
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
    from tenfold.launch import job_files as launching

    asked = launching.Launch(run, nodes, gpus_per_node, least_nodes, limit, save_s, home, partition, account, image, claim, port)
    path = launching.write_job(asked, on, out)
    answer = launching.submit(path, on, save_s) if submit else None
    if as_json:
        print_json({"file": str(path), "job": path.read_text(), "submitted": answer})
        return
    print(path.read_text())
    print(f"Written to {path}." if answer is None else f"Written to {path} and submitted: {answer}")
