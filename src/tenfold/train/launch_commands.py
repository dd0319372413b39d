"""`tenfold launch`: train a run, or a sweep of runs, as jobs on a cluster or on this machine."""

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
    """The resources and limits of a job."""

    nodes: Annotated[Nodes, Meta(description="Number of nodes to train on.")] = 1
    gpus_per_node: Annotated[Gpus, Meta(description="GPUs per node; 0 trains on the CPU.")] = 8
    processes_per_node: Annotated[Count | None, Meta(description="Processes per node; by default one for each GPU.")] = None
    cores_per_node: Annotated[CountOrNone, Meta(description="CPU cores per node; 0 uses all that the node has.")] = 0
    memory_gib: Annotated[Positive | None, Meta(description="Memory per node that the job requests, in GiB.")] = None
    least_nodes: Annotated[
        Nodes | None, Meta(description="Fewest nodes to go on with when others are lost; by default all are needed.")
    ] = None
    limit: Annotated[str | None, Meta(description="Time limit, hours:minutes:seconds; by default 24:00:00 on Slurm.")] = None
    save_s: Annotated[Nodes, Meta(description="Seconds reserved for saving before the time limit, or after SIGTERM.")] = 180
    restarts: Annotated[CountOrNone, Meta(description="How often the processes are restarted after some were lost.")] = 100
    same_failures: Annotated[Count, Meta(description="End the job after so many equal failures at the same step.")] = 2
    env: Annotated[
        tuple[str, ...], Meta(description="Environment variable NAME=VALUE for the processes; repeat the option for more.")
    ] = ()
    home: Annotated[Text, Meta(description="Folder for corpora and runs, at the same path on all nodes.")] = "generations"


class SystemOptions(Struct, frozen=True):
    """Options of the launchers; each launcher accepts only its own."""

    folder: Annotated[
        Folder, Meta(description="Folder to write the job file, its record and its log to.", extra={"flag": "--out"})
    ] = Path()
    port: Annotated[
        Port, Meta(description="TCP port on the first node where the nodes meet; jobs that share this node need different ones.")
    ] = 29400
    image: Annotated[str | None, Meta(description="Container image, for Kubernetes, or for Slurm with pyxis.")] = None
    partition: Annotated[str | None, Meta(description="Slurm's partition.")] = None
    account: Annotated[str | None, Meta(description="Slurm's account.")] = None
    qos: Annotated[str | None, Meta(description="Slurm's quality of service.")] = None
    reservation: Annotated[str | None, Meta(description="Slurm's reservation.")] = None
    constraint: Annotated[str | None, Meta(description="Slurm: features that the nodes must have, such as 'h100&nvlink'.")] = None
    gres: Annotated[str | None, Meta(description="Slurm: further generic resources per node, such as nic:4.")] = None
    switches: Annotated[
        str | None, Meta(description="Slurm: the most leaf switches, and how long to wait for them, such as 1@2:00:00.")
    ] = None
    signal: Annotated[
        Literal["USR1", "TERM", "INT"] | None,
        Meta(description="Slurm: signal to send before the time limit, so that the run saves; by default USR1."),
    ] = None
    requeues: Annotated[CountOrNone | None, Meta(description="Slurm: how often the job may be requeued; by default 100.")] = None
    claim: Annotated[
        str | None, Meta(description="Kubernetes: the persistent volume claim that holds --home; by default tenfold.")
    ] = None
    queue: Annotated[str | None, Meta(description="Kubernetes: the Kueue queue.")] = None
    topology: Annotated[
        str | None, Meta(description="Kueue: node label of a topology level; all pods must run within one of its domains.")
    ] = None
    gang: Annotated[
        Literal["coscheduling", "volcano"] | None, Meta(description="Kubernetes: gang scheduler, which starts all pods or none.")
    ] = None
    rdma: Annotated[tuple[str, ...] | None, Meta(description="Kubernetes: RDMA devices per pod, such as rdma/hca=1.")] = None
    toleration: Annotated[
        tuple[str, ...] | None, Meta(description="Kubernetes: a toleration KEY=VALUE:EFFECT; repeat the option for more.")
    ] = None
    node_selector: Annotated[
        tuple[str, ...] | None, Meta(description="Kubernetes: a node selector KEY=VALUE; repeat the option for more.")
    ] = None
    priority_class: Annotated[str | None, Meta(description="Kubernetes: the priority class.")] = None
    pull_secret: Annotated[str | None, Meta(description="Kubernetes: the secret to pull the image with.")] = None
    working_dir: Annotated[Folder | None, Meta(description="Ray: a folder to copy to the cluster and run the job in.")] = None


class JobOptions(Struct, frozen=True):
    """Which jobs are written, and whether they are submitted."""

    sweep: Annotated[
        tuple[str, ...],
        Meta(description="KEY=VALUE,VALUE: one job for each value; repeat the option for all combinations of several settings."),
    ] = ()
    at_once: Annotated[Count | None, Meta(description="Slurm: how many jobs of a sweep may run at once; by default all.")] = None
    submit: Annotated[bool, Meta(description="Also submit the job.")] = False


def launch(
    run: Annotated[File, Meta(description="The run file.")],
    /,
    *,
    on: Annotated[Text, Meta(description="The launcher: slurm, kubernetes, ray or local.")],
    asked: ClusterOptions = ClusterOptions(),
    system: SystemOptions = SystemOptions(),
    jobs: JobOptions = JobOptions(),
    json: Json = False,
) -> None:
    """Write the job file that trains a run on many machines, print it, and with --submit also submit it.

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
        raise TenfoldError(f"The launcher {on!r} does not write job files: give --on slurm, kubernetes, ray or local.")
    if jobs.at_once is not None and not jobs.sweep:
        raise TenfoldError("--at-once needs a sweep: give --sweep KEY=VALUE,VALUE too.")
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
    """The fields of `Job` that the options set. Raises TenfoldError for an environment variable without a value."""
    pairs = [text.partition("=") for text in asked.env]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise TenfoldError(f"--env takes NAME=VALUE, such as NCCL_DEBUG=INFO, not {wrong[0]!r}.")
    return {
        "grace_s": asked.save_s, "time_limit_s": parse_clock(asked.limit) if asked.limit else None, "restarts": asked.restarts,
        "same_failures": asked.same_failures, "environment": {name: value for name, _, value in pairs},
    }  # fmt: skip
