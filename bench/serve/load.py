"""Many clients for some minutes, a quarter of the requests abandoned at a random moment: losses, leaks and fairness.

    python -m bench.serve.load                                     # 64 clients, ten minutes, a model of random weights
    python -m bench.serve.load --seconds 60 --dry                  # a quick trial
    python -m bench.serve.load --model PATH                        # another model

Every client sends one streamed request after another: a prompt of 10 to 400 tokens, sometimes with a shared beginning, and an
answer of 5 to 200 tokens. One request in four closes its connection after a random part of the answer, or before its first token.
Three clients of four use one key, the fourth another, and both keys always have waiting requests.

Recorded: requests finished, cancelled and failed (anything but a whole answer of the requested length); the time between tokens
as clients see it; the tokens read and written for the second key over those for the first; the memory of the server's processes
every second, of which the medians of the second and the last fifth of the time are compared; and, after five idle seconds, the
running and waiting sequences and the used share of the cache. The keys' shares are fully visible only if the clients read faster
than the server writes: on a small machine use `--model` with a real model. Writes bench/results/load.json.
"""

import asyncio
import json
import random
import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
import psutil

from bench.harness import Headline, Row, options, write_results
from bench.serve.server import serving, small_model
from tenfold.serve.api.keys import make_key


@dataclass
class Seen:
    """What the clients saw."""

    finished: int = 0
    cancelled: int = 0
    failed: list[str] = field(default_factory=list)
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)  # tokens read and written for each key
    memory_mib: list[float] = field(default_factory=list)


async def ask(client: httpx2.AsyncClient, chance: random.Random, shared: list[int], seen: Seen, key: str) -> None:
    """Send one request with a key; read it to its end or abandon it."""
    prompt = [chance.randrange(10, 250) for _ in range(chance.randrange(10, 400))]
    if chance.random() < 0.3:
        prompt = shared + prompt[:100]
    new = chance.randrange(5, 200)
    give_up = chance.randrange(0, new) if chance.random() < 0.25 else None
    body = {"prompt": prompt, "max_tokens": new, "stream": True, "ignore_eos": True, "seed": chance.randrange(2**31)}
    read, last = 0, 0.0
    began = time.perf_counter()
    if give_up == 0:
        task = asyncio.create_task(client.post("/v1/completions", json={**body, "stream": False}))
        await asyncio.sleep(chance.uniform(0, 0.2))
        if task.done() and task.result().status_code != 200:
            seen.failed.append(task.result().text)
        elif not task.cancel():
            seen.finished += 1
        else:
            seen.cancelled += 1
        await asyncio.gather(task, return_exceptions=True)
        return
    async with client.stream("POST", "/v1/completions", json={**body, "stream_options": {"include_usage": True}}) as answer:
        if answer.status_code != 200:
            seen.failed.append((await answer.aread()).decode())
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            if line.startswith('data: {"error"'):
                seen.failed.append(line)
                return
            if '"usage":{' in line:
                read = json.loads(line[6:])["usage"]["completion_tokens"]
                continue
            now = time.perf_counter()
            (seen.between if last else seen.first).append(now - (last or began))
            seen.served[key] += 1 if last else 1 + len(prompt)
            last, read = now, read + 1
            if read == give_up:
                seen.cancelled += 1
                return
    if read == new:
        seen.finished += 1
        seen.tokens += new
    else:
        seen.failed.append(f"{read} of {new} tokens")


async def watch(pid: int, seen: Seen) -> None:
    """Record the private memory (USS) of the server's processes every second."""
    server = psutil.Process(pid)
    while True:
        held = sum(p.memory_full_info().uss for p in (server, *server.children(recursive=True)))
        seen.memory_mib.append(held / 2**20)
        await asyncio.sleep(1)


async def load(url: str, pid: int, clients: int, seconds: float, keys: Sequence[str]) -> Seen:
    """Keep `clients` sending requests for `seconds`, one of four with the second key; the last requests are read to their end."""
    seen, end = Seen(), time.monotonic() + seconds
    shared = [random.Random(-1).randrange(10, 250) for _ in range(200)]

    async def go_on(number: int) -> None:
        chance, key = random.Random(number), keys[number % 4 == 3]
        given = {"headers": {"Authorization": f"Bearer {key}"}, "limits": httpx2.Limits(max_connections=1)}
        async with httpx2.AsyncClient(base_url=url, timeout=300, **given) as client:
            while time.monotonic() < end:
                try:
                    await ask(client, chance, shared, seen, key)
                except httpx2.HTTPError as error:
                    seen.failed.append(repr(error))

    watcher = asyncio.create_task(watch(pid, seen))
    asking = asyncio.gather(*(go_on(i) for i in range(clients)))
    await asyncio.sleep(seconds)
    served = seen.served.copy()  # only while all clients are sending
    await asking
    watcher.cancel()
    return replace(seen, served=served)


def gauges(url: str) -> list[float]:
    """[running sequences, waiting sequences, used share of the cache]."""
    metrics = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return [float(value) for name in names for value in re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE)]


def summary(seen: Seen, seconds: float, keys: Sequence[str]) -> dict[str, Any]:
    """The row: milliseconds, MiB, counts."""
    fifth = max(1, len(seen.memory_mib) // 5)
    early, late = median(seen.memory_mib[fifth : 2 * fifth] or seen.memory_mib), median(seen.memory_mib[-fifth:])
    times = {}
    for name, values in (("first_token", seen.first), ("between_tokens", seen.between)):
        cuts = quantiles(values, n=100)
        times |= {f"{name}_p50_ms": round(1e3 * cuts[49], 1), f"{name}_p99_ms": round(1e3 * cuts[98], 1)}
    return {
        "finished": seen.finished, "cancelled": seen.cancelled, "failed": len(seen.failed), **times,
        "tokens_per_s": round(seen.tokens / seconds, 1),
        "second_key_over_first": round(seen.served[keys[1]] / max(1, seen.served[keys[0]]), 3),
        "memory_early_mib": round(early, 1), "memory_late_mib": round(late, 1),
        "memory_growth_pct": round(100 * (late / early - 1), 1),
    }  # fmt: skip


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        what = f"{r['clients']} clients, {r['seconds']:.0f} s, a quarter leaving: failed; p99 between tokens; memory; key to key"
        figure = f"{r['failed']} of {r['finished']}; {r['between_tokens_p99_ms']} ms; {r['memory_growth_pct']} %"
        yield what, f"{figure}; {r['second_key_over_first']}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="instead of a small one of random weights")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    model = given.model or small_model(home / "small", 1024)
    keys = [make_key(home / "keys.json", name) for name in ("first", "second")]
    # Fewer run at once than the second key's clients ask for, so that both keys always wait.
    asked = ("--kv-cache-gib", "0.05" if given.model is None else "1", "--feedback", "", "--keys", home / "keys.json")
    with serving(model, *asked, "--max-num-seqs", str(max(1, given.clients // 8)), log=home / "log") as (url, process):
        seen = asyncio.run(load(url, process.pid, given.clients, given.seconds, keys))
        time.sleep(5)
        left = gauges(url)
    said = (home / "log").read_text()
    row = {"model": given.model.stem if given.model else "random weights, 2 layers of 64", "clients": given.clients,
           "seconds": given.seconds, **summary(seen, given.seconds, keys), "gauges_after_5_s": left,
           "tracebacks": said.count("Traceback")}  # fmt: skip
    print(row, *seen.failed[:5], sep="\n")
    if "Traceback" in said:
        print(said[-3000:])
    if not given.dry:
        write_results("load", [row], headline([row]))


if __name__ == "__main__":
    main()
