"""The command line that runs a job on one node."""

from tenfold.launch.failures import SAME_FAILURES
from tenfold.launch.job import Job


def command_words(job: Job, python: str, rendezvous: tuple[str, ...] = ("--standalone",), nodes: str = "") -> list[str]:
    """The words of the job's command, with `python` as its interpreter, under `torchrun` if the job is elastic.

    torchrun passes signals on to its processes, which then have 20 s less than `grace_s` to save. `rendezvous` are torchrun's
    rendezvous options; the default is for one node. `nodes` is a placeholder for the maximum number of nodes, if that is known only
    when the job runs.
    """
    words = [python if i == 0 and word == "python" else word for i, word in enumerate(job.command)]
    if not job.elastic:
        return words
    needs = job.resources
    # By default torchrun's agent keeps one store over all restarts, in which a restarted process may read addresses of dead ones.
    return [
        "env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", f"{SAME_FAILURES}={job.same_failures}",
        python, "-m", "torch.distributed.run",
        f"--nnodes={needs.least_nodes or needs.nodes}:{nodes or needs.nodes}", f"--nproc-per-node={needs.processes}",
        f"--max-restarts={job.restarts}", *rendezvous, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
        f"--shutdown-timeout={max(1, job.grace_s - 20)}", "--no-python", *words,
    ]  # fmt: skip
