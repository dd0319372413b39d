"""Jobs on Kubernetes, through `kubectl`: an Indexed Job, a service at which its pods meet, and the files it reads."""

import json
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tenfold.launch.job import Handle, Job, Resources, Status
from tenfold.launch.job_files import JobFileLauncher, call, file_name
from tenfold.spec.errors import TenfoldError

FILES = "/run/tenfold"  # where a pod finds the job's files


@dataclass(frozen=True)
class KubernetesLauncher(JobFileLauncher):
    """Runs the container `image`, in which the volume `claim` is mounted at `home`."""

    image: str | None = None
    claim: str = "tenfold"
    home: str = "/generations"

    template: ClassVar[str] = "kubernetes.yaml"

    def check(self, job: Job) -> None:
        if self.image is None:
            raise TenfoldError("Kubernetes needs a container image that holds tenfold: say --image.")
        if not self.home.startswith("/"):
            raise TenfoldError(f"In a container the home {self.home!r} must be an absolute path: say --home /generations.")

    def facts(self, job: Job) -> dict[str, Any]:
        texts = {_key(path): path.read_text() for path in job.files}
        # A job of the same name that was deleted is another run.
        once = f"{file_name(job)}-{uuid.uuid4().hex[:8]}"
        return {"image": self.image, "claim": self.claim, "home": self.home, "texts": texts, "folder": FILES, "once": once}

    def words(self, job: Job) -> Job:
        there = {str(path): f"{FILES}/{_key(path)}" for path in job.files}
        return replace(job, command=tuple(there.get(word, word) for word in job.command))

    def submit(self, job: Job) -> Handle:
        path = self.write(job)
        return Handle(job, file_name(job), call("kubectl", ["apply", "-f", str(path)], str(path)))

    def status(self, handle: Handle) -> Status:
        found = json.loads(call("kubectl", ["get", "job", handle.id, "-o", "json"], handle.id)).get("status", {})
        true = {condition["type"] for condition in found.get("conditions", []) if condition["status"] == "True"}
        if "Complete" in true:
            return "finished"
        if "Failed" in true:
            return "failed"
        if found.get("active", 0) + found.get("terminating", 0):
            return "running"
        return "stopped" if "Suspended" in true else "waiting"

    def interrupt(self, handle: Handle) -> None:
        self._patch(handle, {"suspend": True})  # the pods get SIGTERM, and their grace

    def stop(self, handle: Handle) -> None:
        kinds = f"job,service,configmap/{handle.id}".replace(",", f"/{handle.id},")
        call("kubectl", ["delete", *kinds.split(","), "--ignore-not-found", "--wait=false"], handle.id)
        pods = ["delete", "pods", f"--selector=job-name={handle.id}", "--grace-period=0", "--force", "--wait=false"]
        call("kubectl", pods, handle.id)

    def resize(self, handle: Handle, resources: Resources) -> Handle:
        """In place where only the nodes change, between the fewest that the job goes on with and those it was made for."""
        now = handle.job.resources
        if replace(now, nodes=resources.nodes) != resources or not (now.least_nodes or now.nodes) <= resources.nodes <= now.nodes:
            return super().resize(handle, resources)
        self._patch(handle, {"completions": resources.nodes, "parallelism": resources.nodes})
        return handle

    def _patch(self, handle: Handle, changed: dict[str, Any]) -> None:
        call("kubectl", ["patch", "job", handle.id, "--type=merge", "--patch", json.dumps({"spec": changed})], handle.id)


def _key(path: Path) -> str:
    """A file's name as a ConfigMap takes it."""
    return re.sub(r"[^-._a-zA-Z0-9]", "-", path.name)
