"""Latency of recommendations: a real server under a steady stream of requests, for several catalogue sizes.

    python -m bench.rank.serving                       # 60,000 and 1,000,000 items, 60 s each

Requests arrive at random times (Poisson) and do not wait for each other; each has a different history. Half of them rank 1,000
candidates, half recommend from the whole catalogue. A latency is the time from when a request was due until its answer was read.
"""

import json
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import local
from typing import Any

import numpy as np

from bench.harness import TENFOLD, Row, options, write_results
from bench.rank.made import made_ranker
from bench.serve.server import free_port, wait_for

HISTORY, CANDIDATES, WIDTH, PER_S = 200, 1000, 64, 20
CLIENTS = 32


@contextmanager
def ranking(model: Path, *arguments: str) -> Iterator[int]:
    """Run `tenfold rank serve`; its port."""
    port = free_port()
    command = [*TENFOLD, "rank", "serve", str(model), "--port", str(port), "--feedback", "", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield port
    finally:
        process.terminate()
        process.wait(120)


def bodies(items: int, count: int) -> list[tuple[str, bytes]]:
    """`count` requests, each of another user: (path, JSON)."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        body: dict[str, Any] = {"history": [f"item-{n}" for n in rng.integers(0, items, HISTORY)], "user": f"user-{i}"}
        if i % 2:
            body["candidates"] = [f"item-{n}" for n in rng.choice(items, CANDIDATES, replace=False)]
        made.append(("/v1/rank" if i % 2 else "/v1/recommend", json.dumps(body).encode()))
    return made


def stream(port: int, asked: list[tuple[str, bytes]], per_s: float) -> list[tuple[str, float, int]]:
    """Send the requests at random times, `per_s` per second on average; (path, seconds, status) of each."""
    of_thread, chance = local(), random.Random(0)

    def send(due: float, path: str, body: bytes) -> tuple[str, float, int]:
        if not hasattr(of_thread, "connection"):
            of_thread.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        of_thread.connection.request("POST", path, body, {"content-type": "application/json"})
        answer = of_thread.connection.getresponse()
        answer.read()
        return path, time.perf_counter() - due, answer.status

    with ThreadPoolExecutor(CLIENTS) as pool:
        due, sent = time.perf_counter(), []
        for path, body in asked:
            due += chance.expovariate(per_s)
            time.sleep(max(0.0, due - time.perf_counter()))
            sent.append(pool.submit(send, due, path, body))
        return [one.result() for one in sent]


def row(folder: Path, items: int, seconds: float, index: str) -> Row:
    """Measure one catalogue size and index; latencies in milliseconds."""
    model = made_ranker(folder / str(items), items, WIDTH, HISTORY)
    asked = bodies(items, round(seconds * PER_S))
    with ranking(model, "--index", index, "--events", f"sqlite:///{folder}/events-{items}-{index}.db") as port:
        stream(port, asked[:40], PER_S)
        found = stream(port, asked[40:], PER_S)
    made: Row = {"items": items, "index": index, "requests": len(found), "failed": sum(status != 200 for _, _, status in found)}
    for path in ("/v1/rank", "/v1/recommend"):
        ms = 1000 * np.array([s for at, s, _ in found if at == path])
        made[path] = {f"p{q}_ms": round(float(np.quantile(ms, q / 100)), 2) for q in (50, 95, 99)}
    print(made, flush=True)
    return made


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[60_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--index", nargs="+", default=["exact"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(Path(folder), items, asked.seconds, index) for items in asked.items for index in asked.index]
    headline = [
        (
            f"1,000 candidates, history of 200, {one['items']:,} items, 20 requests a second: p99",
            f"{one['/v1/rank']['p99_ms']:.0f} ms",
        )
        for one in rows
    ]
    write_results("rank_serving", rows, headline)


if __name__ == "__main__":
    main()
