"""A first fleet file from what clusters say of their nodes: a real Slurm, and the forms that Slurm and Kubernetes document."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slurm_cluster import SlurmCluster, missing

from tenfold.cli.commands import run as tenfold
from tenfold.fleet.cluster.discover import kubernetes_nodes, slurm_nodes, tables
from tenfold.fleet.fleet_file import read_fleet
from tenfold.spec.accelerator import accelerators
from tenfold.spec.errors import TenfoldError


@pytest.mark.skipif(missing() != "", reason=missing())
def test_the_nodes_of_a_real_slurm_become_a_fleet(tmp_path, capsys):
    with SlurmCluster(tmp_path / "cluster"):
        with pytest.raises(TenfoldError, match="does not say what its accelerator is: say --accelerator"):
            tenfold(["fleet", "discover", "--on", "slurm", "--out", str(tmp_path / "fleet.toml")])
        tenfold(["fleet", "discover", "--on", "slurm", "--accelerator", "h100", "--out", str(tmp_path / "fleet.toml"), "--json"])
    said = json.loads(capsys.readouterr().out)
    (pool,) = read_fleet(tmp_path / "fleet.toml").pools.values()
    assert (pool.accelerator, pool.nodes, pool.accelerators_per_node, pool.host_cores, pool.ram_gib) == ("h100", 4, 8, 8, 4)
    assert said["nodes_without_accelerator"] == 0
    with pytest.raises(TenfoldError, match="is there already"):
        tenfold(["fleet", "discover", "--on", "slurm", "--out", str(tmp_path / "fleet.toml")])


def test_the_forms_of_gres_that_slurm_documents_are_read():
    forms = {
        "gpu:8": ("", 8), "gpu": ("", 1), "gpu:h100:8": ("h100", 8), "gpu:h100:8(S:0-1)": ("h100", 8), "(null)": ("", 0),
        "craynetwork:4,gpu:a100:4": ("a100", 4), "gpu:l40s:2,nic:2": ("l40s", 2), "gpu:mi300x": ("mi300x", 1), "nic:4": ("", 0),
    }  # fmt: skip
    for gres, (kind, count) in forms.items():
        (node,) = slurm_nodes(f"NodeName=n1 Arch=x86_64 CPUAlloc=0 CPUTot=96 Gres={gres} RealMemory=2063937 State=IDLE Comment=a=b")
        assert (node.kind, node.accelerators, node.host_cores, node.ram_gib) == (kind, count, 96, 2016), gres


USABLE = [
    "IDLE", "MIXED+CLOUD", "ALLOCATED", "ALLOCATED+", "IDLE+COMPLETING", "IDLE+PLANNED", "MIXED-", "IDLE+RESERVED", "IDLE+DYNAMIC_NORM",
    "IDLE+CLOUD+POWERED_DOWN", "IDLE~+CLOUD+POWER", "IDLE#", "IDLE%", "MIXED+CLOUD+POWERING_UP", "ALLOCATED+REBOOT_REQUESTED", "IDLE^",
]  # fmt: skip
UNUSABLE = [
    "DOWN", "DOWN*", "DOWN+NOT_RESPONDING", "DOWN*+DRAIN", "IDLE+DRAIN", "MIXED+DRAIN", "IDLE*+CLOUD+DRAIN", "DRAINED$", "DRAINING",
    "ALLOCATED+FAIL", "FAILING*", "IDLE*", "IDLE+CLOUD+NOT_RESPONDING", "DOWN+CLOUD+POWERED_DOWN", "UNKNOWN", "FUTURE",
    "IDLE+INVALID_REG", "IDLE+MAINTENANCE+RESERVED", "MAINT", "MIXED$",
]  # fmt: skip


def test_only_nodes_that_slurm_can_give_work_are_in_a_pool(tmp_path, monkeypatch, capsys):
    """The states are written as by `scontrol` of several versions of Slurm."""
    lines = [f"NodeName=n{i} CPUTot=8 Gres=gpu:h100:4 RealMemory=4096 State={s}" for i, s in enumerate(USABLE + UNUSABLE)]
    assert [node.usable for node in slurm_nodes("\n".join(lines))] == [True] * len(USABLE) + [False] * len(UNUSABLE)
    (tmp_path / "scontrol").write_text("#!/bin/bash\ncat <<'E'\n" + "\n".join([*lines, "NodeName=login State=IDLE"]) + "\nE\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    tenfold(["fleet", "discover", "--on", "slurm", "--out", str(tmp_path / "fleet.toml"), "--json"])
    said, (pool,) = json.loads(capsys.readouterr().out), read_fleet(tmp_path / "fleet.toml").pools.values()
    assert pool.nodes == len(USABLE)
    assert (said["nodes_without_accelerator"], said["unusable_nodes"]) == (1, len(UNUSABLE))
    with pytest.raises(TenfoldError, match="No node of the cluster has an accelerator and is up"):
        tables(slurm_nodes("\n".join(lines[len(USABLE) :])))


def kubernetes_node(labels, **capacity):
    """As the API has it; the labels of GPUs are those of NVIDIA's GPU feature discovery."""
    has = {"cpu": "192", "ephemeral-storage": "1054Gi", "memory": "2097152000Ki", "pods": "110", **capacity}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": labels}, "status": {"capacity": has}}


def test_the_nodes_of_kubernetes_become_a_fleet(tmp_path, monkeypatch):
    zone = {"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-1"}
    h100 = kubernetes_node({**zone, "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, **{"nvidia.com/gpu": "8"})
    l40s = kubernetes_node({"nvidia.com/gpu.product": "NVIDIA-L40S"}, **{"nvidia.com/gpu": "4", "cpu": "64500m", "memory": "512Gi"})
    cordoned = {**h100, "spec": {"unschedulable": True}}
    lost = {**h100, "status": {**h100["status"], "conditions": [{"type": "Ready", "status": "Unknown"}]}}
    nodes = {"apiVersion": "v1", "kind": "List", "items": [h100, cordoned, h100, lost, l40s, kubernetes_node(zone)]}
    (tmp_path / "kubectl").write_text(f"#!/bin/bash\ncat <<'E'\n{json.dumps(nodes)}\nE\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    tenfold(["fleet", "discover", "--on", "kubernetes", "--out", str(tmp_path / "fleet.toml")])
    fleet = read_fleet(tmp_path / "fleet.toml")
    assert set(fleet.sites) == {"eu-1", "here"}
    found = {(p.site, p.accelerator, p.nodes, p.accelerators_per_node, p.host_cores, p.ram_gib) for p in fleet.pools.values()}
    assert found == {("eu-1", "h100", 2, 8, 192, 2000), ("here", "l40s", 1, 4, 64, 512)}


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=8), inner) | st.lists(inner),
        max_leaves=6,
    )
)
@settings(max_examples=20, deadline=None)
def test_what_is_no_list_of_nodes_is_one_sentence(answer):
    with pytest.raises(TenfoldError, match="no list of nodes"):
        kubernetes_nodes(json.dumps(answer))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("NodeName=n Gres=(null)", "No node of the cluster has an accelerator"),
        ("NodeName=n Gres=gpu:l40:4", "'l40', which is not known"),
    ],
)
def test_a_cluster_that_says_too_little_is_one_sentence(line, says):
    with pytest.raises(TenfoldError, match=says) as error:
        tables(slurm_nodes(line))
    assert "\n" not in str(error.value)


def test_pools_of_one_accelerator_are_numbered_among_themselves():
    kinds = ["l4:8", "l40s:8", "l4:4", "l40s:4", "l4:2"]
    lines = [f"NodeName=n{i} CPUTot=8 RealMemory=1024 Gres=gpu:{kind}" for i, kind in enumerate(kinds)]
    assert list(tables(slurm_nodes("\n".join(lines)))["pools"]) == ["l4", "l40s", "l4-2", "l40s-2", "l4-3"]


def test_every_accelerator_is_found_by_its_own_name_and_no_other():
    for key in accelerators():
        (pool,) = tables(slurm_nodes(f"NodeName=n CPUTot=8 RealMemory=1024 Gres=gpu:nvidia_{key.replace('-', '_')}_80gb:8"))[
            "pools"
        ].values()
        assert pool["accelerator"] == key
