"""The bodies of requests to the ranking routes, and of their answers."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.places import Rules
from tenfold.rank.serving.recommender import Query
from tenfold.serve.api.protocol import Body, Finite, RequestBody

# Largest numbers of: items of a history, excluded items, items of a recommended list, candidates, events of a request.
LONGEST, LEFT_OUT, MOST, CANDIDATES, EVENTS = 2000, 10_000, 100, 10_000, 1000
MILLISECONDS = 1e11  # larger times are taken for milliseconds: in seconds they would be after the year 5000
Item = Annotated[str, Field(min_length=1, max_length=1000)]
User = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=40)]


def _seconds(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < MILLISECONDS:
        raise ValueError(f"times are seconds since 1970, and {value} is out of range (if it is in milliseconds, divide by 1000)")
    return value


Time = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_seconds)]


class RecommendRequest(RequestBody):
    """A request for recommendations, by a `history` (the oldest item first) or by a `user` whose history is in the event store.

    Items of the history are shown again only with `repeat`. `objectives` are weights of the model's predictions for an item, as in
    {"like": 1, "next": 0.1}; `next` is the logit of the next item, by which items are ranked where no objectives are given.
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
        """The candidates; None for the whole catalogue."""
        return None

    def query(self, ranker: Ranker, history: History) -> Query:
        """The request in the ranker's tokens, for a user with this history."""
        out = frozenset(filter(None, ranker.tokens(self.exclude))) | frozenset(() if self.repeat else history.items)
        candidates = None if self.among is None else ranker.tokens(self.among)
        return Query(history, self.k, candidates, out, self.rules, self.objectives)

    def kept(self) -> dict[str, Any]:
        """The fields that are stored with a list, from which `as_asked` makes the request again; the history is stored apart."""
        names = {"k", "rules", "objectives", "exclude", "repeat", "times"}
        return {**self.model_dump(include=names), "candidates": self.among}


def as_asked(kept: dict[str, Any]) -> RecommendRequest:
    """The request of a stored list, from its fields `kept`."""
    asked = {name: kept[name] for name in ("k", "rules", "objectives", "exclude", "repeat")}
    return RecommendRequest(**asked) if kept["candidates"] is None else RankRequest(**asked, candidates=kept["candidates"])


class RankRequest(RecommendRequest):
    """A request to rank `candidates`, by default all of them."""

    candidates: Annotated[list[Item], Field(min_length=1, max_length=CANDIDATES)]
    k: Annotated[int, Field(ge=1, le=CANDIDATES)] = CANDIDATES
    repeat: bool = True

    @property
    def among(self) -> list[str] | None:
        return self.candidates


class Ranked(Body):
    """Items, the best first, and their scores: logits of the next item or weighted objectives, plus boosts.

    `propensities` are the probabilities of each item at its place, given the places before. `id` names the list in events.
    `unknown` are items of the request that the model does not know.
    """

    id: str
    model: str
    items: list[str]
    scores: list[float]
    propensities: list[float] | None
    unknown: list[str]


class Event(Body):
    """What a user did with an item. `list` and `place` (from 1) say where they saw it; an `id` lets clients repeat the request."""

    item: Item
    action: Name = "click"
    time: Time | None = None
    value: Finite | None = None
    list: Annotated[str, Field(max_length=80)] | None = None
    place: Annotated[int, Field(ge=1, le=CANDIDATES)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=80)] | None = None


class EventsRequest(RequestBody):
    """Events of one user."""

    user: User | None = None
    events: Annotated[list[Event], Field(min_length=1, max_length=EVENTS)]


class ItemsRequest(RequestBody):
    """New items, each with its name in `item`, and its content in the columns that the model was trained with."""

    items: Annotated[list[dict[str, str | Finite | list[str] | list[Finite] | None]], Field(min_length=1, max_length=EVENTS)]


class AddedItems(Body):
    """The number of items that the first ranker has now."""

    items: int


class KeptEvents(Body):
    """How many events of the request are on the disk, and how many of them were there already."""

    kept: int
    known: int
