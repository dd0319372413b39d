"""Job files: what the systems' own tools make of them, and what becomes of signals."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tenfold.cli import run as tenfold
from tenfold.launch.job_files import Launch, submit, write_job
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics

BIN = Path(sys.executable).parent
VALUES = dict(nodes=4, image="registry.example/tenfold:1", home="/generations", partition="gpu", account="models")


@pytest.fixture
def run(tmp_path):
    """A run file with a name and text that need quoting everywhere."""
    path = tmp_path / "a run's {file}.toml"
    path.write_text('tokens = 1000\nmodel = { width = 32 }\ncorpus = "it\'s: #1"\n')
    return path


def test_the_slurm_script_is_sound_bash(run, tmp_path):
    path = write_job(Launch(run, **VALUES), "slurm", tmp_path)
    subprocess.run(["bash", "-n", path], check=True)
    subprocess.run([BIN / "shellcheck", path], check=True)
    options = dict(line[8:].split("=", 1) for line in path.read_text().splitlines() if line.startswith("#SBATCH --") and "=" in line)
    assert options["--nodes"] == "4" and options["--gpus-per-node"] == "8" and options["--partition"] == "gpu"


def test_the_kubernetes_manifest_is_what_the_api_takes(run, tmp_path):
    path = write_job(Launch(run, **VALUES, least_nodes=3), "kubernetes", tmp_path)
    settings, service, job = yaml.safe_load_all(path.read_text())
    for resource in (settings, service, job):
        kubernetes_validate.validate(resource, "1.31", strict=True)
    assert settings["data"]["run.toml"] == run.read_text()
    pod = job["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    # The first pod's name in the service is where all meet.
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}" in command
    assert "--nnodes=3:4" in command and f"/generations/{run.stem}" in command
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4


def test_the_ray_job_is_python_with_the_same_command(run, tmp_path):
    path = write_job(Launch(run, **VALUES), "ray", tmp_path)
    space: dict = {}
    source = path.read_text()
    compile(source, str(path), "exec")
    exec(source[source.index("NODES") : source.index("@ray")], space)
    assert space["NODES"] == 4
    assert space["COMMAND"][2:5] == ["python", "-m", "torch.distributed.run"] and str(run.resolve()) in space["COMMAND"]


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
        f'tokens = {tokens}\nmodel = {{ width = 32 }}\nvocab_size = 300\nseq_len = 16\nbatch_size = 4\nmax_epochs = 1e9\n'
        f'log_every = 1\ndevice = "cpu"\ncorpus = "{text_folder}"\n'
    )
    return path


def wait_for_steps(directory, process):
    for _ in range(1200):
        if (directory / "run.jsonl").exists() and any(e["event"] == "step" for e in read_metrics(directory / "run.jsonl")):
            return
        assert process.poll() is None, "the job ended before its first step"
        time.sleep(0.1)
    raise AssertionError("no step in two minutes")


def test_ahead_of_the_limit_the_run_saves_and_the_job_is_queued_again(cluster, text_folder, tmp_path):
    home = tmp_path / "home"
    run = small_run(tmp_path / "small.toml", text_folder / "json", 10**8)
    path = write_job(Launch(run, 1, gpus_per_node=0, home=str(home), port=free_port()), "slurm", tmp_path)
    with subprocess.Popen(["bash", path], env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        try:
            wait_for_steps(home / "small", job)
            job.send_signal(signal.SIGUSR1)  # --signal=B: reaches the script alone
            job.communicate(timeout=120)
        finally:
            job.kill()
    said = (tmp_path / "stubs" / "said").read_text().splitlines()
    assert said == [f"scancel --signal=USR1 {os.getpid()}", f"scontrol requeue {os.getpid()}"]
    (stopped,) = (row for row in read_metrics(home / "small" / "run.jsonl") if row["event"] == "stopped")
    assert stopped["step"] > 0
    assert list((home / "small" / "checkpoint").iterdir())


def test_a_job_that_ends_by_itself_gives_its_exit_status(cluster, text_folder, tmp_path):
    run = small_run(tmp_path / "small.toml", text_folder / "json", 256)
    path = write_job(Launch(run, 1, gpus_per_node=0, home=str(tmp_path / "home")), "slurm", tmp_path)
    for status in (0, 3, 143):
        (tmp_path / "stubs" / "srun").write_text(f"#!/bin/bash\nexit {status}\n")
        assert subprocess.run(["bash", path], env=cluster).returncode == status


def test_submitting_says_what_the_system_says(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    stub = folder / "sbatch"
    stub.write_text('#!/bin/bash\nbash -n "$1" && echo Submitted batch job 7\n')
    stub.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        tenfold(["launch", str(run), "--on", "slurm", "--nodes", "2", "--submit", "--json"])
    assert json.loads(capsys.readouterr().out)["submitted"] == "Submitted batch job 7"
    stub.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    with pytest.raises(TenfoldError, match="sbatch did not take .* invalid partition"):
        submit(tmp_path / "job.sh", "slurm", 60)
    with pytest.raises(TenfoldError, match="kubectl is not on this machine"):
        monkeypatch.setenv("PATH", str(folder))
        submit(tmp_path / "job.yaml", "kubernetes", 60)


@pytest.mark.parametrize(
    ("system", "changed", "sentence"),
    [
        ("slurn", {}, "no way to launch on 'slurn'"),
        ("slurm", {"nodes": 0}, "at least 1 as nodes"),
        ("slurm", {"least_nodes": 5}, "cannot need 5"),
        ("slurm", {"limit": "2 days"}, "time limit '2 days'"),
        ("kubernetes", {"image": None}, "say --image"),
        ("kubernetes", {"home": "generations"}, "absolute path"),
    ],
)
def test_what_no_cluster_takes_is_one_sentence(run, tmp_path, system, changed, sentence):
    with pytest.raises(TenfoldError, match=sentence):
        write_job(Launch(run, **VALUES | changed), system, tmp_path)


def test_quoting_survives_the_shell(run, tmp_path):
    path = write_job(Launch(run, **VALUES), "slurm", tmp_path)
    line = next(line for line in path.read_text().splitlines() if line.startswith("srun"))
    assert str(run.resolve()) in shlex.split(line)
