"""How a request for a list is answered: the history, the ranker or the two of an experiment, and the record in the store."""

import asyncio
import time
from typing import Any, NamedTuple

import numpy as np

from tenfold.rank.events.store import Events
from tenfold.rank.experiment import arm, interleave
from tenfold.rank.ranker import Ranker
from tenfold.rank.serving.protocol import LONGEST, RecommendRequest
from tenfold.rank.serving.recommender import Query
from tenfold.rank.serving.worker import RankWorker
from tenfold.serve.api.budget import Place
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import ANYBODY
from tenfold.serve.api.models import Models
from tenfold.serve.api.routes.answers import new_id
from tenfold.serve.api.served_model import ServedModel
from tenfold.serve.backends.backend import backend_of
from tenfold.spec.plugins import load

UNKNOWN = 100  # unknown items that an answer names, at most
WAITING = 10_000  # requests to the store that may wait for the disk; with more, an answer waits until its list is written


def rankers(models: Models) -> list[str]:
    """The names of the served models that rank items."""
    return [name for name, options in models.options.items() if load("backends", backend_of(options.path)) is RankWorker]


class Past(NamedTuple):
    """The items that a user took before, the oldest first, their times in seconds where they are known, and the time `now`."""

    items: list[str]
    times: list[float]
    now: float | None


class Asking:
    """A request of a user, and how it is answered."""

    def __init__(self, body: RecommendRequest, user: str, models: Models, events: Events | None):
        self.body, self.user, self.models, self.events = body, user, models, events
        self.rng = np.random.default_rng()

    @property
    def _is_named(self) -> bool:
        return self.user != ANYBODY.name

    @property
    def _of_store(self) -> bool:
        """Whether the history comes from the store; a user who is not named has none there."""
        return self.body.history is None and self.events is not None and self._is_named

    async def answer(self, place: Place) -> dict[str, Any]:
        """The fields of the answer (`Ranked`). The list is handed to the store first. Raises ApiError or TenfoldError.

        Users who are not named take no part in an experiment: the first ranker answers them.
        """
        found = rankers(self.models)
        name = self.models.resolve(self.body.model) if self.body.model or not found else found[0]
        if name not in found:
            raise ApiError(
                400,
                f"The model {name!r} is no ranker; the rankers of this server are: {', '.join(found) or 'none'}.",
                param="model",
            )
        first = await self.models.get(name)
        experiment = worker_of(first).settings.experiment
        takes_part = experiment != "none" and self._is_named and not self.body.model and len(found) > 1
        store = self.events if takes_part else None
        taken = await self._taken(first)
        if store is None:
            shown = await self._listed(name, place, taken)
        elif experiment == "ab":
            chosen = found[arm(store.user_hash(self.user))]
            shown = {**await self._listed(chosen, place, taken), "arms": found[:2]}
        else:
            shown = await self._interleaved(found[:2], place, taken)
        list_id = new_id("list")
        await self._keep(list_id, {**shown, "now": taken.now})
        return {"id": list_id, **{key: shown[key] for key in ("model", "items", "scores", "propensities", "unknown")}}

    async def _taken(self, model: ServedModel) -> Past:
        """The history, from the request or the store; the model is not unloaded while the store is read."""
        body = self.body
        if body.history is not None:
            if body.times is not None and len(body.times) != len(body.history):
                raise ApiError(
                    400, f"times has {len(body.times)} entries for {len(body.history)} items: give one for each.", param="times"
                )
            return _past(body.history, body.times or [])
        if self.events is None or not self._of_store:
            return _past([], [])
        model.activity.preparing += 1
        try:
            actions = worker_of(model).settings.history_actions
            found = await asyncio.to_thread(self.events.history, self.user, LONGEST, actions)
        finally:
            model.activity.preparing -= 1
        return _past([one.item for one in found], [one.time for one in found])

    async def _listed(self, name: str, place: Place, taken: Past) -> dict[str, Any]:
        """The list of one ranker, as it is stored."""
        model = await self.models.admit(name, place, 1)
        began, worker = time.monotonic(), worker_of(model)
        query, unknown = self._query(worker.recommender.ranker, taken)
        try:
            made = await asyncio.wait_for(worker.recommend(query), model.limits.timeout_seconds)
        except TimeoutError:
            raise ApiError(504, f"The answer took longer than {model.limits.timeout_seconds:.0f} seconds.") from None
        finally:
            model.metrics.end(model.name, time.monotonic() - began, len(query.history.items), 0)
        model.metrics.success.labels(model.name, "stop").inc()
        names = worker.recommender.ranker.names
        return {
            "model": model.name, "checkpoint": worker.checkpoint, "items": [names[token] for token in made.tokens],
            "scores": made.scores, "propensities": made.propensities, "unknown": unknown,
        }  # fmt: skip

    def _query(self, ranker: Ranker, taken: Past) -> tuple[Query, list[str]]:
        """The request in a ranker's tokens, and the names of items that the ranker does not know."""
        named = list(dict.fromkeys([*taken.items, *self.body.exclude, *(self.body.among or ())]))
        unknown = [name for name, token in zip(named, ranker.tokens(named), strict=True) if not token]
        return self.body.query(ranker, ranker.history(*taken)), unknown[:UNKNOWN]

    async def _interleaved(self, pair: list[str], place: Place, taken: Past) -> dict[str, Any]:
        """One list of both rankers. Its propensities, which would depend on the teams, are not computed."""
        a, b = await asyncio.gather(*(self._listed(name, place, taken) for name in pair))
        items, teams = interleave(a["items"], b["items"], self.body.k, self.rng)
        scores = [dict(zip(one["items"], one["scores"], strict=True)) for one in (a, b)]
        return {
            "model": f"{a['model']}|{b['model']}", "checkpoint": f"{a['checkpoint']}|{b['checkpoint']}", "items": items,
            "scores": [scores[team][item] for item, team in zip(items, teams, strict=True)], "propensities": None,
            "teams": teams, "unknown": a["unknown"],
        }  # fmt: skip

    async def _keep(self, list_id: str, shown: dict[str, Any]) -> None:
        """Hand a list to the store, without the history where that came from the store."""
        if self.events is None:
            return
        history = None if self._of_store else self.body.history or []
        done = self.events.keep_list(list_id, self.user, {**shown, **self.body.kept(), "history": history})
        if self.events.writer.waiting > WAITING:
            await asyncio.wrap_future(done)


def _past(items: list[str], times: list[float]) -> Past:
    """`now` is rounded down to the minute, so that the vector of the history can be cached; None for a history without times."""
    return Past(items, times, max(times[-1], time.time() // 60 * 60) if times else None)


def worker_of(model: ServedModel) -> RankWorker:
    assert isinstance(model.backend, RankWorker)
    return model.backend
