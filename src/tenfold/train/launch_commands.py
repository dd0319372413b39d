"""Train a run, or a sweep of runs, as jobs of a cluster or of this machine."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from tenfold.launch.job import Resources, open_launcher
from tenfold.spec.commands import File, Folder, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Count, CountOrNone, Nodes, Port, Positive, Text
from tenfold.spec.units import parse_clock

Gpus = Annotated[int, Meta(ge=0, le=1024)]
GIB = 2**30


class ClusterOptions(Struct, frozen=True):
    """What is asked of a cluster."""

    nodes: Annotated[Nodes, Meta(description="Nodes to train on.")] = 1
    gpus_per_node: Annotated[Gpus, Meta(description="GPUs of a node; 0 trains on its CPU.")] = 8
    processes_per_node: Annotated[Count | None, Meta(description="Processes of a node; by default one for each GPU.")] = None
    cores_per_node: Annotated[CountOrNone, Meta(description="CPU cores of a node; 0 takes what the node has.")] = 0
    memory_gib: Annotated[Positive | None, Meta(description="Memory of a node that the job needs.")] = None
    least_nodes: Annotated[Nodes | None, Meta(description="Go on with so few when others are lost; by default all.")] = None
    limit: Annotated[str | None, Meta(description="Time limit, hours:minutes:seconds; Slurm is asked for 24:00:00.")] = None
    save_s: Annotated[Nodes, Meta(description="Seconds to save in, ahead of the limit or after SIGTERM.")] = 180
    restarts: Annotated[CountOrNone, Meta(description="Starts after processes were lost.")] = 100
    same_failures: Annotated[Count, Meta(description="End the job when it fails so often alike at the same step.")] = 2
    env: Annotated[tuple[str, ...], Meta(description="NAME=VALUE for the processes, such as NCCL_DEBUG=INFO; again for more.")] = ()
    home: Annotated[Text, Meta(description="Where corpora and runs are kept, on all nodes alike.")] = "generations"


class SystemOptions(Struct, frozen=True):
    """Options of the cluster's system; each launcher takes its own."""

    folder: Annotated[Folder, Meta(description="Folder of the job's file, record and log.", extra={"flag": "--out"})] = Path()
    port: Annotated[Port, Meta(description="Where the nodes meet on the first; other jobs on it need another.")] = 29400
    image: Annotated[str | None, Meta(description="The container image, for Kubernetes, or Slurm with pyxis.")] = None
    partition: Annotated[str | None, Meta(description="Slurm's partition.")] = None
    account: Annotated[str | None, Meta(description="Slurm's account.")] = None
    qos: Annotated[str | None, Meta(description="Slurm's quality of service.")] = None
    reservation: Annotated[str | None, Meta(description="Slurm's reservation.")] = None
    constraint: Annotated[str | None, Meta(description="Features of Slurm's nodes, such as 'h100&nvlink'.")] = None
    gres: Annotated[str | None, Meta(description="Further resources of Slurm's nodes, such as nic:4.")] = None
    switches: Annotated[str | None, Meta(description="Slurm: the most leaf switches, and how long to wait: 1@2:00:00.")] = None
    signal: Annotated[
        Literal["USR1", "TERM", "INT"] | None, Meta(description="What Slurm sends ahead of the limit, so that the run saves: USR1.")
    ] = None
    requeues: Annotated[CountOrNone | None, Meta(description="How often Slurm may queue the job again: 100.")] = None
    claim: Annotated[str | None, Meta(description="Kubernetes: the volume claim that --home is on: tenfold.")] = None
    queue: Annotated[str | None, Meta(description="Kubernetes: Kueue's queue.")] = None
    topology: Annotated[str | None, Meta(description="Kueue: the label of a level of nodes that all pods must share.")] = None
    gang: Annotated[
        Literal["coscheduling", "volcano"] | None, Meta(description="Kubernetes: the scheduler that starts all pods or none.")
    ] = None
    rdma: Annotated[tuple[str, ...] | None, Meta(description="Kubernetes: RDMA devices of a pod, such as rdma/hca=1.")] = None
    toleration: Annotated[tuple[str, ...] | None, Meta(description="Kubernetes: KEY=VALUE:EFFECT; again for more.")] = None
    node_selector: Annotated[tuple[str, ...] | None, Meta(description="Kubernetes: KEY=VALUE; again for more.")] = None
    priority_class: Annotated[str | None, Meta(description="Kubernetes: the priority class.")] = None
    pull_secret: Annotated[str | None, Meta(description="Kubernetes: the secret to pull the image with.")] = None
    working_dir: Annotated[Folder | None, Meta(description="Ray: a folder that the job runs in a copy of.")] = None


class JobOptions(Struct, frozen=True):
    """Which jobs are made, and whether they are submitted."""

    sweep: Annotated[tuple[str, ...], Meta(description="KEY=VALUE,VALUE: a job for each; again for their product.")] = ()
    at_once: Annotated[Count | None, Meta(description="How many jobs of a sweep run at a time, on Slurm; by default all.")] = None
    submit: Annotated[bool, Meta(description="Submit it too.")] = False


def launch(
    run: Annotated[File, Meta(description="A run file.")],
    /,
    *,
    on: Annotated[Text, Meta(description="The launcher: slurm, kubernetes, ray or local.")],
    asked: ClusterOptions = ClusterOptions(),
    system: SystemOptions = SystemOptions(),
    jobs: JobOptions = JobOptions(),
    json: Json = False,
) -> None:
    """Write the job file that trains a run on many machines, show it, and submit it if asked to.

    Examples:

      tenfold launch run.toml --on slurm --nodes 2048 --limit 48:00:00 --env NCCL_DEBUG=INFO --submit

      tenfold launch run.toml --on slurm --sweep optimizer.learning_rate=1e-3,3e-3 --sweep seed=0,1 --at-once 2 --submit

      tenfold launch run.toml --on kubernetes --nodes 4 --image registry.example/tenfold:1 --home /generations --queue research

      tenfold launch resize run --nodes 2      # also status, logs and cancel
    """
    from msgspec.structs import asdict as fields_of

    from tenfold.launch.job_files import JobFileLauncher
    from tenfold.launch.records import write_record
    from tenfold.train.jobs import command_job, write_sweep

    given = {name: value for name, value in fields_of(system).items() if value is not None}
    options = given | ({"home": asked.home} if on == "kubernetes" or (on == "slurm" and system.image) else {})
    launcher = open_launcher(on, **options)
    if not isinstance(launcher, JobFileLauncher):
        raise TenfoldError(f"The launcher {on!r} writes no job file: say slurm, kubernetes, ray or local.")
    if jobs.at_once is not None and not jobs.sweep:
        raise TenfoldError("--at-once is of a sweep: say --sweep KEY=VALUE,VALUE, too.")
    runs = write_sweep(run, jobs.sweep, system.folder) if jobs.sweep else [run]
    made = [command_job(one, _needs(asked), asked.home, **_fields(asked)) for one in runs]
    if jobs.submit:
        handles = []
        for handle in launcher.submit_all(run.stem, made, jobs.at_once):
            write_record(system.folder, on, options, handle)
            handles.append(handle)
        paths = list(dict.fromkeys(handle.file for handle in handles if handle.file is not None))
        said = "; ".join(dict.fromkeys(handle.said for handle in handles))
    else:
        paths, said = launcher.write_all(run.stem, made), None
    text = "\n".join(path.read_text() for path in paths)
    if json:
        print_json({"file": str(paths[0]), "files": [str(path) for path in paths], "job": text, "submitted": said})
        return
    print(text)
    print(f"Written to {', '.join(map(str, paths))}" + (f" and submitted: {said}" if jobs.submit else "."))


def _needs(asked: ClusterOptions) -> Resources:
    memory = round((asked.memory_gib or 0) * GIB)
    processes = asked.processes_per_node or asked.gpus_per_node or 1
    return Resources(asked.nodes, asked.least_nodes, processes, asked.cores_per_node, asked.gpus_per_node, memory)


def _fields(asked: ClusterOptions) -> dict[str, Any]:
    """The job's fields. Raises TenfoldError for an environment variable without a value."""
    pairs = [text.partition("=") for text in asked.env]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise TenfoldError(f"--env takes NAME=VALUE, such as NCCL_DEBUG=INFO, not {wrong[0]!r}.")
    return {
        "grace_s": asked.save_s, "time_limit_s": parse_clock(asked.limit) if asked.limit else None, "restarts": asked.restarts,
        "same_failures": asked.same_failures, "environment": {name: value for name, _, value in pairs},
    }  # fmt: skip
