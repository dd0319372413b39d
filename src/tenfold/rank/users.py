"""Users of a ranker's server: those whose next item is known ask for lists, and simulated ones come and take items.

Whoever sends their events again changes nothing.
"""

import time
from typing import Any

from tenfold.data.interactions.events import Interactions
from tenfold.data.interactions.synthetic import SYNTHETIC, made
from tenfold.learn.release import post

CROWD = 500  # simulated users who come in each circle
CIRCLE_S = 40 * 86400  # from the first events of one crowd to those of the next: longer than they last


def ask(server: str, interactions: Interactions, users: int, number: int) -> dict[str, Any]:
    """How often the server's ten best items hold what `users` of the test took next; it is told what they took."""
    hits, seconds = 0, []
    queries, names = interactions.held_out("test", users), interactions.names
    for user, (tokens, target) in enumerate(zip(queries.histories, queries.targets, strict=True)):
        history, came = [names[token] for token in tokens], names[target]
        began = time.perf_counter()
        whose = {"user": f"asked-{number}-{user}"}
        shown = post(f"{server}/v1/recommend", {"history": history, **whose})
        seconds.append(time.perf_counter() - began)
        hits += came in shown["items"]
        post(f"{server}/v1/events", {"events": [{"item": came, "id": "took", "list": shown["id"]}], **whose})
    return {"users": len(seconds), "hits": hits, "median_ms": 1000 * sorted(seconds)[len(seconds) // 2]}


def crowd(server: str, number: int, seed: int) -> int:
    """Let the `number`th crowd take items, after the times of those before; how many events they send.

    Their taste is that of the made interactions of `seed`: where these are others than a ranker has learned from, so is it.
    """
    generator = made(f"{SYNTHETIC}:users={CROWD},seed={seed}")
    assert generator is not None
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in generator.table().select(["user", "item", "time"]).to_pylist():
        events = rows.setdefault(f"crowd-{number}-{row['user']}", [])
        events.append({"item": row["item"], "time": row["time"] + number * CIRCLE_S, "id": str(len(events))})
    for user, events in rows.items():
        post(f"{server}/v1/events", {"user": user, "events": [event | {"id": f"{user}-{event['id']}"} for event in events]})
    return sum(map(len, rows.values()))
