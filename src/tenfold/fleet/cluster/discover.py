"""Writes a first `fleet.toml` from the node list of a cluster."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from tenfold.spec.commands import File, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Text

BINARY = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
ZONES = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
PRODUCTS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name", "cloud.google.com/gke-accelerator")
GPUS = ("nvidia.com/gpu", "amd.com/gpu")
HERE = "here"
# Words in the state of a node to which Slurm gives no work until something is done about it.
UNUSABLE = {
    "DOWN", "ERROR", "UNKNOWN", "FUTURE", "INVALID", "INVAL", "INVALID_REG", "DRAIN", "DRAINING", "DRAINED", "FAIL", "FAILING",
    "NOT_RESPONDING", "MAINT", "MAINTENANCE",
}  # fmt: skip


class Node(NamedTuple):
    """A node as the cluster describes it. `kind` is the cluster's name of its accelerator, empty where it gives none. A node that
    is down, drained or failed is not `usable`."""

    site: str
    kind: str
    accelerators: int
    host_cores: int
    ram_gib: int
    usable: bool = True


def discover(
    *,
    on: Annotated[Literal["slurm", "kubernetes"], Meta(description="Cluster whose nodes are listed, by scontrol or kubectl.")],
    out: Annotated[File, Meta(description="Fleet file to write; it must not exist.")] = Path("fleet.toml"),
    accelerator: Annotated[
        Text | None, Meta(description="Accelerator of nodes for which the cluster does not name one, such as h100.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a first fleet.toml with a pool for each kind of node of a cluster. Services, jobs and power caps are to be added by
    hand.

    Example: tenfold fleet discover --on slurm --out fleet.toml
    """
    import tomli_w

    from tenfold.fleet.fleet_file import fleet_of
    from tenfold.launch.job_files import call
    from tenfold.spec.files import write_text

    if out.exists():
        raise TenfoldError(f"{out} is there already: choose another name by --out, or delete it.")
    if on == "slurm":
        nodes = slurm_nodes(call("scontrol", ["show", "node", "--oneliner"], "the nodes of the cluster"))
    else:
        nodes = kubernetes_nodes(call("kubectl", ["get", "nodes", "-o", "json"], "the nodes of the cluster"))
    fields = tables(nodes, accelerator)
    fleet_of(fields, str(out))
    write_text(out, tomli_w.dumps(fields))
    left_out = sum(node.accelerators == 0 for node in nodes)
    unusable = sum(node.accelerators > 0 and not node.usable for node in nodes)
    if json:
        counts = {"nodes_without_accelerator": left_out, "unusable_nodes": unusable}
        print_json({"file": str(out), "pools": fields["pools"], **counts})
        return
    for name, pool in fields["pools"].items():
        print(f"{name}: {pool['nodes']} nodes of {pool['accelerators_per_node']} {pool['accelerator']} in {pool['site']}")
    print(f"Written to {out}; {left_out} nodes without an accelerator are left out. Network and storage have default values.")
    if unusable:
        print(f"{unusable} nodes that are down, drained or failed are left out too.")


def slurm_nodes(text: str) -> list[Node]:
    """The nodes in the output of `scontrol show node --oneliner`."""
    nodes = []
    for line in text.splitlines():
        said = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
        if "NodeName" not in said:
            continue
        # comma-separated, such as gpu:8 or gpu:h100:8(S:0-1)
        gpus = re.findall(r"(?:^|,)gpu(?::([^:,()]*[^\d:,()][^:,()]*))?(?::(\d+))?(?:\(|,|$)", said.get("Gres", ""))
        kinds = {kind for kind, _ in gpus if kind}
        count = sum(int(number or 1) for _, number in gpus)
        ram_gib = round(int(said.get("RealMemory", 0)) / 1024)
        usable = _is_usable(said.get("State", ""))
        nodes.append(Node(HERE, "+".join(sorted(kinds)), count, int(said.get("CPUTot", 0)), ram_gib, usable))
    return nodes


def _is_usable(state: str) -> bool:
    """Whether Slurm gives work to a node in this state, such as `MIXED+CLOUD`, `IDLE+DRAIN` or, in older versions, `DOWN*+DRAIN`.

    An asterisk marks a node that does not respond, a dollar sign one in maintenance. Nodes that are powered down or restarting
    are usable, since Slurm starts them itself.
    """
    return not (UNUSABLE.intersection(re.findall(r"[A-Z_]+", state)) or set("*$").intersection(state))


def kubernetes_nodes(text: str) -> list[Node]:
    """The nodes in the output of `kubectl get nodes -o json`. Raises TenfoldError where it is no list of nodes."""
    try:
        return [_kubernetes_node(item) for item in json.loads(text)["items"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TenfoldError("The output of kubectl is no list of nodes: see `kubectl get nodes -o json`.") from None


def _kubernetes_node(item: dict[str, Any]) -> Node:
    labels, has = item["metadata"].get("labels", {}), item["status"]["capacity"]
    site = next((labels[label] for label in ZONES if label in labels), HERE)
    kind = next((labels[label] for label in PRODUCTS if label in labels), "")
    amount, unit = re.fullmatch(r"(\d+)(\w*)", has["memory"]).groups()  # type: ignore[union-attr]
    cores = int(has["cpu"][:-1]) // 1000 if has["cpu"].endswith("m") else int(has["cpu"])
    count = sum(int(has.get(name, 0)) for name in GPUS)
    conditions = {row["type"]: row["status"] for row in item["status"].get("conditions", ())}
    usable = conditions.get("Ready", "True") == "True" and not item.get("spec", {}).get("unschedulable", False)
    return Node(site, kind, count, cores, round(int(amount) * BINARY[unit] / 2**30), usable)


def tables(nodes: list[Node], accelerator: str | None = None) -> dict[str, Any]:
    """The tables of a fleet file, with a pool for each kind of usable node. `accelerator` is used for nodes without a named one.

    Raises TenfoldError where no usable node has an accelerator, or one has an unknown kind.
    """
    counted = Counter(node for node in nodes if node.accelerators and node.usable)
    if not counted:
        raise TenfoldError("No node of the cluster has an accelerator and is up, by its own list: write fleet.toml by hand.")
    pools: dict[str, dict[str, Any]] = {}
    for node, number in counted.most_common():
        key = _key(node.kind, accelerator)
        same = sum(pool["accelerator"] == key for pool in pools.values())
        pools[f"{key}-{same + 1}" if same else key] = {
            "site": node.site, "accelerator": key, "nodes": number, "accelerators_per_node": node.accelerators,
            "host_cores": node.host_cores, "ram_gib": node.ram_gib,
        }  # fmt: skip
    return {"sites": {node.site: {} for node in counted}, "pools": pools}


def _key(kind: str, otherwise: str | None) -> str:
    """The key of the accelerator that the cluster calls `kind`: `NVIDIA-H100-80GB-HBM3` is `h100`."""
    from tenfold.spec.accelerator import accelerator, accelerators

    words = set(re.split(r"[^a-z0-9]+", kind.lower()))
    named = [key for key in accelerators() if words.issuperset(key.lower().split("-"))]
    if named:
        return max(named, key=len)
    if otherwise is None:
        what = f"calls its accelerator {kind!r}, which is not known" if kind else "does not say what its accelerator is"
        raise TenfoldError(f"The cluster {what}: say --accelerator, such as --accelerator h100.")
    return accelerator(otherwise).key
