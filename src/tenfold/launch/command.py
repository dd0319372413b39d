"""The command line of a job on one node."""

from tenfold.launch.failures import SAME_FAILURES
from tenfold.launch.job import Job


def command_words(job: Job, python: str, rendezvous: tuple[str, ...] = ("--standalone",), nodes: str = "") -> list[str]:
    """The words of the job's command, with `python` as its interpreter, under `torchrun` where the job is elastic.

    A signal that torchrun gets goes to its processes, which then have a little less than `grace_s` to save. `rendezvous` are
    its options that say where the nodes meet; by default there is one node. `nodes` stands for how many there are at most, where
    that is only known when the job runs.
    """
    words = [python if i == 0 and word == "python" else word for i, word in enumerate(job.command)]
    if not job.elastic:
        return words
    needs = job.resources
    # By default torchrun's agent keeps one store over all starts, and a restarted process may read addresses of the start before.
    return [
        "env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", f"{SAME_FAILURES}={job.same_failures}",
        python, "-m", "torch.distributed.run",
        f"--nnodes={needs.least_nodes or needs.nodes}:{nodes or needs.nodes}", f"--nproc-per-node={needs.processes}",
        f"--max-restarts={job.restarts}", *rendezvous, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
        f"--shutdown-timeout={max(1, job.grace_s - 20)}", "--no-python", *words,
    ]  # fmt: skip
