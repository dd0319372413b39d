"""Cold start: hit rates for new users and new items without training, compared with popularity, through the server's routes.

    python -m bench.rank.cold

Items have genres, and every user likes one genre at a time. A new item has a genre and no event. The ranker is trained once, with
a content tower, on earlier events. A new user sends five events, and recommendations are requested after each. For new items, the
ranker ranks all new items before anybody has taken one; a hit is the item that a user of its genre takes. Popularity shows the
items that were taken most; it knows no new item, so its hit rate there is that of a random choice among them.
"""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from fastapi.testclient import TestClient

from bench.harness import Row, options, write_results
from tenfold.learn.statistics import share_interval
from tenfold.rank.commands import TaskOptions
from tenfold.rank.options import RankOptions
from tenfold.rank.serving.settings import WorkerSettings
from tenfold.rank.serving.start import load_with
from tenfold.rank.training import train_on
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, Limits, ServerOptions

GENRES, OLD, NEW = 12, 20, 4  # genres, items of each that were trained on, and those that come later
STAYS, LENGTH, K = 0.85, 15, 10


def taken(rng: np.random.Generator, length: int, per_genre: int) -> list[int]:
    """`length` different items that a user takes, mostly of one genre, which changes sometimes.

    Item g * (OLD + NEW) + i is number i of genre g; `per_genre` of each genre may be taken.
    """
    genre, found = int(rng.integers(GENRES)), []
    while len(found) < length:
        genre = genre if rng.random() < STAYS else int(rng.integers(GENRES))
        item = genre * (OLD + NEW) + int(per_genre * rng.random() ** 2)
        if item not in found:
            found.append(item)
    return found


def name(item: int) -> str:
    return f"item-{item}"


def genre_of(item: int) -> str:
    return f"genre{item // (OLD + NEW)}"


def write(users: int, file: Path) -> np.ndarray:
    """Write interactions with old items; returns how often each item was taken."""
    rng = np.random.default_rng(0)
    histories = [taken(rng, LENGTH, OLD) for _ in range(users)]
    rows = [
        (f"user-{u}", name(item), 1_000_000 + 1000 * n + u, genre_of(item))
        for u, of in enumerate(histories)
        for n, item in enumerate(of)
    ]
    columns = dict(zip(("user", "item", "time", "item_genre"), map(list, zip(*rows, strict=True)), strict=True))
    pyarrow.parquet.write_table(pa.table(columns), file)
    return np.bincount([item for of in histories for item in of], minlength=GENRES * (OLD + NEW))


def new_users(server: TestClient, counts: np.ndarray, users: int) -> list[Row]:
    """Hit rates at 10 after each of a new user's first five events."""
    rng, hits = np.random.default_rng(1), np.zeros((5, 2))
    for u in range(users):
        *had, _ = items = taken(rng, 6, OLD)
        for n, item in enumerate(had):
            event = {"user": f"new-{u}", "events": [{"item": name(item), "time": 2_000_000 + n}]}
            assert server.post("/v1/events", json=event).status_code == 200
            shown = server.post("/v1/recommend", json={"user": f"new-{u}", "k": K}).json()["items"]
            popular = [i for i in np.argsort(-counts, kind="stable").tolist() if i not in items[: n + 1]][:K]
            hits[n] += name(items[n + 1]) in shown, items[n + 1] in popular
    return [
        {"what": f"new user after {n + 1} events", "n": users, "hit_rate": hits[n, 0] / users, "popularity": hits[n, 1] / users,
         "interval": share_interval(hits[n, 0], users)}
        for n in range(5)
    ]  # fmt: skip


def new_items(server: TestClient, users: int) -> Row:
    """How often a new item of the user's genre is among the ten best new ones, and how often it would be by chance."""
    rng, hits, chance = np.random.default_rng(2), 0, 0.0
    new = [g * (OLD + NEW) + OLD + i for g in range(GENRES) for i in range(NEW)]
    known = {"items": [{"item": name(item), "item_genre": genre_of(item)} for item in new]}
    assert server.post("/v1/items", json=known).status_code == 200
    for _ in range(users):
        history = taken(rng, 6, OLD)
        came = int(rng.choice([item for item in new if genre_of(item) == genre_of(history[-1])]))
        body = {"history": [name(item) for item in history], "candidates": [name(item) for item in new], "k": K}
        hits += name(came) in server.post("/v1/rank", json=body).json()["items"]
        chance += K / len(new)
    return {"what": "new item in its first hour", "n": users, "hit_rate": hits / users, "popularity": chance / users,
            "interval": share_interval(hits, users)}  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--users", type=int, default=3000, help="users to train on; a tenth as many are tested")
    parser.add_argument("--epochs", type=float, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = write(asked.users, folder / "t.parquet")
        training = RankOptions("llama", width=32, seq_len=20, epochs=asked.epochs)
        task = TaskOptions(split="leave-one-out", content=True).table
        run = train_on(folder / "t.parquet", folder / "r", home=folder, options=training, task=task)
        models = Models(
            {"r": EngineOptions(run.directory / "model", threads=1)}, Limits(), load=partial(load_with, WorkerSettings())
        )
        app = make_app(models, ServerOptions(events=f"sqlite:///{folder}/events.db"))
        with TestClient(app, base_url="http://127.0.0.1:8000") as server:
            rows = [*new_users(server, counts, asked.users // 10), new_items(server, asked.users // 10)]
    for one in rows:
        print(one)
    last = rows[4]
    write_results("rank_cold", rows, [
        ("hit rate at 10 of a new user's sixth item", f"{last['hit_rate']:.2f} (popularity {last['popularity']:.2f})"),
        ("hit rate at 10 of a new item among new ones", f"{rows[5]['hit_rate']:.2f} (by chance {rows[5]['popularity']:.2f})"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
