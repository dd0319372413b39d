"""The options of a served ranker; they load nothing, so that a command's help is quick."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from tenfold.spec.commands import File
from tenfold.spec.ranges import Count, CountOrNone, Positive, Share

IndexName = Literal["auto", "exact", "usearch"]
Experiment = Literal["none", "ab", "interleave"]


class RankSettings(Struct, frozen=True):
    """How lists are made."""

    items: Annotated[
        File | None, Meta(description="A table of items with the attributes that filters and rules use: item, and any others.")
    ] = None
    index: Annotated[
        IndexName, Meta(description="How the best items are found; auto takes usearch beyond a million, where it is installed.")
    ] = "auto"
    explore: Annotated[
        Share, Meta(description="Probability that a place goes to one drawn from the pool, so that other policies can be judged.")
    ] = 0.0
    pool: Annotated[Count, Meta(description="The best items, from which a list is filled.")] = 200
    history_actions: Annotated[
        tuple[str, ...], Meta(description="Actions that make a user's history; all where none is given.")
    ] = ()
    cached_histories: Annotated[CountOrNone, Meta(description="Histories whose vectors are remembered.")] = 100_000


class WorkerSettings(RankSettings, frozen=True):
    """How lists are made, and how long for one."""

    experiment: Annotated[
        Experiment, Meta(description="ab gives half of the users to each of the first two rankers, interleave mixes their lists.")
    ] = "none"
    max_wait_ms: Annotated[Positive, Meta(description="A request that has waited longer for its turn is refused with 503.")] = (
        1000.0
    )
