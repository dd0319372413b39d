"""The options of a served ranker, apart from its code, so that the command line loads fast."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.spec.commands import File
from tenfold.spec.ranges import Count, CountOrNone, Positive, Share

IndexName = Literal["auto", "exact", "usearch"]
Experiment = Literal["none", "ab", "interleave"]


class RankSettings(Struct, frozen=True):
    """How lists are made."""

    items: Annotated[File | None, Meta(description="A table of items: column item, and attributes that filters and rules use.")] = (
        None
    )
    index: Annotated[
        IndexName, Meta(description="How the best items are found; auto takes usearch beyond a million items, if it is installed.")
    ] = "auto"
    explore: Annotated[
        Share, Meta(description="Probability that a place gets a random item of the pool, so that other policies can be judged.")
    ] = 0.0
    pool: Annotated[Count, Meta(description="Best items that are retrieved, from which a list is filled.")] = 200
    history_actions: Annotated[
        tuple[str, ...], Meta(description="Actions whose events make a user's history; by default all.")
    ] = ()
    cached_histories: Annotated[CountOrNone, Meta(description="Histories whose vectors are cached.")] = 100_000


class WorkerSettings(RankSettings, frozen=True):
    """How lists are made, experiments, and how long a request may wait."""

    experiment: Annotated[
        Experiment, Meta(description="ab gives half of the users to each of the first two rankers, interleave mixes their lists.")
    ] = "none"
    max_wait_ms: Annotated[Positive, Meta(description="Milliseconds after which a waiting request is refused with status 503.")] = (
        1000.0
    )
