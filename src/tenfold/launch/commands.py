"""Commands for jobs that were submitted by `tenfold launch --submit`: status, logs, cancel, resize."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.spec.commands import Folder, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Count, CountOrNone, Nodes, Text

Name = Annotated[Text, Meta(description="The job: the name of its run file.")]
Where = Annotated[Folder, Meta(description="The folder with the job's record: the --out of `tenfold launch`.")]


def status(
    name: Annotated[Text | None, Meta(description="The job: the name of its run file; by default all jobs.")] = None,
    /,
    *,
    out: Where = Path(),
    json: Json = False,
) -> None:
    """Show whether jobs are waiting, running, finished, failed or stopped.

    Example: tenfold launch status run
    """
    from tenfold.launch.records import find_records, read_record

    found = []
    for path in find_records(out, name):
        on, _, launcher, handle = read_record(path)
        job = {"name": handle.job.name, "on": on, "id": handle.id, "nodes": handle.job.resources.nodes}
        try:
            found.append(job | {"status": launcher.status(handle)})
        except TenfoldError as error:  # go on with the other jobs
            found.append(job | {"status": "unknown", "error": str(error)})
    if json:
        print_json({"jobs": found})
        return
    for job in found:
        print(f"{job['name']}: {job['status']} ({job['on']} {job['id']}, nodes: {job['nodes']}) {job.get('error', '')}".rstrip())
    if not found:
        print(f"No job was submitted from {out.resolve()}.")


def logs(
    name: Name,
    /,
    *,
    lines: Annotated[Count, Meta(description="The number of lines to show.")] = 100,
    out: Where = Path(),
) -> None:
    """Show the last lines that a job printed.

    Example: tenfold launch logs run --lines 20
    """
    from tenfold.launch.records import find_records, read_record

    _, _, launcher, handle = read_record(find_records(out, name)[0])
    if said := launcher.logs(handle, lines):
        print(said)


def cancel(
    name: Name,
    /,
    *,
    now: Annotated[bool, Meta(description="End the job at once, without letting it save.")] = False,
    out: Where = Path(),
    json: Json = False,
) -> None:
    """End a job. It may save first; if that takes longer than the grace period that it was submitted with, it is killed.

    Example: tenfold launch cancel run
    """
    from tenfold.launch.records import find_records, read_record, write_record

    on, options, launcher, handle = read_record(find_records(out, name)[0])
    if launcher.status(handle) in ("finished", "failed", "stopped"):
        raise TenfoldError(f"The job {name!r} has ended already: see `tenfold launch logs {name}`.")
    handle.drained = True
    write_record(out, on, options, handle)
    left = not now and launcher.drain(handle, handle.job.grace_s)
    if now:
        launcher.stop(handle)
    if json:
        print_json({"name": handle.job.name, "id": handle.id, "saved": left})
        return
    print(f"{handle.job.name} has ended." if left else f"{handle.job.name} was killed; what it saved before is kept.")


def resize(
    name: Name,
    /,
    *,
    nodes: Annotated[Nodes | None, Meta(description="Nodes; by default as many as before.")] = None,
    gpus_per_node: Annotated[CountOrNone | None, Meta(description="GPUs on each node; by default as many as before.")] = None,
    processes_per_node: Annotated[
        Count | None, Meta(description="Processes on each node; by default as before, or one for each of --gpus-per-node.")
    ] = None,
    out: Where = Path(),
    json: Json = False,
) -> None:
    """Let a training job save and go on with another size; the batch and the order of the data stay the same.

    Example: tenfold launch resize run --nodes 2
    """
    from tenfold.launch.records import find_records, read_record, write_record

    on, options, launcher, handle = read_record(find_records(out, name)[0])
    if launcher.status(handle) not in ("waiting", "running"):
        raise TenfoldError(f"The job {name!r} has ended: `tenfold launch --submit` starts it again, in any size.")
    now = handle.job.resources
    gpus = now.gpus if gpus_per_node is None else gpus_per_node
    processes = processes_per_node or (now.processes if gpus_per_node is None else gpus or 1)
    least = min(now.least_nodes, nodes) if now.least_nodes and nodes else now.least_nodes
    wanted = replace(now, nodes=nodes or now.nodes, least_nodes=least, processes=processes, gpus=gpus)
    if wanted == now:
        raise TenfoldError(f"The job {name!r} has this size already: change --nodes, --gpus-per-node or --processes-per-node.")
    handle = launcher.resize(handle, wanted)
    write_record(out, on, options, handle)
    if json:
        print_json({"name": handle.job.name, "id": handle.id, "nodes": handle.job.resources.nodes})
        return
    print(f"{handle.job.name} goes on with {wanted.nodes} nodes of {wanted.processes} processes ({on} {handle.id}).")
