"""`tenfold launch` and what follows it by a job's name, on this machine with real processes; and quotes, whatever is written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.cli.commands import run as tenfold
from tenfold.launch.failures import LOST_STARTS, noted, require_progress
from tenfold.launch.job import Job, Resources, open_launcher
from tenfold.launch.job_files import later, shell_line
from tenfold.launch.records import find_records, read_record, write_record
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics
from tenfold.train.run_file import read_config

STEPS = 200
RUN = """seed = 3
tokens = {tokens}
dtype = "float32"
device = "cpu"
compile = "off"
[model]
name = "tiny"
dim = 64
n_layers = 2
n_heads = 2
n_kv_heads = 2
ffn_dim = 192
[data]
corpus = {corpus}
vocab_size = 400
seq_len = 128
batch_size = 4
max_epochs = 1e9
[optimizer]
name = "adamw"
learning_rate = 1e-3
[checkpoint]
every_s = 1e6
[log]
every = 1
"""


@pytest.fixture
def run_file(tmp_path, text_folder, monkeypatch):
    """A run in a folder where jobs are submitted from."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small run.toml"
    path.write_text(RUN.format(tokens=STEPS * 4 * 128, corpus=json.dumps(str(text_folder / "json"))))
    return path


def rows(directory):
    return read_metrics(directory / "run.jsonl") if (directory / "run.jsonl").exists() else []


def losses(directory):
    return {row["step"]: row["loss"] for row in rows(directory) if row["event"] == "step"}


def asked(capsys, *words):
    tenfold(["launch", *words, "--json"])
    return json.loads(capsys.readouterr().out)


def wait_until(true, what):
    for _ in range(2400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError(f"after two minutes it is not so that {what}")


@pytest.mark.slow
def test_a_running_job_goes_on_with_another_size_to_the_losses_of_an_undisturbed_run(run_file, tmp_path, capsys):
    local = ["--on", "local", "--gpus-per-node", "0", "--cores-per-node", "1", "--save-s", "60", "--submit"]
    asked(capsys, str(run_file), *local, "--processes-per-node", "1", "--home", "alone")
    wait_until(lambda: asked(capsys, "status", "small run")["jobs"][0]["status"] == "finished", "it has finished")
    undisturbed = losses(tmp_path / "alone" / "small run")
    assert len(undisturbed) == STEPS

    asked(capsys, str(run_file), *local, "--processes-per-node", "2", "--home", "resized")
    directory, changes = tmp_path / "resized" / "small run", []
    for processes in (1, 2):
        before = len(losses(directory))
        wait_until(lambda before=before: len(losses(directory)) > before + 3, "it makes steps")
        asked(capsys, "resize", "small run", "--processes-per-node", str(processes))
        changes.append(max(losses(directory)))
    assert changes[0] < changes[1] < STEPS, "it was over before it was resized"
    wait_until(lambda: asked(capsys, "status", "small run")["jobs"][0]["status"] == "finished", "it has finished")
    assert losses(directory) == pytest.approx(undisturbed, rel=1e-4) and len(losses(directory)) == STEPS
    # Nothing is saved in this run but when it leaves: no step was lost, none done twice.
    assert [row["step"] for row in rows(directory) if row["event"] == "stopped"] == changes
    tenfold(["launch", "logs", "small run", "--lines", "1"])
    assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(TenfoldError, match="has ended already"):
        tenfold(["launch", "cancel", "small run"])


def command(text, **fields):
    return Job("a job", command=("bash", "-c", text), grace_s=fields.pop("grace_s", 20), **fields)


def test_a_command_outlives_its_launcher_and_is_asked_and_ended_by_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = f"""
from pathlib import Path
from tenfold.launch.job import Job, open_launcher
from tenfold.launch.records import write_record
text = 'trap "echo saved; exit 0" TERM; echo "$WORD"; while :; do sleep 0.05; done'
job = Job("a job", command=("bash", "-c", text), grace_s=20, environment={{"WORD": "it's"}})
write_record(Path(), "local", {{"folder": Path({str(tmp_path)!r})}}, open_launcher("local", folder=Path()).submit(job))
"""
    subprocess.run([sys.executable, "-c", start], check=True, timeout=100)
    wait_until(
        lambda: (tmp_path / "tenfold-a-job.local.log").exists() and "it's" in (tmp_path / "tenfold-a-job.local.log").read_text(),
        "it prints",
    )
    assert asked(capsys, "status")["jobs"][0]["status"] == "running"
    assert asked(capsys, "cancel", "a job")["saved"] is True
    assert asked(capsys, "status", "a job")["jobs"][0]["status"] == "stopped"
    tenfold(["launch", "logs", "a job"])
    assert capsys.readouterr().out == "it's\nsaved\n"


@pytest.mark.parametrize(("text", "ends"), [("exit 0", "finished"), ("exit 7", "failed"), ("kill -9 $$", "failed")])
def test_how_a_command_ended_is_known_to_other_processes(tmp_path, text, ends):
    local = open_launcher("local", folder=tmp_path)
    path = write_record(tmp_path, "local", {"folder": tmp_path}, local.submit(command(text)))
    _, _, other, handle = read_record(path)
    wait_until(lambda: other.status(handle) == ends, f"it has {ends}")


def test_a_command_that_does_not_leave_is_ended_with_its_children(tmp_path):
    local = open_launcher("local", folder=tmp_path)
    handle = local.submit(command('trap "" TERM; (trap "" TERM; echo $BASHPID; exec sleep 1000)', grace_s=1))
    wait_until(lambda: local.logs(handle, 1).strip(), "its child has begun")
    child = int(local.logs(handle, 1))
    assert not local.drain(handle, 0.3)
    wait_until(
        lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2], "it is gone"
    )
    with pytest.raises(TenfoldError, match="exit status"):
        handle.future.result(timeout=60)


def test_a_command_has_its_time_limit(tmp_path):
    local = open_launcher("local", folder=tmp_path)
    handle = local.submit(command('trap "echo saved; exit 0" TERM; while :; do sleep 0.05; done', time_limit_s=2, grace_s=1))
    handle.future.result(timeout=100)
    assert local.logs(handle, 1) == "saved"


def test_nothing_of_a_time_limit_is_left_when_a_command_has_ended(tmp_path):
    local = open_launcher("local", folder=tmp_path)
    local.submit(command("exit 0", time_limit_s=98765, grace_s=1)).future.result(timeout=60)

    def waits():
        return any("98764" in process.info["cmdline"] for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])

    wait_until(lambda: not waits(), "nothing waits for its limit")


def test_a_size_that_is_refused_leaves_the_job_as_it_is_and_it_is_found_from_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("jobs")
    folder.mkdir()
    local = open_launcher("local", folder=folder)
    handle = local.submit(command('trap "exit 0" TERM; echo begun; while :; do sleep 0.05; done'))
    write_record(folder, "local", {"folder": folder}, handle)
    wait_until(lambda: local.logs(handle, 1), "it prints")
    monkeypatch.chdir(folder)
    with pytest.raises(TenfoldError, match="this machine is one"):
        tenfold(["launch", "resize", "a job", "--nodes", "2"])
    assert asked(capsys, "status", "a job")["jobs"][0]["status"] == "running"
    assert asked(capsys, "cancel", "a job")["saved"] is True


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status", "other"], "No job 'other' was submitted"),
        (["logs", "a jop"], "did you mean 'a-job'"),
        (["resize", "a job"], "has ended"),
    ],
)
def test_a_job_that_there_is_not_or_that_has_ended_is_one_sentence(tmp_path, words, says):
    local = open_launcher("local", folder=tmp_path)
    handle = local.submit(command("true"))
    handle.future.result(timeout=60)
    write_record(tmp_path, "local", {"folder": tmp_path}, handle)
    with pytest.raises(TenfoldError) as error:
        tenfold(["launch", *words, "--out", str(tmp_path)])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_record_is_one_sentence(tmp_path):
    for text, says in (("{", "damaged"), ('{"version": 9}', "version 9"), ('{"version": 1, "on": "local"}', "not a job's record")):
        (tmp_path / "tenfold-a.job.json").write_text(text)
        with pytest.raises(TenfoldError, match=says):
            tenfold(["launch", "status", "a", "--out", str(tmp_path)])


def test_long_names_that_begin_alike_stay_apart(tmp_path):
    local = open_launcher("local", folder=tmp_path)
    paths = {local.path(Job("a very long name of a run of many words and letters " + end, command=("true",))) for end in "ab"}
    assert len(paths) == 2 and all(len(path.name) <= 50 + len(".local.sh") for path in paths)


def test_a_sweep_has_a_run_file_and_a_job_for_each_choice(run_file, tmp_path, capsys):
    sweep = ["--sweep", "optimizer.learning_rate=1e-3,2e-3", "--sweep", "seed=0,1,2", "--at-once", "2"]
    found = asked(capsys, str(run_file), "--on", "slurm", *sweep)
    assert len(found["files"]) == 1
    configs = [read_config(tmp_path / f"small run-{i}.toml") for i in range(6)]
    chosen = [(config.optimizer.learning_rate, config.seed) for config in configs]
    assert sorted(chosen) == [(rate, seed) for rate in (1e-3, 2e-3) for seed in range(3)]
    assert all(f"small run-{i}.toml" in found["job"] for i in range(6))
    kube = ["--on", "kubernetes", "--image", "x", "--home", "/home"]
    assert len(asked(capsys, str(run_file), *kube, *sweep[:2])["files"]) == 2


def test_starts_that_come_no_further_end_an_elastic_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    for step in (0, 4):
        for _ in range(LOST_STARTS):
            require_progress(tmp_path, step)  # and then it is killed
    with pytest.raises(TenfoldError, match=f"lost {LOST_STARTS} times after step 4 and saved nothing") as error:
        require_progress(tmp_path, 4)
    assert "\n" not in str(error.value)
    require_progress(tmp_path, 5)
    for _ in range(2 * LOST_STARTS):  # one that leaves when it is told to is not lost
        with noted(tmp_path):
            require_progress(tmp_path, 5)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    require_progress(tmp_path, 5)


def test_how_often_the_same_failure_is_met_with_another_start_is_a_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("TENFOLD_SAME_FAILURES", "3")
    code = "import sys; from pathlib import Path; from tenfold.launch.failures import noted\nwith noted(Path(sys.argv[1])):\n raise KeyError(1)"
    said = [subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True).stderr for _ in range(3)]
    assert all("KeyError" in text for text in said)
    stop = "import os; os.getppid = lambda: os.getpid()\n" + code  # its agent is itself
    last = subprocess.run([sys.executable, "-c", stop, str(tmp_path)], capture_output=True, text=True)
    assert "failed 3 times in the same way: KeyError: 1" in last.stderr


# Any text that a command line can hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_words_survive_the_shell(words, place):
    """Also with what is known later in the middle of one."""
    known = "head of $(all) 'nodes'"
    line = shell_line([*words, f"{words[0]}{later('head')}={later('head')}"])
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], env=os.environ | {"head": known}, capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == [*words, f"{words[0]}{known}={known}"]


def written(path):
    """A file's text; ends of lines as they are."""
    return path.read_bytes().decode()


@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
@settings(max_examples=12, deadline=None)
def test_commands_and_environments_survive_every_job_file(tmp_path_factory, words, value):
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "run.toml").write_text(value, newline="")
    fields = {"environment": {"NCCL_TEST": value}, "resources": Resources(gpus=1), "files": (folder / "run.toml",)}
    job = Job(f"a {value} job", command=("printf", "%s\\0", *words), **fields)
    show = """printf "%s\\0" "$NCCL_TEST"; """
    local = open_launcher("local", folder=folder).write(job)
    text = written(local).replace("exec >>", "true >>").replace('exit "$status"', f'{show} exit "$status"')
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [*words, value]
    slurm = open_launcher("slurm", folder=folder, reservation=value.translate(dict.fromkeys([*range(32), 127])) or None).write(job)
    srun = f"""srun() {{ while [[ "$1" == --* ]]; do shift; done; "$@"; {show} }}; scontrol() {{ :; }}; squeue() {{ :; }}"""
    script = f"{srun}; SLURM_JOB_ID=1 SLURM_JOB_NODELIST=n; {written(slurm)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [*words, value]
    cluster = open_launcher(
        "kubernetes", folder=folder, image=value, home=f"/{value}", queue="q", topology=value or "x", gang="volcano"
    )
    documents = list(yaml.safe_load_all(written(cluster.write(job))))
    (container,) = documents[-1]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["printf", "%s\\0", *words] and container["image"] == value
    assert container["env"] == [{"name": "NCCL_TEST", "value": value}]
    assert documents[0]["data"] == {"run.toml": value}
    space = {}
    source = written(open_launcher("ray", folder=folder).write(job))
    exec(source[source.index("NODES") : source.index("@ray")], space)
    assert space["COMMAND"] == ["printf", "%s\\0", *words]


def test_what_a_kubernetes_cluster_offers_is_asked_as_its_api_takes_it(run_file, tmp_path, capsys):
    common = ["--on", "kubernetes", "--image", "r.example/x", "--home", "/home", "--nodes", "4", "--least-nodes", "3"]
    options = {
        "--queue": "research", "--topology": "cloud.provider.com/topology-rack", "--gang": "coscheduling", "--rdma": "rdma/hca=4",
        "--toleration": "nvidia.com/gpu=present:NoSchedule", "--node-selector": "pool=h100", "--priority-class": "low",
        "--pull-secret": "registry", "--env": "NCCL_IB_HCA==mlx5_0:1", "--memory-gib": "1.5", "--cores-per-node": "12",
    }  # fmt: skip
    text = asked(capsys, str(run_file), *common, *(word for pair in options.items() for word in pair), "--toleration", "spot")[
        "job"
    ]
    *known, group, job = yaml.safe_load_all(text)
    for document in (*known, job):
        kubernetes_validate.validate(document, "1.31", strict=True)
    assert group["kind"] == "PodGroup" and group["spec"] == {"minMember": 3}
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "research"} and job["spec"]["suspend"] is True
    template, pod = job["spec"]["template"]["metadata"], job["spec"]["template"]["spec"]
    assert template["labels"]["scheduling.x-k8s.io/pod-group"] == group["metadata"]["name"]
    assert template["annotations"] == {"kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/topology-rack"}
    assert pod["tolerations"] == [
        {"operator": "Equal", "key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"operator": "Exists", "key": "spot"},
    ]
    assert pod["nodeSelector"] == {"pool": "h100"} and pod["priorityClassName"] == "low"
    assert pod["imagePullSecrets"] == [{"name": "registry"}] and pod["schedulerName"] == "scheduler-plugins-scheduler"
    (container,) = pod["containers"]
    wanted = {"nvidia.com/gpu": "8", "cpu": "12", "memory": str(3 * 2**29), "rdma/hca": "4"}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    assert container["env"] == [{"name": "NCCL_IB_HCA", "value": "=mlx5_0:1"}]


def test_records_are_found_by_the_name_of_the_run_file(tmp_path):
    local = open_launcher("local", folder=tmp_path)
    handles = [local.submit(Job(name, command=("true",))) for name in ("one run", "other")]
    for handle in handles:
        write_record(tmp_path, "local", {"folder": tmp_path}, handle)
        handle.future.result(timeout=60)
    assert len(find_records(tmp_path)) == 2 and len(find_records(tmp_path, "one run")) == 1
    assert read_record(find_records(tmp_path, "other")[0])[3].job == handles[1].job
