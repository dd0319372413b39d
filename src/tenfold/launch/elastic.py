"""Runs the processes of one job on this machine under PyTorch's elastic agent, and restarts all of them when one is lost.

This is what `torchrun` does on a node, except for the start: PyTorch is imported once in a server process, and each process of
the job is forked from it, so that a restart takes a second or two.
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
    """Run the job's function in all its processes, and restart all when one is lost; returns the result of rank 0.

    Raises JobStopped if this process gets a signal, and TenfoldError for a failure that a restart would not mend (`hopeless`) or
    after `job.restarts` restarts.
    """
    assert job.directory is not None and job.function is not None
    # FSDP imports `torch._dynamo` on first use, which takes seconds: the fork server imports it once for all processes.
    multiprocessing.set_forkserver_preload([job.function.__module__, "torch._dynamo"])
    run_id = uuid.uuid4().hex
    # Every start has its own agent and store: in a store kept from the last start, a process could find the address of a dead
    # process.
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
