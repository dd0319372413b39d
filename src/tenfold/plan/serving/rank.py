"""What serving a ranker takes: cores, memory, network and storage, beside whatever accelerators there are.

A query costs a fixed part (HTTP, the store, rules), the products of its history, and the read of every item's vector, or of some
in an approximate index. The costs of each are measured on a machine by `tenfold rank measure` and kept in the home; without, those
of the reference machine hold.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tenfold.spec.files import write_json
from tenfold.spec.ranges import Count, CountOrNone, Positive, Share
from tenfold.spec.versions import read_document

FILE = "rank_serving.json"
VERSION = 1  # of the file
INDEXED = 1_000_000  # items, above which an approximate index finds the best
FLOAT = 4  # bytes
DAY = 86400.0
GIB = 2.0**30


@dataclass(frozen=True)
class RankCosts:
    """Measured on `machine`: seconds of a core, and bytes."""

    machine: str
    query_core_s: float  # what every query takes, whatever its history and catalogue
    history_core_s_per_flop: float
    item_core_s_per_byte: float  # of the exact product
    search_core_s: float  # of the approximate index
    index_bytes_per_item: float  # beside the vectors
    event_core_s: float
    list_bytes: float  # in the store, of a list of 10 after a history of the store
    event_bytes: float
    process_bytes: float  # of a server without its vectors


@dataclass(frozen=True)
class ServeRequest:
    """What is served, to how many."""

    serve: Annotated[Literal["rank"] | None, Meta(description="Plan serving in place of training: rank is lists of items.")] = None
    queries_per_s: Annotated[Positive, Meta(description="Lists asked for in a second, at the peak.")] = 1000.0
    items: Annotated[Count, Meta(description="Items in the catalogue.")] = 1_000_000
    item_width: Annotated[Count, Meta(description="Numbers of an item's vector.")] = 64
    rank_layers: Annotated[Count, Meta(description="Layers of the ranker.")] = 2
    history: Annotated[Count, Meta(description="Items of a history that the ranker sees.")] = 200
    cached_share: Annotated[Share, Meta(description="Share of queries whose history was computed before.")] = 0.0
    events_per_query: Annotated[float, Meta(ge=0, le=1e6, description="Events that come back for a list.")] = 3.0
    mean_share: Annotated[Share, Meta(description="Mean load as a share of the peak, for what is stored.")] = 0.5
    kept_days: Annotated[CountOrNone, Meta(description="Days for which lists and events are kept.")] = 90
    utilization: Annotated[
        float, Meta(gt=0, le=1, description="Share of the cores in use at the peak: the rest bounds the p99.")
    ] = 0.5
    host_cores: Annotated[Count, Meta(description="Cores of a host.")] = 64
    host_gib: Annotated[Positive, Meta(description="Memory of a host, in GiB.")] = 256.0


@dataclass(frozen=True)
class RankPlan:
    """What it takes. Every host holds the whole table where it fits, else its share of it (`shards`)."""

    hosts: int
    shards: int
    cores: float
    cores_per_1000_queries: float
    core_ms: dict[str, float]  # of a query, by what it goes into
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
    """Of a forward pass over one history, without the catalogue: products of 12 width^2 weights a layer, and attention."""
    return layers * (24.0 * width * width * history + 4.0 * width * history * history / 2)


def rank_costs(home: Path) -> RankCosts:
    """Those that were measured in `home`, or the reference machine's."""
    file = home / FILE
    if not file.exists():
        return REFERENCE
    return msgspec.convert(read_document(file, VERSION, "measure again with `tenfold rank measure`"), RankCosts)


def keep_costs(costs: RankCosts, home: Path) -> Path:
    """Keep what was measured in `home`, where the next plan finds it. Returns the file."""
    write_json(home / FILE, {"version": VERSION, **asdict(costs)})
    return home / FILE


def plan_rank(asked: ServeRequest, costs: RankCosts) -> RankPlan:
    """The hosts of a load at its peak, and what is stored of it."""
    vectors, indexed = float(asked.items * asked.item_width * FLOAT), asked.items > INDEXED
    index = asked.items * costs.index_bytes_per_item if indexed else 0.0
    room = asked.host_gib * GIB - costs.process_bytes
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
    """The plan in words."""
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in plan.core_ms.items())
    split = f", the table in {plan.shards} shards" if plan.shards > 1 else ""
    return [
        f"{plan.hosts:,} hosts of {asked.host_cores} cores for {asked.queries_per_s:,.0f} lists a second{split}.",
        f"Cores: {plan.cores:,.0f} ({plan.cores_per_1000_queries:.1f} a thousand lists a second at {asked.utilization:.0%} load).",
        f"Milliseconds of a core for a list: {parts}.",
        f"Vectors: {plan.embedding_bytes / GIB:,.2f} GiB, index {plan.index_bytes / GIB:,.2f} GiB; "
        f"{plan.memory_gib_per_host:,.1f} GiB of memory a host.",
        f"Lists and events: {plan.log_bytes_per_day / 1e9:,.1f} GB a day, {plan.stored_tb:,.2f} TB in {asked.kept_days} days.",
        f"Network: {plan.network_gb_per_s:.3g} GB/s. Costs measured on {plan.costs_from}.",
    ]


def document(asked: ServeRequest, plan: RankPlan) -> dict[str, Any]:
    return {"request": asdict(asked), **asdict(plan)}
