"""The processes of one job on this machine, started together again when one is lost, under PyTorch's elastic agent.

It is what `torchrun` does on a node, but for the start: PyTorch is imported once and each process is forked from there, so
that a new set of them is up in a second or two.
"""

import multiprocessing
import os
import shutil
import uuid
from typing import Any

from torch.distributed.elastic.agent.server.api import SignalException
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tenfold.launch.child import follow_parent, set_threads
from tenfold.launch.failures import SAME_FAILURES, hopeless, noted
from tenfold.launch.job import Job, JobStopped
from tenfold.spec.errors import TenfoldError


def run_group(job: Job) -> Any:
    """Run the job's function in all its processes, and start all again when one is lost; returns the result of rank 0.

    Raises TenfoldError for a failure that another start would not mend, and where the starts are used up.
    """
    assert job.directory is not None and job.function is not None
    # FSDP imports `torch._dynamo` when it is first used, which takes seconds: the server of forks imports it once for all.
    multiprocessing.set_forkserver_preload([job.function.__module__, "torch._dynamo"])
    run_id = uuid.uuid4().hex
    # Each start has an agent and a store of its own: in a store kept from the last start, a process could find the address of
    # a process that is gone.
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=job.resources.processes, run_id=run_id, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, start_method="forkserver",
        shutdown_timeout=job.grace_s, logs_specs=DefaultLogsSpecs(), signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )  # fmt: skip
    said = ""
    for _ in range(1 + job.restarts):
        try:
            result = elastic_launch(launch, _member)(job)[0]
            shutil.rmtree(job.directory / "failures", ignore_errors=True)
            return result
        except SignalException as stop:
            raise JobStopped(f"Stopped by {stop.sigval.name}.") from None
        except ChildFailedError as failed:
            if sentence := hopeless(job.directory, run_id, job.same_failures):
                raise TenfoldError(sentence) from None
            rank, failure = failed.get_first_failure()
            said = f"process {rank} said: {failure.message}"
    raise TenfoldError(f"{job.name} was started {1 + job.restarts} times and failed each time; {said}")


def _member(job: Job) -> Any:
    """One process of the group."""
    assert job.directory is not None and job.function is not None
    os.setpgid(0, follow_parent(job.grace_s))
    set_threads(job.resources.threads)
    os.environ[SAME_FAILURES] = str(job.same_failures)
    with noted(job.directory):
        return job.function(*job.arguments)
