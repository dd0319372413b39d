"""Serving of a ranker: CPU cores, memory, network and storage.

A query has a fixed cost (HTTP, the store, rules), the cost of the model over its history, and that of retrieval: reading all item
vectors, or a search in an approximate index. `tenfold rank measure` measures these costs on a machine and writes them to the home;
without that file, the costs of a reference machine are used.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json
from tenfold.spec.ranges import Count, CountOrNone, Positive, Share
from tenfold.spec.versions import read_document

FILE = "rank_serving.json"
VERSION = 1  # of the file
INDEXED = 1_000_000  # items, above which retrieval uses an approximate index
FLOAT = 4  # bytes
DAY = 86400.0
GIB = 2.0**30


@dataclass(frozen=True)
class RankCosts:
    """Costs measured on `machine`: core-seconds and bytes."""

    machine: str
    query_core_s: float  # of each query, whatever its history and the catalogue
    history_core_s_per_flop: float
    item_core_s_per_byte: float  # of exact retrieval, per byte of the item vectors
    search_core_s: float  # of a search in the approximate index
    index_bytes_per_item: float  # of the approximate index, without the vectors
    event_core_s: float
    list_bytes: float  # in the store, of a list of 10 items with its history
    event_bytes: float  # in the store
    process_bytes: float  # of a server without its vectors


@dataclass(frozen=True)
class ServeRequest:
    """The load and the hosts of a service. The options after --serve are used with --serve only."""

    serve: Annotated[
        Literal["rank"] | None, Meta(description="Plan serving in place of training: rank serves ranked lists of items.")
    ] = None
    queries_per_s: Annotated[Positive, Meta(description="With --serve: lists requested per second at the peak.")] = 1000.0
    items: Annotated[Count, Meta(description="With --serve: items in the catalogue.")] = 1_000_000
    item_width: Annotated[Count, Meta(description="With --serve: dimensions of an item's vector.")] = 64
    rank_layers: Annotated[Count, Meta(description="With --serve: layers of the ranker.")] = 2
    history: Annotated[Count, Meta(description="With --serve: items of a user's history that the ranker reads.")] = 200
    cached_share: Annotated[
        Share, Meta(description="With --serve: share of queries (0 to 1) whose history is already in the cache.")
    ] = 0.0
    events_per_query: Annotated[
        float, Meta(ge=0, le=1e6, description="With --serve: events (clicks and the like) that are sent back per list.")
    ] = 3.0
    mean_share: Annotated[
        Share, Meta(description="With --serve: mean load as a share (0 to 1) of the peak, from which storage is computed.")
    ] = 0.5
    kept_days: Annotated[CountOrNone, Meta(description="With --serve: days for which lists and events are stored.")] = 90
    utilization: Annotated[
        float,
        Meta(gt=0, le=1, description="With --serve: share of the cores in use at the peak; a lower one keeps the p99 latency low."),
    ] = 0.5
    host_cores: Annotated[Count, Meta(description="With --serve: CPU cores of a host.")] = 64
    host_gib: Annotated[Positive, Meta(description="With --serve: memory of a host in GiB.")] = 256.0


@dataclass(frozen=True)
class RankPlan:
    """The hosts and resources of a load. A host holds all item vectors where they fit, otherwise one of `shards` parts of them."""

    hosts: int
    shards: int
    cores: float
    cores_per_1000_queries: float
    core_ms: dict[str, float]  # core-milliseconds of a query by part
    embedding_bytes: float
    index_bytes: float
    memory_gib_per_host: float
    log_bytes_per_day: float
    stored_tb: float
    network_gb_per_s: float
    costs_from: str


# `tenfold rank measure` of a ranker of width 32, one thread, on two shared cores of an Intel Xeon with AVX-512.
REFERENCE = RankCosts(
    machine="two cores of a shared Xeon", query_core_s=4.9e-3, history_core_s_per_flop=8.5e-10, item_core_s_per_byte=6.8e-11,
    search_core_s=7.4e-4, index_bytes_per_item=724.0, event_core_s=2.7e-3, list_bytes=983.0, event_bytes=328.0, process_bytes=4e8,
)  # fmt: skip


def history_flops(width: int, layers: int, history: int) -> float:
    """FLOPs of a forward pass over one history, without retrieval: 12 width^2 weights per layer, and causal attention."""
    return layers * (24.0 * width * width * history + 4.0 * width * history * history / 2)


def rank_costs(home: Path) -> RankCosts:
    """The costs measured in `home`, or those of the reference machine. Raises TenfoldError for a damaged or outdated file."""
    file = home / FILE
    if not file.exists():
        return REFERENCE
    return msgspec.convert(read_document(file, VERSION, "measure again with `tenfold rank measure`"), RankCosts)


def keep_costs(costs: RankCosts, home: Path) -> Path:
    """Write measured costs to `home`, where plans find them. Returns the file."""
    write_json(home / FILE, {"version": VERSION, **asdict(costs)})
    return home / FILE


def plan_rank(asked: ServeRequest, costs: RankCosts) -> RankPlan:
    """The hosts of a load at its peak, and its storage. Raises TenfoldError where a host has less memory than a server needs."""
    vectors, indexed = float(asked.items * asked.item_width * FLOAT), asked.items > INDEXED
    index = asked.items * costs.index_bytes_per_item if indexed else 0.0
    room = asked.host_gib * GIB - costs.process_bytes
    if room <= 0:
        raise TenfoldError(
            f"A host of {asked.host_gib:g} GiB has no room for a server, which takes {costs.process_bytes / GIB:.2f} GiB without "
            "its vectors: raise --host-gib."
        )
    shards = max(1, math.ceil((vectors + index) / room))
    retrieval = costs.search_core_s if indexed else vectors * costs.item_core_s_per_byte
    flops = history_flops(asked.item_width, asked.rank_layers, asked.history)
    core_s = {
        "request": costs.query_core_s * shards,  # every shard is asked
        "history": (1 - asked.cached_share) * flops * costs.history_core_s_per_flop,
        "retrieval": retrieval * (shards if indexed else 1),
        "events": asked.events_per_query * costs.event_core_s,
    }
    cores = asked.queries_per_s * sum(core_s.values()) / asked.utilization
    hosts = shards * max(1, math.ceil(cores / shards / asked.host_cores))
    kept = costs.list_bytes + asked.events_per_query * costs.event_bytes
    per_day = asked.queries_per_s * asked.mean_share * DAY * kept
    return RankPlan(
        hosts=hosts, shards=shards, cores=cores, cores_per_1000_queries=1000 * sum(core_s.values()) / asked.utilization,
        core_ms={name: 1000 * s for name, s in core_s.items()}, embedding_bytes=vectors, index_bytes=index,
        memory_gib_per_host=((vectors + index) / shards + costs.process_bytes) / GIB, log_bytes_per_day=per_day,
        stored_tb=per_day * asked.kept_days / 1e12, network_gb_per_s=asked.queries_per_s * kept * shards / 1e9,
        costs_from=costs.machine,
    )  # fmt: skip


def lines(asked: ServeRequest, plan: RankPlan) -> list[str]:
    """The plan as lines of text."""
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in plan.core_ms.items())
    split = f", the table in {plan.shards} shards" if plan.shards > 1 else ""
    return [
        f"{plan.hosts:,} hosts of {asked.host_cores} cores for {asked.queries_per_s:,.0f} lists per second{split}.",
        f"Cores: {plan.cores:,.0f} ({plan.cores_per_1000_queries:.1f} per 1,000 lists per second, {asked.utilization:.0%} in use).",
        f"Core-milliseconds per list: {parts}.",
        f"Vectors: {plan.embedding_bytes / GIB:,.2f} GiB, index {plan.index_bytes / GIB:,.2f} GiB; "
        f"{plan.memory_gib_per_host:,.1f} GiB of memory per host.",
        f"Lists and events: {plan.log_bytes_per_day / 1e9:,.1f} GB per day, {plan.stored_tb:,.2f} TB in {asked.kept_days} days.",
        f"Network: {plan.network_gb_per_s:.3g} GB/s. Costs measured on {plan.costs_from}.",
    ]


def document(asked: ServeRequest, plan: RankPlan) -> dict[str, Any]:
    return {"request": asdict(asked), **asdict(plan)}
