"""Job files: what the systems' own tools make of them, and what becomes of signals."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import kubernetes_validate
import pytest
import yaml

from tenfold.cli.commands import run as tenfold
from tenfold.launch.job import Job, Resources, open_launcher
from tenfold.launch.job_files import file_name
from tenfold.spec.errors import TenfoldError
from tenfold.train.jobs import command_job
from tenfold.train.metrics import read_metrics

BIN = Path(sys.executable).parent
OPTIONS = {
    "slurm": {"partition": "gpu", "account": "models"},
    "kubernetes": {"image": "registry.example/tenfold:1", "home": "/generations"},
    "ray": {},
}
NODES = Resources(nodes=4, processes=8, gpus=8)


def write(run, system, folder, needs=NODES, home="/generations", **options):
    """The job file that trains a run."""
    return open_launcher(system, folder=folder, **OPTIONS[system] | options).write(command_job(run, needs, home))


@pytest.fixture
def run(tmp_path):
    """A run file with a name and text that need quoting everywhere."""
    path = tmp_path / "a run's {file}.toml"
    path.write_text('tokens = 1000\nmodel = { width = 32 }\ndata = { corpus = "it\'s: #1" }\n')
    return path


def test_the_slurm_script_is_sound_bash(run, tmp_path):
    path = write(run, "slurm", tmp_path)
    subprocess.run(["bash", "-n", path], check=True)
    subprocess.run([BIN / "shellcheck", path], check=True)
    options = dict(
        line[8:].split("=", 1) for line in path.read_text().splitlines() if line.startswith("#SBATCH --") and "=" in line
    )
    assert options["--nodes"] == "4" and options["--gpus-per-node"] == "8" and options["--partition"] == "gpu"


def test_the_kubernetes_manifest_is_what_the_api_takes(run, tmp_path):
    path = write(run, "kubernetes", tmp_path, Resources(nodes=4, least_nodes=3, processes=8, gpus=8))
    settings, service, job = yaml.safe_load_all(path.read_text())
    for resource in (settings, service, job):
        kubernetes_validate.validate(resource, "1.31", strict=True)
    ((file, text),) = settings["data"].items()
    assert text == run.read_text()
    pod = job["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    # The first pod's name in the service is where all meet.
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}" in command
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "files")
    assert f"{mount['mountPath']}/{file}" in command and str(run.resolve()) not in command
    assert "--nnodes=3:4" in command and f"/generations/{run.stem}" in command
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4


def test_the_ray_job_is_python_with_the_same_command(run, tmp_path):
    path = write(run, "ray", tmp_path)
    space: dict = {}
    source = path.read_text()
    compile(source, str(path), "exec")
    exec(source[source.index("NODES") : source.index("@ray")], space)
    assert space["NODES"] == 4 and space["RESOURCES"] == {"CPU": 8, "GPU": 8, "memory": 0}
    assert space["COMMAND"][3:6] == ["python", "-m", "torch.distributed.run"]
    assert "a-run-s--file-.toml" in space["COMMAND"]  # it is shipped under this name


SRUN = """#!/bin/bash
# The task of one node, in a process group of its own, as Slurm starts it.
while [[ "$1" == --* ]]; do shift; done
set -m
"$@" &
echo $! > "$STUBS/task"
wait $!
"""
STUBS = {
    "srun": SRUN,
    # Slurm signals the process group of each task.
    "scancel": '#!/bin/bash\necho "scancel $*" >> "$STUBS/said"\nkill -USR1 -- "-$(cat "$STUBS/task")"\n',
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "scontrol $*" >> "$STUBS/said"; fi\n',
}


@pytest.fixture
def cluster(tmp_path):
    """Slurm's commands, played by this machine; returns the environment of a job."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{stubs}:{BIN}:{os.environ['PATH']}", "STUBS": str(stubs), "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node",
    }  # fmt: skip


def free_port():
    with socket.socket() as taken:
        taken.bind(("", 0))
        return taken.getsockname()[1]


def small_run(path, text_folder, tokens):
    path.write_text(
        f'tokens = {tokens}\ndevice = "cpu"\nmodel = {{ width = 32 }}\nlog = {{ every = 1 }}\n[data]\nvocab_size = 300\nseq_len = 16\n'
        f'batch_size = 4\nmax_epochs = 1e9\ncorpus = "{text_folder}"\n'
    )
    return path


def wait_for_steps(directory, process):
    for _ in range(3000):
        if (directory / "run.jsonl").exists() and any(e["event"] == "step" for e in read_metrics(directory / "run.jsonl")):
            return
        assert process.poll() is None, "the job ended before its first step"
        time.sleep(0.1)
    raise AssertionError("no step in five minutes")


def test_ahead_of_the_limit_the_run_saves_and_the_job_is_queued_again(cluster, text_folder, tmp_path):
    home = tmp_path / "home"
    run = small_run(tmp_path / "small.toml", text_folder / "json", 10**8)
    path = write(run, "slurm", tmp_path, Resources(), home=str(home), port=free_port())
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    with subprocess.Popen(["bash", path], env=cluster, **options) as job:
        try:
            wait_for_steps(home / "small", job)
            job.send_signal(signal.SIGUSR1)  # --signal=B: reaches the script alone
            job.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)  # the run too
    said = (tmp_path / "stubs" / "said").read_text().splitlines()
    assert said == [f"scancel --signal=USR1 {os.getpid()}", f"scontrol requeue {os.getpid()}"]
    (stopped,) = (row for row in read_metrics(home / "small" / "run.jsonl") if row["event"] == "stopped")
    assert stopped["step"] > 0
    assert list((home / "small" / "checkpoint").iterdir())


def test_a_job_that_ends_by_itself_gives_its_exit_status(cluster, text_folder, tmp_path):
    run = small_run(tmp_path / "small.toml", text_folder / "json", 256)
    path = write(run, "slurm", tmp_path, Resources(), home=str(tmp_path / "home"))
    for status in (0, 3, 143):
        (tmp_path / "stubs" / "srun").write_text(f"#!/bin/bash\nexit {status}\n")
        assert subprocess.run(["bash", path], env=cluster).returncode == status


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder that comes first in PATH; `programs(name, script)` puts a program there that says what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name, script):
        (folder / name).write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\n{script}\n')
        (folder / name).chmod(0o755)

    return put


def asked(tmp_path):
    """What the programs were asked since the last look."""
    path = tmp_path / "asked"
    said = path.read_text().splitlines()
    path.unlink()
    return said


def test_submitting_says_what_the_system_says(run, tmp_path, programs, monkeypatch, capsys):
    programs("sbatch", 'bash -n "$1" && echo Submitted batch job 7')
    monkeypatch.chdir(tmp_path)
    tenfold(["launch", str(run), "--on", "slurm", "--nodes", "2", "--submit", "--json"])
    assert json.loads(capsys.readouterr().out)["submitted"] == "Submitted batch job 7"
    programs("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(TenfoldError, match="sbatch failed on .* invalid partition"):
        open_launcher("slurm").submit(command_job(run, NODES, "generations"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TenfoldError, match="kubectl is not on this machine"):
        open_launcher("kubernetes", **OPTIONS["kubernetes"]).submit(command_job(run, NODES, "/generations"))


def test_a_slurm_job_is_watched_drained_resized_and_stopped(run, tmp_path, programs):
    """Against programs that play Slurm's: what they are asked is what its manual says."""
    programs("sbatch", "echo Submitted batch job 7")
    programs("squeue", "echo RUNNING")
    for name in ("scancel", "scontrol"):
        programs(name, "exit 0")
    slurm = open_launcher("slurm", folder=tmp_path)
    handle = slurm.submit(command_job(run, NODES, "generations"))
    assert handle.id == "7" and slurm.status(handle) == "running"
    assert asked(tmp_path)[-1] == "--noheader --states=all --format=%T --jobs=7"
    # A job that does not leave is cancelled at the deadline.
    assert not slurm.drain(handle, 0.2)
    assert asked(tmp_path)[1] == "--signal=TERM 7"
    programs("squeue", "echo COMPLETED")
    assert slurm.drain(handle, 5) and slurm.status(handle) == "stopped"
    for state, status in {"PENDING": "waiting", "SIGNALING": "running", "OUT_OF_MEMORY": "failed", "COMPLETED": "finished"}.items():
        programs("squeue", f"echo {state}")
        handle.drained = False
        assert slurm.status(handle) == status
    programs("squeue", "")
    with pytest.raises(TenfoldError, match="does not list job 7"):
        slurm.status(handle)
    # The first is in two partitions, the second is planned for another job, the third does not answer, another job ends on the fifth.
    programs("sinfo", "echo n1 idle; echo n2 mixed-; echo n3 idle\\*; echo n4 drained; echo n1 idle; echo n5 allocated+")
    assert slurm.up() == 3


def test_a_kubernetes_job_is_watched_drained_resized_and_stopped(run, tmp_path, programs):
    """Against a program that plays kubectl."""
    programs("kubectl", 'echo \'{"status": {"active": 4}}\'')
    cluster = open_launcher("kubernetes", folder=tmp_path, **OPTIONS["kubernetes"])
    handle = cluster.submit(command_job(run, Resources(nodes=4, least_nodes=2, processes=8, gpus=8), "/generations"))
    assert cluster.status(handle) == "running"
    asked(tmp_path)
    programs("kubectl", 'echo \'{"status": {"conditions": [{"type": "Suspended", "status": "True"}]}}\'')
    smaller = cluster.resize(handle, Resources(nodes=3, least_nodes=2, processes=8, gpus=8))
    assert smaller.job.resources.nodes == 3 and not smaller.drained
    patches = [json.loads(line.split("--patch ")[1])["spec"] for line in asked(tmp_path) if "--patch" in line]
    assert patches == [{"suspend": True}, {"completions": 3, "parallelism": 3, "suspend": False}]
    cluster.resize(smaller, Resources(nodes=8, processes=8, gpus=8))  # more than it has: another job
    assert [line.split()[0] for line in asked(tmp_path) if "get" not in line] == ["patch", "delete", "apply"]
    cluster.interrupt(handle)
    (said,) = asked(tmp_path)
    assert json.loads(said.split("--patch ")[1]) == {"spec": {"suspend": True}}
    for conditions, status in ((["Suspended"], "stopped"), (["Complete"], "finished"), (["Failed"], "failed"), ([], "waiting")):
        found = {"status": {"conditions": [{"type": kind, "status": "True"} for kind in conditions]}}
        programs("kubectl", f"echo '{json.dumps(found)}'")
        assert cluster.status(handle) == status
    asked(tmp_path)
    cluster.stop(handle)
    assert asked(tmp_path)[0].startswith(f"delete job/{handle.id} service/{handle.id} configmap/{handle.id} ")


def test_jobs_of_a_sweep_that_were_taken_are_recorded_though_a_later_one_is_refused(run, tmp_path, programs):
    programs("kubectl", 'case "$*" in *-1.kubernetes.yaml) echo refused >&2; exit 1; esac')
    with pytest.raises(TenfoldError, match="refused"):
        kube = ["--on", "kubernetes", "--image", "x", "--home", "/home", "--out", str(tmp_path)]
        tenfold(["launch", str(run), *kube, "--sweep", "seed=0,1", "--submit"])
    assert [path.name for path in tmp_path.glob("*.job.json")] == ["tenfold-a-run-s-file-0.job.json"]


def test_the_status_of_jobs_is_said_though_one_is_forgotten(run, tmp_path, programs, capsys):
    programs("sbatch", 'case "$*" in *one*) echo Submitted batch job 1;; *) echo Submitted batch job 2; esac')
    programs("squeue", 'case "$*" in *=2) echo RUNNING; esac')
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(run.read_text())
        tenfold(["launch", str(tmp_path / f"{name}.toml"), "--on", "slurm", "--out", str(tmp_path), "--submit"])
    capsys.readouterr()
    tenfold(["launch", "status", "--out", str(tmp_path), "--json"])
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [(job["name"], job["status"]) for job in jobs] == [("one", "unknown"), ("two", "running")]
    assert "does not list job 1" in jobs[0]["error"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--on", "slurn"], "no launcher 'slurn'"),
        (["--on", "local"], "needs 4 nodes, and this machine is one"),
        (["--on", "slurm", "--nodes", "0"], "--nodes must be a whole number >= 1"),
        (["--on", "slurm", "--least-nodes", "5"], "fewer than its least_nodes 5"),
        (["--on", "slurm", "--limit", "2 days"], "time limit '2 days'"),
        (["--on", "slurm", "--claim", "x"], "'slurm' has no option 'claim'"),
        (["--on", "slurm", "--image", "x"], "absolute path"),
        (["--on", "slurm", "--qos", "a\nb"], "option qos cannot be"),
        (["--on", "slurm", "--signal", "KILL"], "USR1 or TERM or INT"),
        (["--on", "slurm", "--env", "A-B=c"], "'A-B' cannot name an environment variable"),
        (["--on", "slurm", "--env", "A"], "--env takes NAME=VALUE"),
        (["--on", "slurm", "--requeues", "-1"], "--requeues must be a whole number >= 0"),
        (["--on", "slurm", "--at-once", "2"], "--at-once needs a sweep"),
        (["--on", "slurm", "--sweep", "seed"], "--sweep takes KEY=VALUE,VALUE"),
        (["--on", "slurm", "--sweep", "sead=1,2"], "no setting 'sead' (did you mean 'seed'?)"),
        (["--on", "slurm", "--sweep", "optimizer.learning_rate=1e-3,no"], "learning_rate"),
        (["--on", "slurm", "--sweep", "seed=1", "--sweep", "seed=2"], "gives seed twice"),
        (["--on", "slurm", "--sweep", "optimizer=x", "--sweep", "optimizer.name=adamw"], "twice, by optimizer too"),
        (["--on", "slurm", "--sweep", "optimizer.name=adamw", "--sweep", "optimizer=x"], "twice, by optimizer.name too"),
        (
            ["--on", "kubernetes", "--home", "/g", "--image", "x", "--at-once", "2", "--sweep", "seed=1,2", "--submit"],
            "starts all jobs",
        ),
        (["--on", "kubernetes", "--home", "/g", "--image", "x", "--queue", "Q"], "queue 'Q' is no valid Kubernetes name"),
        (["--on", "kubernetes", "--home", "/g", "--image", "x", "--topology", "rack"], "name its queue with --queue"),
        (["--on", "kubernetes", "--home", "/g", "--image", "x", "--rdma", "rdma/hca=no"], "such as rdma/hca=1"),
        (["--on", "kubernetes", "--home", "/g", "--image", "x", "--toleration", "a=b:c"], "--toleration takes"),
        (["--on", "kubernetes", "--home", "/generations"], "give --image"),
        (["--on", "kubernetes", "--image", "x"], "absolute path"),
    ],
)
def test_what_no_cluster_takes_is_one_sentence(run, tmp_path, arguments, sentence):
    nodes = [] if "--nodes" in arguments else ["--nodes", "4"]
    with pytest.raises(TenfoldError) as error:
        tenfold(["launch", str(run), "--out", str(tmp_path), *nodes, *arguments])
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_command_that_is_no_group_runs_as_it_is(tmp_path):
    job = Job("serve", command=("python", "-m", "tenfold", "serve", "it's"), resources=Resources(gpus=1))
    line = open_launcher("slurm", folder=tmp_path).write(job).read_text().split("0) on_nodes ")[1].split(" & ;;")[0]
    assert shlex.split(line) == [sys.executable, *job.command[1:]]
    with pytest.raises(TenfoldError, match="Slurm starts only command lines, and the job 'f' is a function"):
        open_launcher("slurm", folder=tmp_path).submit(Job("f", function=print))


@pytest.mark.parametrize("said", ["No available agent to submit job, please try again later..", "Out of order."])
def test_rays_job_server_is_asked_again_while_it_has_no_agent_and_otherwise_refuses_in_a_sentence(monkeypatch, said):
    pytest.importorskip("ray")
    asked = []

    class JobServer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            about = self.path.startswith("/api/version")
            good = about or asked.count("/api/jobs/") > 1
            body = {"version": "4", "ray_version": version("ray"), "ray_commit": "", "session_name": ""} if about else []
            text = json.dumps(body).encode() if good else said.encode()
            self.send_response(200 if good else 500)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), JobServer)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    if said.startswith("No available agent"):
        assert open_launcher("ray").seen() == {} and asked.count("/api/jobs/") == 2
    else:
        with pytest.raises(TenfoldError, match=r"Ray's job server refused.*Out of order"):
            open_launcher("ray").seen()
    server.shutdown()


def test_names_that_no_file_can_have_do_not_share_one():
    names = ["训练", "训练二", "tâche", "tache", "x" * 60, "x" * 61, "run_1", "Llama 3.1"]
    found = {name: file_name(Job(name, command=("true",))) for name in names}
    assert len(set(found.values())) == len(names) and all(re.fullmatch(r"tenfold[a-z0-9-]{0,43}", one) for one in found.values())
    assert (found["run_1"], found["Llama 3.1"]) == ("tenfold-run-1", "tenfold-llama-3-1")
