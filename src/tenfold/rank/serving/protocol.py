"""What clients of the ranking routes send, and what they are answered."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.places import Rules
from tenfold.rank.serving.recommender import Query
from tenfold.serve.api.protocol import Body, Finite, RequestBody

LONGEST, LEFT_OUT, MOST, CANDIDATES, EVENTS = 2000, 10_000, 100, 10_000, 1000
MILLISECONDS = 1e11  # a time above is none in seconds before the year 5000
Item = Annotated[str, Field(min_length=1, max_length=1000)]
User = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=40)]


def _seconds(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < MILLISECONDS:
        raise ValueError(f"times are seconds since 1970, and {value} is none (milliseconds? divide by 1000)")
    return value


Time = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_seconds)]


class RecommendRequest(RequestBody):
    """For a user of the event store, or for a history, the oldest item first; either may be empty.

    What the history holds is not shown again unless `repeat` says so. `objectives` weigh what the model predicts of an item, as
    {"like": 1, "next": 0.1}; `next` is the logit of the next item, by which alone items are ranked where none is given.
    """

    model: str = ""
    user: User | None = None
    history: Annotated[list[Item] | None, Field(max_length=LONGEST)] = None
    times: Annotated[list[Time] | None, Field(max_length=LONGEST)] = None
    exclude: Annotated[list[Item], Field(max_length=LEFT_OUT, default_factory=list)]
    repeat: bool = False
    k: Annotated[int, Field(ge=1, le=MOST)] = 10
    rules: Rules = Field(default_factory=Rules)
    objectives: Annotated[dict[Name, Finite], Field(max_length=20, default_factory=dict)]

    @property
    def among(self) -> list[str] | None:
        """The items that are ranked; None of the whole catalogue."""
        return None

    def query(self, ranker: Ranker, history: History) -> Query:
        """What is asked of a ranker for a user with this history."""
        out = frozenset(filter(None, ranker.tokens(self.exclude))) | frozenset(() if self.repeat else history.items)
        candidates = None if self.among is None else ranker.tokens(self.among)
        return Query(history, self.k, candidates, out, self.rules, self.objectives)

    def kept(self) -> dict[str, Any]:
        """What a list is stored with, of which `as_asked` makes the request again; its history is stored beside."""
        names = {"k", "rules", "objectives", "exclude", "repeat", "times"}
        return {**self.model_dump(include=names), "candidates": self.among}


def as_asked(kept: dict[str, Any]) -> RecommendRequest:
    """The request of a stored list."""
    asked = {name: kept[name] for name in ("k", "rules", "objectives", "exclude", "repeat")}
    return RecommendRequest(**asked) if kept["candidates"] is None else RankRequest(**asked, candidates=kept["candidates"])


class RankRequest(RecommendRequest):
    """The same among `candidates`; all of them are ranked where `k` says nothing else."""

    candidates: Annotated[list[Item], Field(min_length=1, max_length=CANDIDATES)]
    k: Annotated[int, Field(ge=1, le=CANDIDATES)] = CANDIDATES
    repeat: bool = True

    @property
    def among(self) -> list[str] | None:
        return self.candidates


class Ranked(Body):
    """Items, the best first, and their scores: logits of the next item, with what the rules added.

    `propensities` are the probabilities of what stands at each place, given the places before. `id` names the list in events.
    `unknown` are items of the request that the model does not know.
    """

    id: str
    model: str
    items: list[str]
    scores: list[float]
    propensities: list[float] | None
    unknown: list[str]


class Event(Body):
    """What a user did with an item: `list` and `place` (from 1) say where they saw it. An `id` makes sending it again harmless."""

    item: Item
    action: Name = "click"
    time: Time | None = None
    value: Finite | None = None
    list: Annotated[str, Field(max_length=80)] | None = None
    place: Annotated[int, Field(ge=1, le=CANDIDATES)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=80)] | None = None


class EventsRequest(RequestBody):
    user: User | None = None
    events: Annotated[list[Event], Field(min_length=1, max_length=EVENTS)]


class ItemsRequest(RequestBody):
    """Items that the training never saw, each with its name in `item` and what is known of it, in the columns of the training."""

    items: Annotated[list[dict[str, str | Finite | list[str] | list[Finite] | None]], Field(min_length=1, max_length=EVENTS)]


class AddedItems(Body):
    """How many items there are now."""

    items: int


class KeptEvents(Body):
    """How many events are on the disk, and how many of them were there already."""

    kept: int
    known: int
