"""The routes `/v1/recommend`, `/v1/rank`, `/v1/events` and `/v1/items` of a server that has a ranker.

The history comes with the request or from the event store. The model has no parameters of users, so new users are served at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import uuid4

import pyarrow as pa
from fastapi import APIRouter, Depends, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from tenfold.rank.events.store import Events
from tenfold.rank.serving.asking import Asking, rankers, worker_of
from tenfold.rank.serving.protocol import AddedItems, EventsRequest, ItemsRequest, KeptEvents, Ranked, RankRequest, RecommendRequest
from tenfold.serve.api.answer_types import DeletedRows
from tenfold.serve.api.dependencies import CurrentCaller, Placed, ServedModels, gives, operator_only
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import ANYBODY, Caller
from tenfold.serve.api.streaming import until_disconnect


def add_routes(app: FastAPI) -> None:
    """Add the routes to the app, if a ranker is among its models."""
    if not rankers(app.state.models):
        return
    url = app.state.options.events
    app.state.events = Events(url) if url else None

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        if app.state.events is not None:
            await asyncio.to_thread(app.state.events.close)

    router = APIRouter(lifespan=closing)
    router.post("/v1/recommend", **gives(Ranked))(recommend)
    router.post("/v1/rank", **gives(Ranked))(rank)
    router.post("/v1/events", **gives(KeptEvents))(keep)
    router.post("/v1/items", dependencies=[Depends(operator_only)], **gives(AddedItems))(add_items)
    router.delete("/v1/events", **gives(DeletedRows))(forget)
    router.delete("/v1/events/users/{user}", dependencies=[Depends(operator_only)], **gives(DeletedRows))(forget_user)
    app.include_router(router)


async def _events(request: HttpRequest) -> Events:
    if (events := request.app.state.events) is None:
        raise ApiError(404, "This server keeps no events: start it with --events.")
    return events


KeptEventStore = Annotated[Events, Depends(_events)]


def user_of(caller: Caller, named: str | None) -> str:
    """The user whose request this is. An operator's key belongs to a service, which names its users, or nobody."""
    return named or ANYBODY.name if caller.is_operator else caller.name


async def recommend(body: RecommendRequest, request: HttpRequest, place: Placed, models: ServedModels) -> Response:
    asking = Asking(body, user_of(place.caller, body.user), models, request.app.state.events)
    return JSONResponse(await until_disconnect(request, asking.answer(place)))


async def rank(body: RankRequest, request: HttpRequest, place: Placed, models: ServedModels) -> Response:
    return await recommend(body, request, place, models)


async def add_items(body: ItemsRequest, models: ServedModels) -> Response:
    """Add new items to every ranker, until the server stops or the ranker is swapped; `--items` adds them for good."""
    if not all(isinstance(row.get("item"), str) and row["item"] for row in body.items):
        raise ApiError(400, "items: give each row a name in `item`.", param="items")
    try:
        table = pa.Table.from_pylist(body.items)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ApiError(400, f"items: a column has values of several kinds: {str(error).splitlines()[0].rstrip('.')}.") from None
    counts = [await worker_of(await models.get(name)).add_items(table) for name in rankers(models)]
    return JSONResponse({"items": counts[0]})


async def keep(body: EventsRequest, caller: CurrentCaller, events: KeptEventStore) -> Response:
    user, now = user_of(caller, body.user), time.time()
    whose = events.user_hash(user)[:16]  # so that equal ids of two users do not collide
    rows = [
        {
            "id": f"{whose}-{event.id or uuid4().hex}",
            "time": now if event.time is None else event.time,
            "list_id": event.list,
            **event.model_dump(include={"item", "action", "value", "place"}),
        }
        for event in body.events
    ]
    new = await asyncio.wrap_future(events.keep_events(user, rows))
    return JSONResponse({"kept": len(rows), "known": len(rows) - new})


async def forget(caller: CurrentCaller, events: KeptEventStore, user: str | None = None) -> Response:
    """Delete the data of the caller, or of `user` where the server has no keys."""
    return JSONResponse({"deleted_rows": await asyncio.to_thread(events.delete_user, caller.user(user))})


async def forget_user(user: str, events: KeptEventStore) -> Response:
    return JSONResponse({"deleted_rows": await asyncio.to_thread(events.delete_user, user)})
