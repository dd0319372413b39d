"""Jobs on Kubernetes, through `kubectl`: an Indexed Job, a Service at which its pods meet, and a ConfigMap of its files."""

import json
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tenfold.launch.job import Handle, Job, Resources, Status
from tenfold.launch.job_files import JobFileLauncher, call, file_name, shipped
from tenfold.spec.errors import TenfoldError

FILES = "/run/tenfold"  # where a pod finds the job's files
GANGS = {
    "coscheduling": ("labels", "scheduling.x-k8s.io/pod-group"),
    "volcano": ("annotations", "scheduling.k8s.io/group-name"),
}
TOPOLOGY = "kueue.x-k8s.io/podset-required-topology"
KEY, VALUE = "[A-Za-z0-9_./-]+", "[A-Za-z0-9_.-]*"
TOLERATION = rf"(?P<key>{KEY})(?:=(?P<value>{VALUE}))?(?::(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"


@dataclass(frozen=True)
class KubernetesLauncher(JobFileLauncher):
    """Runs the container `image`, in which the persistent volume claim `claim` is mounted at `home`.

    `queue` is Kueue's local queue; `topology` a node label (Kueue's topology level), within one value of which all pods are placed;
    `gang` the scheduler that starts all pods or none. `rdma` are the devices of a pod (`rdma/hca=1`); each `toleration` is
    written as `kubectl taint` writes a taint; each `node_selector` is KEY=VALUE.
    """

    image: str | None = None
    claim: str = "tenfold"
    home: str = "/generations"
    queue: str | None = None
    topology: str | None = None
    gang: Literal["coscheduling", "volcano"] | None = None
    rdma: tuple[str, ...] = ()
    toleration: tuple[str, ...] = ()
    node_selector: tuple[str, ...] = ()
    priority_class: str | None = None
    pull_secret: str | None = None

    template: ClassVar[str] = "kubernetes.yaml"

    def check(self, job: Job) -> None:
        if self.image is None:
            raise TenfoldError("Kubernetes needs a container image with Tenfold installed: give --image.")
        if not self.home.startswith("/"):
            raise TenfoldError(f"In a container the home {self.home!r} must be an absolute path, such as --home /generations.")
        if self.topology and not self.queue:
            raise TenfoldError("A topology needs Kueue: also name its queue with --queue.")
        names = {"claim": self.claim, "queue": self.queue, "priority_class": self.priority_class, "pull_secret": self.pull_secret}
        for option, name in names.items():
            if name is not None and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
                raise TenfoldError(f"{option} {name!r} is no valid Kubernetes name: use lower-case letters, digits, hyphens, dots.")

    def facts(self, job: Job) -> dict[str, Any]:
        needs, name = job.resources, file_name(job)
        rdma = _pairs("rdma", self.rdma, "[1-9][0-9]*")
        cores = {"cpu": str(needs.cores)} if needs.cores else {}
        memory = {"memory": str(needs.memory_bytes)} if needs.memory_bytes else {}
        marks: dict[str, dict[str, str]] = {"labels": {"app": "tenfold"}, "annotations": {}}
        if self.gang:
            where, mark = GANGS[self.gang]
            marks[where][mark] = name
        if self.topology:
            marks["annotations"][TOPOLOGY] = self.topology
        return marks | {
            "image": self.image, "claim": self.claim, "home": self.home, "queue": self.queue, "gang": self.gang, "rdma": rdma,
            "priority_class": self.priority_class, "pull_secret": self.pull_secret, "folder": FILES,
            "node_selector": _pairs("node-selector", self.node_selector, VALUE),
            "tolerations": [_toleration(text) for text in self.toleration],
            "resources": {"nvidia.com/gpu": str(needs.gpus)} | cores | memory | rdma,
            "env": [{"name": variable, "value": value} for variable, value in job.environment.items()],
            "texts": {key: path.read_bytes().decode() for key, path in shipped(job).items()},
            "once": f"{name}-{uuid.uuid4().hex[:8]}",  # the rendezvous id: a deleted job of the same name was another run
        }  # fmt: skip

    def words(self, job: Job) -> Job:
        there = {str(path): f"{FILES}/{key}" for key, path in shipped(job).items()}
        return replace(job, command=tuple(there.get(word, word) for word in job.command))

    def submit(self, job: Job) -> Handle:
        path = self.write(job)
        handle = Handle(job, file_name(job), file=path)
        if self.status(handle) not in ("waiting", "running"):
            self._delete(handle, wait=True)  # Kubernetes does not run an ended job of the same name again
        handle.said = call("kubectl", ["apply", "-f", str(path)], str(path))
        return handle

    def status(self, handle: Handle) -> Status:
        text = call("kubectl", ["get", "job", handle.id, "--ignore-not-found", "-o", "json"], handle.id)
        if not text:
            return "stopped"  # somebody deleted it
        found = json.loads(text).get("status", {})
        true = {condition["type"] for condition in found.get("conditions", []) if condition["status"] == "True"}
        if "Complete" in true:
            return "finished"
        if "Failed" in true:
            return "failed"
        if found.get("active", 0) + found.get("terminating", 0):
            return "running"
        return "stopped" if "Suspended" in true and (handle.drained or not self.queue) else "waiting"

    def interrupt(self, handle: Handle) -> None:
        """Suspend the job, or delete it if it is in a queue: its pods get SIGTERM and have `grace_s` seconds to save."""
        if self.queue:  # Kueue resumes a job that others suspend
            call("kubectl", ["delete", f"job/{handle.id}", "--ignore-not-found", "--cascade=foreground", "--wait=false"], handle.id)
        else:
            self._patch(handle, {"suspend": True})

    def stop(self, handle: Handle) -> None:
        self._delete(handle, wait=False)
        pods = ["delete", "pods", f"--selector=job-name={handle.id}", "--grace-period=0", "--force", "--wait=false"]
        call("kubectl", pods, handle.id)

    def logs(self, handle: Handle, lines: int) -> str:
        asked = ["logs", f"--selector=job-name={handle.id}", f"--tail={lines}", "--prefix", "--max-log-requests=1000"]
        return call("kubectl", asked, handle.id)

    def resize(self, handle: Handle, resources: Resources) -> Handle:
        """Let the job save and go on with another size: as the same job if `shrinks_to` allows it, else as a new one."""
        if self.queue or not handle.job.resources.shrinks_to(resources):
            return super().resize(handle, resources)
        self.drain(handle, handle.job.grace_s)
        self._patch(handle, {"completions": resources.nodes, "parallelism": resources.nodes, "suspend": False})
        return replace(handle, job=replace(handle.job, resources=resources), drained=False)

    def _patch(self, handle: Handle, changed: dict[str, Any]) -> None:
        call("kubectl", ["patch", "job", handle.id, "--type=merge", "--patch", json.dumps({"spec": changed})], handle.id)

    def _delete(self, handle: Handle, *, wait: bool) -> None:
        kinds = ["job", "service", "configmap", *(["podgroup"] if self.gang else [])]
        call(
            "kubectl",
            ["delete", *(f"{kind}/{handle.id}" for kind in kinds), "--ignore-not-found", f"--wait={wait}".lower()],
            handle.id,
        )


def _pairs(option: str, texts: tuple[str, ...], values: str) -> dict[str, str]:
    """The pairs in texts `KEY=VALUE`. Raises TenfoldError for any other text, and for a value that does not match `values`."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not re.fullmatch(KEY, key) or not re.fullmatch(values, value):
            example = "rdma/hca=1" if option == "rdma" else "pool=training"
            raise TenfoldError(f"--{option} takes KEY=VALUE, such as {example}, not {text!r}.")
        found[key] = value
    return found


def _toleration(text: str) -> dict[str, str]:
    """The toleration of a taint written as for `kubectl taint`: `KEY`, `KEY=VALUE`, `KEY:EFFECT` or `KEY=VALUE:EFFECT`."""
    match = re.fullmatch(TOLERATION, text)
    if match is None:
        raise TenfoldError(f"--toleration takes KEY=VALUE:EFFECT, such as nvidia.com/gpu=present:NoSchedule, not {text!r}.")
    given = {name: value for name, value in match.groupdict().items() if value is not None}
    return {"operator": "Equal" if "value" in given else "Exists", **given}
