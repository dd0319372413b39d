"""Jobs on a real Slurm: nodes that die, sizes that change, queues and quotes; skipped where Slurm is not installed."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slurm_cluster import SlurmCluster, missing

from tenfold.cli.commands import run as tenfold
from tenfold.launch.job import Job, Resources
from tenfold.launch.job_files import sbatch_quoted
from tenfold.launch.slurm import SlurmLauncher
from tenfold.train.metrics import read_metrics

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())
ALONE = "#!/bin/bash\n# Stands for Python: runs the command that torchrun would, once on each node.\n"
ALONE += 'while [ "$1" != --no-python ]; do shift; done\nshift\nexec "$@"\n'
# Says where it runs, and leaves when it is asked to.
LOOP = 'trap "echo $SLURMD_NODENAME saves; exit 0" TERM USR1 INT; while :; do echo $SLURMD_NODENAME of $SLURM_STEP_NUM_NODES; sleep 0.2; done'
ELASTIC = Resources(nodes=3, least_nodes=2, gpus=2)


class Plain(SlurmLauncher):
    python = "./alone"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


@pytest.fixture
def slurm(cluster, tmp_path, monkeypatch):
    """A launcher in a folder whose name needs quotes everywhere; what torchrun would start is started alone."""
    folder = tmp_path / "it's a % #1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("alone").write_text(ALONE)
    Path("alone").chmod(0o755)
    yield Plain(folder=folder)
    cluster.ask("scancel", "--user=root")
    cluster.wait(lambda: cluster.ask("sinfo", "--noheader", "--format=%T").split() == ["idle"], "all nodes are free again")
    cluster.ask("scontrol", "reconfigure")  # Slurm 22.05 may hold cores of a job that was cancelled as it began


def job(command=LOOP, needs=ELASTIC, **fields):
    return Job("a job", command=("bash", "-c", command), resources=needs, grace_s=20, **fields)


def nodes_of(slurm, handle, size):
    """The nodes that said that they are among so many."""
    lines = [line.split() for line in slurm.logs(handle, 10**6).splitlines()]
    return {words[0] for words in lines if words[1:] == ["of", str(size)]}


def said(slurm, handle, text):
    return slurm.logs(handle, 10**6).count(text)


def test_a_job_that_can_do_with_fewer_nodes_outlives_one(cluster, slurm):
    handle = slurm.submit(job())
    cluster.wait(lambda: len(nodes_of(slurm, handle, 3)) == 3, "three nodes work")
    dies = max(nodes_of(slurm, handle, 3))  # not the first, where the script runs
    try:
        cluster.kill(dies)
        cluster.wait(lambda: cluster.ask("squeue", "--noheader", "--format=%D") == "2", "two nodes are left")
        before = said(slurm, handle, "of 3")
        cluster.wait(lambda: said(slurm, handle, "of 3") > before + 5, "they go on")
        assert slurm.status(handle) == "running" and not said(slurm, handle, "saves")
    finally:
        cluster.start(dies)
    assert slurm.drain(handle, 30) and slurm.status(handle) == "stopped"


def test_a_running_job_saves_and_goes_on_with_fewer_nodes(cluster, slurm):
    handle = slurm.submit(job())
    cluster.wait(lambda: len(nodes_of(slurm, handle, 3)) == 3, "three nodes work")
    smaller = slurm.resize(handle, Resources(nodes=2, least_nodes=2, gpus=2))
    assert smaller.id == handle.id and smaller.job.resources.nodes == 2
    cluster.wait(lambda: len(nodes_of(slurm, handle, 2)) == 2, "two nodes work")
    assert said(slurm, handle, "saves") == 3 and nodes_of(slurm, handle, 2) < nodes_of(slurm, handle, 3)
    # More than it has: it saves, leaves, and is queued anew.
    larger = slurm.resize(smaller, Resources(nodes=4, least_nodes=2, gpus=2))
    assert larger.id != handle.id and said(slurm, handle, "saves") == 5
    cluster.wait(lambda: len(nodes_of(slurm, larger, 4)) == 4, "four nodes work")


@pytest.mark.parametrize("signal", ["USR1", "TERM", "INT"])
def test_ahead_of_the_limit_it_saves_and_is_queued_again_as_often_as_it_may(cluster, slurm, signal):
    requeues = 1 if signal == "USR1" else 0
    slurm = Plain(folder=slurm.folder, signal=signal, requeues=requeues)
    handle = slurm.submit(job(f'echo start; trap "echo by {signal}; exit 1" {signal}; while :; do sleep 0.1; done', Resources()))
    for start in range(1, requeues + 2):
        cluster.wait(lambda start=start: slurm.logs(handle, 99).count("start") == start, f"start {start}")
        time.sleep(0.2)
        cluster.ask("scancel", "--batch", "--signal=USR1", handle.id)  # as Slurm does by itself ahead of the limit
        cluster.wait(lambda start=start: slurm.logs(handle, 99).count(f"by {signal}") == start, "it was told")
    cluster.wait(lambda: slurm.status(handle) == "failed", "the job has ended")
    assert f"was queued again {requeues} times" in slurm.logs(handle, 99)


def test_what_is_asked_for_is_what_slurm_heard(cluster, slurm):
    slurm = Plain(folder=slurm.folder, partition="train", constraint="fast&fast", gres="gpu:2", switches="1@00:04:00")
    needs = Resources(nodes=2, gpus=2, cores=3, memory_bytes=2**30)
    value = 'it\'s "$HOME" `id` \\ #\nand more'
    handle = slurm.submit(job('printf "%s" "$NCCL_TEST"', needs, environment={"NCCL_TEST": value}, time_limit_s=90060))
    asked = dict(word.split("=", 1) for word in cluster.ask("scontrol", "show", "job", handle.id).split() if "=" in word)
    assert (asked["Partition"], asked["Features"], asked["Switches"]) == ("train", "fast&fast", "1@00:04:00")
    assert (asked["TimeLimit"], asked["CPUs/Task"], asked["MinMemoryNode"]) == ("1-01:01:00", "3", "1G")
    cluster.wait(lambda: slurm.status(handle) == "finished", "it has ended")
    printed = [slurm.logs(handle, 9).count(line) for line in value.split("\n")]  # of two nodes, whose lines may mix
    assert printed == [2, 2]


def test_a_sweep_is_one_array_whose_jobs_have_their_own_names(cluster, slurm):
    jobs = [Job(f"a job-{i}", command=("bash", "-c", f"echo I am {i}; exit {i}"), resources=Resources()) for i in range(3)]
    handles = slurm.submit_all("a job", jobs, at_once=2)
    assert len({handle.said for handle in handles}) == 1
    cluster.wait(lambda: [slurm.status(h) for h in handles] == ["finished", "failed", "failed"], "all have ended")
    assert [f"I am {i}" in slurm.logs(handle, 9) for i, handle in enumerate(handles)] == [True] * 3


def test_a_job_of_a_sweep_goes_on_with_fewer_nodes(cluster, slurm):
    needs = Resources(nodes=2, least_nodes=1, gpus=2)
    jobs = [Job(f"a job-{i}", command=("bash", "-c", LOOP), resources=needs, grace_s=20) for i in range(2)]
    handle, other = slurm.submit_all("a job", jobs)
    cluster.wait(lambda: all(len(nodes_of(slurm, one, 2)) == 2 for one in (handle, other)), "two nodes work on each")
    smaller = slurm.resize(handle, Resources(nodes=1, least_nodes=1, gpus=2))
    assert smaller.id == handle.id
    cluster.wait(lambda: len(nodes_of(slurm, handle, 1)) == 1, "one node works")
    assert not nodes_of(slurm, other, 1)


@given(
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=40).filter(lambda text: text.strip() == text)
)
@settings(max_examples=15, deadline=None)
def test_sbatch_reads_what_was_quoted(cluster, text):
    script = f"#!/bin/bash\n#SBATCH --hold\n#SBATCH --output=/dev/null\n#SBATCH --job-name={sbatch_quoted(text)}\ntrue\n"
    done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=True)
    heard = subprocess.run(["squeue", "--noheader", "--format=%j", f"--jobs={done.stdout.strip()}"], capture_output=True, text=True)
    subprocess.run(["scancel", done.stdout.strip()], check=True)
    assert heard.stdout.removesuffix("\n") == text


RUN = """tokens = {tokens}
dtype = "float32"
device = "cpu"
compile = "off"
[model]
name = "tiny"
dim = 16
n_layers = 1
n_heads = 2
n_kv_heads = 2
ffn_dim = 32
[data]
corpus = {corpus}
vocab_size = 400
seq_len = 32
batch_size = 6
max_epochs = 1e9
[optimizer]
name = "adamw"
learning_rate = 0.001
[checkpoint]
every_s = 0
[log]
every = 1
"""


@pytest.mark.slow
def test_a_training_run_outlives_a_node_and_another_size_to_the_losses_of_an_undisturbed_run(cluster, slurm, text_folder, capsys):
    steps, job_file = 400, Path("small.toml")
    job_file.write_text(RUN.format(tokens=steps * 6 * 32, corpus=json.dumps(str(text_folder / "json"))))

    def losses(home):
        path = Path(home, "small", "run.jsonl")
        return {row["step"]: row["loss"] for row in read_metrics(path) if row["event"] == "step"} if path.exists() else {}

    def asked(*words):
        tenfold(["launch", *words, "--json"])
        return json.loads(capsys.readouterr().out)

    def train(home, nodes):
        common = ["--gpus-per-node", "0", "--cores-per-node", "1", "--env", "OMP_NUM_THREADS=1", "--save-s", "120"]
        least = ["--least-nodes", "1"] if nodes > 1 else []
        asked(
            "small.toml", "--on", "slurm", "--nodes", str(nodes), *least, *common, "--home", str(Path(home).resolve()), "--submit"
        )

    def finished():
        return asked("status", "small")["jobs"][0]["status"] == "finished"

    train("undisturbed", 1)
    cluster.wait(finished, "it has finished", 600)
    train("disturbed", 3)
    cluster.wait(lambda: len(losses("disturbed")) > 5, "three nodes make steps", 600)
    running = cluster.ask("scontrol", "show", "hostnames", cluster.ask("squeue", "--noheader", "--format=%N")).split()
    # The script runs on the first. Any may have the store where they meet, since all have the address of this machine.
    dies = next(node for node in running[1:] if node != cluster.node_that_listens(Plain().port))
    cluster.kill(dies)
    before = len(losses("disturbed"))
    cluster.wait(lambda: len(losses("disturbed")) > before + 5, "two nodes make steps", 600)
    asked("resize", "small", "--nodes", "1")
    before = len(losses("disturbed"))
    assert before < steps
    cluster.wait(lambda: len(losses("disturbed")) > before + 5, "one node makes steps", 600)
    cluster.start(dies)
    cluster.wait(finished, "it has finished", 600)
    assert losses("disturbed") == pytest.approx(losses("undisturbed"), rel=1e-3) and len(losses("disturbed")) == steps
