"""Jobs on Ray: a function as a Ray task, on the cluster that `RAY_ADDRESS` names or on this machine; a command as a Ray job.

A Ray job's files are uploaded with it. The nodes must share the file system that holds the generations.
"""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

from tenfold.launch.child import set_threads
from tenfold.launch.job import Handle, Job, Resources, Seen, Status
from tenfold.launch.job_files import JobFileLauncher, file_name, shipped
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.threads import set_waiting_policy

STATUS: dict[str, Status] = {
    "PENDING": "waiting", "RUNNING": "running", "SUCCEEDED": "finished", "FAILED": "failed", "STOPPED": "stopped",
}  # fmt: skip
TASK_RETRIES = 3  # of a task whose node is lost
PATIENCE_S = 120.0  # how long to wait for the cluster to find an agent that takes a job
T = TypeVar("T")


@dataclass(frozen=True)
class RayLauncher(JobFileLauncher):
    """Runs functions as Ray tasks, and commands as Ray jobs in a copy of `working_dir`.

    A task whose node is lost is retried, and resumes from what it saved. A command runs only on nodes that have the custom
    resource `resource`, if that is set.
    """

    working_dir: Path | None = None
    resource: str | None = None
    template: ClassVar[str] = "ray.py"
    _tasks: dict[str, Any] = field(default_factory=dict, init=False)

    def facts(self, job: Job) -> dict[str, Any]:
        needs = job.resources
        asked = {"CPU": needs.cores or needs.gpus or 1, "GPU": needs.gpus, "memory": needs.memory_bytes}
        return {"resources": asked, "custom": {self.resource: 1} if self.resource else {}}

    def words(self, job: Job) -> Job:
        there = {str(path): key for key, path in shipped(job).items()}
        return replace(job, command=tuple(there.get(word, word) for word in job.command))

    def submit(self, job: Job) -> Handle:
        return self._submit_task(job) if job.function else self._submit_command(job)

    def status(self, handle: Handle) -> Status:
        return handle.status() if handle.job.function else STATUS[_ask(_jobs().get_job_status, handle.id).name]

    def interrupt(self, handle: Handle) -> None:
        if handle.job.function:
            _ray().cancel(self._tasks[handle.id])  # raises KeyboardInterrupt in the task: a run then saves and exits
        else:
            _ask(_jobs().stop_job, handle.id)

    def stop(self, handle: Handle) -> None:
        handle.drained = True
        if handle.job.function:
            _ray().cancel(self._tasks[handle.id], force=True)
        else:
            _ask(_jobs().stop_job, handle.id)  # Ray waits RAY_JOB_STOP_WAIT_TIME_S, set at submission, before it kills the job

    def logs(self, handle: Handle, lines: int) -> str:
        return "\n".join(_ask(_jobs().get_job_logs, handle.id).splitlines()[-lines:])

    def up(self) -> int:
        _ray()
        from ray.util.state import list_nodes

        nodes = _ask(list_nodes, address=_jobs().get_address(), limit=10_000, raise_on_missing_output=False)
        has = [node.resources_total for node in nodes if node.state == "ALIVE"]
        return sum(self.resource is None or resources.get(self.resource, 0) >= 1 for resources in has)

    def seen(self) -> dict[str, Seen]:
        jobs = [one for one in _ask(_jobs().list_jobs) if one.submission_id and "nodes" in (one.metadata or {})]
        return {
            one.submission_id.rpartition("-")[0]: Seen(one.submission_id, STATUS[one.status.name], int(one.metadata["nodes"]))
            for one in sorted(jobs, key=lambda one: one.start_time or 0)
        }

    def close(self) -> None:
        if not self._tasks:
            return
        ray = _ray()
        for task in self._tasks.values():
            ray.cancel(task)
        for task in self._tasks.values():
            with suppress(ray.exceptions.RayError):
                ray.get(task)
        self._tasks.clear()
        ray.shutdown()

    def _submit_task(self, job: Job) -> Handle:
        if job.elastic:
            raise TenfoldError(f"The job {job.name!r} has several processes, but a Ray task is only one: give Ray a command.")
        ray = _connect()
        ask = job.resources
        needs: dict[str, float] = {"num_cpus": max(1, ask.cores), "num_gpus": ask.gpus, "memory": ask.memory_bytes}
        require(ray.nodes(), needs, job.name)
        task = ray.remote(max_retries=TASK_RETRIES)(_attempt).options(**needs).remote(job.function, job.arguments, job.resources)
        handle = Handle(job, task.hex())
        self._tasks[handle.id] = task
        task.future().add_done_callback(lambda ended: self._settle(handle, ended))
        return handle

    def _settle(self, handle: Handle, ended: Future[Any]) -> None:
        if (error := ended.exception()) is not None:
            lost = f"Ray lost {handle.job.name} ({type(error).__name__}): started again, it goes on from what it saved."
            handle.future.set_exception(TenfoldError(lost))
        elif isinstance(outcome := ended.result(), TenfoldError):
            handle.future.set_exception(outcome)
        else:
            handle.future.set_result(outcome)

    def _submit_command(self, job: Job) -> Handle:
        path, name = self.write(job), f"{file_name(job)}-{uuid.uuid4().hex[:8]}"
        # Ray kills a job three seconds after SIGTERM unless it is told to wait.
        variables = {**job.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(job.grace_s)}
        with TemporaryDirectory() as folder:
            if self.working_dir is not None:
                shutil.copytree(self.working_dir, folder, dirs_exist_ok=True)
            for key, file in {path.name: path, **shipped(job)}.items():
                shutil.copyfile(file, Path(folder, key))
            environment = {"working_dir": folder, "env_vars": variables}
            said = _ask(
                _jobs().submit_job, entrypoint=f"python {path.name}", submission_id=name, runtime_env=environment,
                metadata={"nodes": str(job.resources.nodes)},
            )  # fmt: skip
        return Handle(job, name, f"Ray job {said}", file=path)


def require(nodes: list[dict[str, Any]], needs: Mapping[str, float], name: str) -> None:
    """Raises TenfoldError if no node has what a task needs: Ray would wait for such a node forever."""
    has = [node["Resources"] for node in nodes if node["Alive"]]
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    if not any(all(node.get(names[key], 0) >= amount for key, amount in needs.items()) for node in has):
        raise TenfoldError(
            f"No node of the Ray cluster has {needs['num_cpus']:g} CPU, {needs['num_gpus']:g} GPU and "
            f"{needs['memory'] / 2**30:.1f} GiB for {name}: add one, or start something smaller."
        )


def _attempt(function: Callable[..., Any], arguments: tuple[Any, ...], resources: Resources) -> Any:
    """Run a job's function in a Ray worker. A TenfoldError is returned, since Ray would wrap a raised one in its own error."""
    set_threads(resources.threads)
    try:
        return function(*arguments)
    except TenfoldError as error:
        return error


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise NotInstalled("Ray is missing: pip install 'tenfold[ray]'.") from None
    return ray


def _connect() -> Any:
    ray = _ray()
    if ray.is_initialized():
        return ray
    set_waiting_policy()  # in this process's environment, which the workers of this machine inherit
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise TenfoldError(f"The Ray cluster at {address or 'this machine'} does not answer: {why}") from None
    return ray


def _jobs() -> Any:
    """The client of the cluster's job server. Raises TenfoldError if that does not answer."""
    _ray()
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient()
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TenfoldError(f"Ray's job server does not answer ({str(error).splitlines()[0]}): set RAY_ADDRESS.") from None


def _ask(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call the job server, again for up to `PATIENCE_S` while it has no agent for a job. Raises TenfoldError if it refuses."""
    from ray.util.state.exception import RayStateApiException

    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call(*arguments, **named)
        except (RuntimeError, OSError, RayStateApiException) as error:  # the errors of `requests` are OSErrors
            if "No available agent" not in str(error) or time.monotonic() > end:
                said = str(error).partition("\n")[0]
                raise TenfoldError(f"Ray's job server refused: {said}") from None
        time.sleep(1.0)
