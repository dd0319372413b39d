"""The controller of a fleet file on a cluster: what it refuses, the demand it reads, and real training on a real Slurm over a kill."""

import json
import os
import subprocess
import sys
import time

import pytest
from slurm_cluster import SlurmCluster, missing

from tenfold.fleet.cluster.controller import DemandFiles, check
from tenfold.fleet.fleet_file import fleet_of
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.pools import Service
from tenfold.spec.errors import TenfoldError
from tenfold.train.metrics import read_metrics

POOL = {"site": "tx", "accelerator": "h100", "nodes": 2, "accelerators_per_node": 4}
CHAT = {"pool": "a", "own": 1, "requests_per_s": 10.0, "demand_csv": "demand.csv", "command": ["serve"]}
RUN = {"pool": "a", "command": ["train"], "hours": 1.0}


def fleet(pools=None, **tables):
    return fleet_of({"sites": {"tx": {"region": "TX"}}, "pools": pools or {"a": POOL}, **tables}, "fleet.toml")


@pytest.mark.parametrize(
    "on, tables, said",
    [
        ("slurm", {}, "neither [services.NAME] nor [runs.NAME], and so nothing to run on slurm"),
        ("slurm", {"services": {"chat": {**CHAT, "command": None}}}, "the service chat has no command"),
        ("slurm", {"services": {"train": CHAT}}, "a service cannot be named train"),
        ("slurm", {"pools": {"a": POOL, "b": POOL}, "runs": {"x": RUN}}, "the pool a has no partition, by which slurm would know"),
        ("ray", {"pools": {"a": {**POOL, "resource": "r"}, "b": POOL}, "runs": {"x": RUN}}, "the pool b has no resource"),
        (
            "slurm",
            {"pools": {name: {**POOL, "partition": "p"} for name in "ab"}, "runs": {"x": RUN}},
            "the pools a and b are both of the partition p",
        ),
        ("slurm", {"runs": {"x": {**RUN, "pool": "c"}}}, "run x: no pool 'c'"),
        ("slurm", {"runs": {"x": {**RUN, "least": 3}}}, "the run x needs 3 nodes of a, which has 2"),
        ("slurm", {"services": {"chat": CHAT}, "runs": {"x": {**RUN, "least": 2}}}, "needs 2 nodes, beside 1 of services, of a"),
        ("slurm", {"runs": {"x": {**RUN, "least": 2, "most": 1}}}, "the run x has least = 2 nodes and most = 1"),
        ("slurm", {"runs": {"x": {**RUN, "command": []}}}, "runs.x: command must be a list that is not empty"),
        ("ray", {"runs": {"a run": RUN, "a-run": RUN}}, "a run and a-run would be one name on ray"),
        ("slurm", {"services": {"x": CHAT}, "runs": {"x": RUN}}, "x is the name of a run and of a service"),
    ],
)
def test_a_file_that_cannot_run_on_a_cluster_says_what_binds(on, tables, said):
    with pytest.raises(TenfoldError) as raised:
        check(fleet(**tables), "fleet.toml", on)
    assert said in str(raised.value) and str(raised.value).startswith("fleet.toml")


def test_demand_is_the_last_row_of_its_file_and_forecast_once_there_is_enough(tmp_path):
    path, service = tmp_path / "demand.csv", Service("chat", 1, 10.0)
    demand = DemandFiles({"chat": fleet(services={"chat": {**CHAT, "demand_csv": str(path)}}).services["chat"]})
    days = [10.0 + 5.0 * (i % 144 >= 72) for i in range(6 * 144)]  # from noon on it is higher
    path.write_text("seconds,rate\n" + "".join(f"{600 * i},{rate}\n" for i, rate in enumerate(days[:2])))
    demand(service, 0.0)
    assert service.rate == 10.0 and len(service.high) == 0
    path.write_text("seconds,rate\n" + "".join(f"{600 * i},{rate}\n" for i, rate in enumerate(days[: 5 * 144 + 66])))
    os.utime(path, (time.time(), time.time() + 1))
    demand(service, 0.0)
    assert service.rate == 10.0 and service.middle[0] == pytest.approx(10, rel=0.1)
    assert service.middle[11] == pytest.approx(15, rel=0.1) and service.high[11] >= service.middle[11]


def test_a_faulty_demand_file_changes_nothing_and_is_said_once(tmp_path, capsys):
    path, service, began = tmp_path / "demand.csv", Service("chat", 1, 10.0), time.time() - 1000
    demand = DemandFiles({"chat": fleet(services={"chat": {**CHAT, "demand_csv": str(path)}}).services["chat"]})
    ages = iter(range(1000))

    def look(text):
        path.write_text(text)
        os.utime(path, (began, began + next(ages)))  # each state of the file has a time of its own
        for _ in range(2):
            demand(service, 0.0)
        return capsys.readouterr().err

    with pytest.raises(TenfoldError, match="needs two rows at least"):
        look("seconds,rate\n")
    assert look("seconds,rate\n0,10\n600,20\n") == "" and service.rate == 20
    assert look("seconds,rate\n0,10\n") == f"{path} needs two rows at least, and rates from 0 to 1e+12: seconds, requests/s. " + (
        "The demand of chat stays as it was.\n"
    )
    assert look("") == "" and look("seconds,rate\n0,1.\n600,1e\n") == "" and service.rate == 20
    path.unlink()
    demand(service, 0.0)
    assert capsys.readouterr().err == "" and service.rate == 20
    assert look("seconds,rate\n0,10\n600,30\n") == "" and service.rate == 30
    assert look("seconds,rate\n0,10\n600,30\n1200,9") == "" and service.rate == 30  # the last line may become 95
    os.utime(path, (began, time.time() - 60))
    demand(service, 0.0)
    assert look("").endswith("The demand of chat stays as it was.\n") and service.rate == 30
    assert 60 <= service.into_s < 600  # it counts from the last row that could be read


TRAINING = """tokens = {tokens}
dtype = "float32"
device = "cpu"
compile = "off"
model = {{name = "tiny", dim = 16, n_layers = 1, n_heads = 2, n_kv_heads = 2, ffn_dim = 32}}
data = {{corpus = {corpus}, vocab_size = 400, seq_len = 32, batch_size = 6, max_epochs = 1e9}}
optimizer = {{name = "adamw"}}
checkpoint = {{every_s = 0}}
log = {{every = 1}}
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(missing() != "", reason=missing())
def test_training_on_slurm_goes_on_when_the_controller_is_killed(text_folder, tmp_path):
    """A run on two nodes and one that waits for them end by a controller that was killed while the first one trained."""
    steps, names = 60, ("first", "second")
    runs = ""
    for name in names:
        (tmp_path / f"{name}.toml").write_text(TRAINING.format(tokens=steps * 192, corpus=json.dumps(str(text_folder / "json"))))
        words = [
            "python",
            "-m",
            "tenfold",
            "train",
            f"{tmp_path / name}.toml",
            "--out",
            str(tmp_path / name),
            "--home",
            str(tmp_path),
        ]
        runs += f'[runs.{name}]\npool = "a"\nhours = 0.1\nleast = 2\nprocesses_per_node = 1\ncommand = {json.dumps(words)}\n'
    (tmp_path / "fleet.toml").write_text(
        f'[simulation]\ntick_s = 5\n[sites.tx]\nregion = "TX"\n[pools.a]\nsite = "tx"\naccelerator = "h100"\nnodes = 2\n'
        f'accelerators_per_node = 4\npartition = "a"\n{runs}'
    )
    command = [sys.executable, "-m", "tenfold", "fleet", "run", "fleet.toml", "--on", "slurm", "--home", "home", "--json"]

    def made(name):
        path = tmp_path / name / "run.jsonl"
        return [row["step"] for row in read_metrics(path) if row["event"] == "step"] if path.exists() else []

    with SlurmCluster(tmp_path / "cluster", {"a": 2}, gpus=4) as cluster:
        controller = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        cluster.wait(lambda: len(made("first")) > 2 or controller.poll() is not None, "the first run makes steps", 600)
        controller.kill()
        controller.wait()
        subprocess.run(command, cwd=tmp_path, check=True, timeout=900)
        jobs = cluster.ask("squeue", "--noheader", "--states=all", "--format=%j %T").splitlines()
    assert sorted(made("first")) == sorted(made("second")) == list(range(1, steps + 1))
    assert Ledger(tmp_path / "home" / "fleet" / "ledger.db").finished() == set(names)
    assert len(jobs) == 2 and all(job.endswith("COMPLETED") for job in jobs)  # nothing was started again
