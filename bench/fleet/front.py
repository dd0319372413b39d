"""The fleet's front (request router) before real servers: prefix cache hits, balance of the load, and time to first token.

    python -m bench.fleet.front                                        # three servers, five rounds: some ten minutes
    python -m bench.fleet.front --conversations 8 --rounds 1 --dry     # a quick trial

Several clients hold conversations of several turns, each with its own beginning. With each turn the whole text so far is sent.
One side is a front with affinity (the default), the other a front that sends each request to the server with the fewest requests.
They alternate in rounds with new texts. Recorded for each side: the share of prompt tokens that servers found in their prefix
caches, by their own count; the requests of the busiest server over the mean; and the time to first token as clients see it.
Writes bench/results/fleet_front.json.
"""

import json
import random
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, NamedTuple

from bench.harness import TENFOLD, Headline, Row, alternate, options, write_results
from bench.serve.server import free_port, serving, small_model, wait_for
from tenfold.fleet.front.file import write_replicas

COUNTS = ("prefix_cache_hits_total", "prefix_cache_queries_total", "request_success_total")
WORDS = ("return", "self", "None", "import", "value", "class", "for", "line", "name", "in", "string", "if")
BEGINNING, TURN = 60, 12  # words


class Round(NamedTuple):
    """`hits`: share of prompt tokens found in caches; `busiest`: requests of the busiest server over the mean."""

    hits: float
    busiest: float
    first_s: list[float]


def counts(url: str) -> list[float]:
    """The server's counters `COUNTS` since its start."""
    said = urllib.request.urlopen(f"{url}/metrics", timeout=60).read().decode()
    return [sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", said, re.MULTILINE))) for name in COUNTS]


def ask(url: str, prompt: str) -> float:
    """Ask for an answer and read it to its end; the seconds to its first token."""
    body = {"prompt": prompt, "max_tokens": 8, "ignore_eos": True, "stream": True, "temperature": 0.0}
    began = time.perf_counter()
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        answer.readline()
        first_s = time.perf_counter() - began
        if not answer.read().endswith(b"[DONE]\n\n"):
            raise SystemExit("an answer broke off")
    return first_s


def lead(front: str, servers: Sequence[str], chance: random.Random, given: Any) -> Round:
    """Hold new conversations to their end; the order within a turn is random."""
    before = [counts(url) for url in servers]
    talks = [" ".join(chance.choices(WORDS, k=BEGINNING)) for _ in range(given.conversations)]
    first_s: list[float] = []
    with ThreadPoolExecutor(given.clients) as pool:
        for _ in range(given.turns):
            chance.shuffle(talks)
            first_s += pool.map(lambda talk: ask(front, talk), talks)
            talks = [f"{talk} {' '.join(chance.choices(WORDS, k=TURN))}" for talk in talks]
    grown = [[now - then for now, then in zip(counts(url), old, strict=True)] for url, old in zip(servers, before, strict=True)]
    hits, queries, requests = zip(*grown, strict=True)
    return Round(sum(hits) / sum(queries), max(requests) / mean(requests), first_s)


@contextmanager
def fronted(folder: Path, servers: Sequence[str], *more: str) -> Iterator[str]:
    """Run a front of the servers, with further options; its address."""
    port = free_port()
    write_replicas(folder / "front.json", f"http://127.0.0.1:{port}", list(servers))
    command = [*TENFOLD, "fleet", "front", folder / "front.json", "--port", str(port), "--access-log", "none", *more]
    process = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


def row(side: str, rounds: Sequence[Round], given: Any) -> Row:
    cuts = quantiles([one for each in rounds for one in each.first_s], n=100)
    return {
        "side": side, "servers": given.servers, "conversations": given.conversations, "turns": given.turns,
        "clients": given.clients, "rounds": given.rounds, "hits_pct": round(100 * median(each.hits for each in rounds), 1),
        "busiest_over_mean": round(median(each.busiest for each in rounds), 3),
        "first_token_p50_ms": round(1e3 * cuts[49], 1), "first_token_p95_ms": round(1e3 * cuts[94], 1),
    }  # fmt: skip


def headline(rows: list[Row]) -> Headline:
    ours, theirs = rows
    what = (
        f"{ours['servers']} servers, {ours['conversations']} conversations of {ours['turns']} turns: prompt tokens found in caches"
    )
    yield f"{what}, with affinity and by load alone", f"{ours['hits_pct']} %, {theirs['hits_pct']} %"
    yield "requests of the busiest server over the mean", f"{ours['busiest_over_mean']}, {theirs['busiest_over_mean']}"
    yield "first token p95", f"{ours['first_token_p95_ms']} ms, {theirs['first_token_p95_ms']} ms"


def main() -> None:
    parser = options(__doc__)
    for name, usual in (("servers", 3), ("conversations", 48), ("turns", 6), ("clients", 12), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home, chance = Path(tempfile.mkdtemp()), random.Random(0)
    model = small_model(home / "small", 1024)
    with ExitStack() as opened:
        started = (serving(model, "--feedback", "", "--threads", "1", "--kv-cache-gib", "0.1") for _ in range(given.servers))
        servers = [opened.enter_context(one)[0] for one in started]
        fronts = {
            "affinity": opened.enter_context(fronted(home / "affinity", servers)),
            "load alone": opened.enter_context(fronted(home / "load", servers, "--no-affinity")),
        }
        sides = {name: partial(lead, url, servers, chance, given) for name, url in fronts.items()}
        rows = [row(name, rounds, given) for name, rounds in alternate(sides, given.rounds).items()]
    print(*rows, sep="\n")
    if not given.dry:
        write_results("fleet_front", rows, headline(rows))


if __name__ == "__main__":
    main()
