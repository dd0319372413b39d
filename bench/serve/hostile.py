"""Hostile requests beside ordinary clients: is anything lost, and do the ordinary clients notice?

    python -m bench.serve.hostile                          # 5,000 requests, 64 ordinary clients, a model of random weights
    python -m bench.serve.hostile --requests 200 --dry     # a quick trial
    python -m bench.serve.hostile --model PATH             # another model

The requests are generated from a seed: grammars, schemas and regular expressions that are deep, large, cyclic or slow; templates
and markup in messages; malformed message parts; tokens outside the vocabulary; sizes at and beyond every limit; and bodies that
are no JSON. First the ordinary clients chat alone for `--calm` seconds, each sending one short request after another. Then they
continue while `--attackers` send hostile requests. Recorded: answers by status (none may be 500, none may be missing), whether
the server and its engine are the same processes at the end, and the times of ordinary answers before and during the attack.
Writes bench/results/hostile.json.
"""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
import psutil

from bench.harness import Headline, Row, options, write_results
from bench.serve.hostile_requests import HELLO, KINDS
from bench.serve.server import serving, small_model

WARM_SECONDS = 5


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # answers with status 500, and missing answers
    refused: int = 0  # of the ordinary clients' requests
    slowest: tuple[float, str] = (0.0, "")
    calm: list[float] = field(default_factory=list)
    meanwhile: list[float] = field(default_factory=list)


async def attack(url: str, seen: Seen, numbers: "list[int]") -> None:
    """Send the hostile requests with these numbers (seeds), one after another."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        for number in numbers:
            kind = KINDS[number % len(KINDS)]
            path, body = kind(random.Random(number))
            what = f"{number} ({kind.__name__}, {path})"
            began = time.perf_counter()
            try:
                answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            except httpx2.HTTPError as error:
                seen.faults.append(f"{what}: {error!r}")
                continue
            seen.statuses[answer.status_code] += 1
            seen.slowest = max(seen.slowest, (round(time.perf_counter() - began, 2), what))
            if answer.status_code == 500:
                seen.faults.append(f"{what}: {answer.text[:300]}")


async def beside(url: str, seen: Seen, times: list[float], end: Callable[[], bool]) -> None:
    """An ordinary client; appends the seconds of its requests to `times` until `end()`."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        while not end():
            began = time.perf_counter()
            answer = await client.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 16, "ignore_eos": True})
            times.append(time.perf_counter() - began)
            if answer.status_code != 200:
                seen.refused += 1
                await asyncio.sleep(0.1)


def passed(until: float) -> bool:
    return time.monotonic() > until


async def trial(url: str, requests: int, attackers: int, clients: int, calm: float) -> Seen:
    """Run the ordinary clients alone, after a warm-up, and then with the hostile requests."""
    seen = Seen()
    for times, seconds in (([], WARM_SECONDS), (seen.calm, calm)):
        over = partial(passed, time.monotonic() + seconds)
        await asyncio.gather(*(beside(url, seen, times, over) for _ in range(clients)))
    attacks = asyncio.gather(*(attack(url, seen, list(range(i, requests, attackers))) for i in range(attackers)))
    await asyncio.gather(attacks, *(beside(url, seen, seen.meanwhile, attacks.done) for _ in range(clients)))
    return seen


def lasting(pid: int) -> set[int]:
    """Ids of the server's processes that must survive: all except the sandbox workers, which may be killed."""
    server = psutil.Process(pid)
    return {p.pid for p in (server, *server.children()) if "tenfold.serve.sandbox.worker" not in p.cmdline()}


def summary(seen: Seen) -> dict[str, Any]:
    """The row: counts and milliseconds."""
    times: dict[str, float] = {}
    for name, values in (("calm", seen.calm), ("meanwhile", seen.meanwhile)):
        times |= {f"{name}_p50_ms": round(1e3 * median(values), 1), f"{name}_p99_ms": round(1e3 * quantiles(values, n=100)[98], 1)}
    return {
        "statuses": {str(k): n for k, n in sorted(seen.statuses.items())}, "faults": len(seen.faults),
        "others_answered": len(seen.meanwhile),
        "others_refused": seen.refused, **times, "p99_ratio": round(times["meanwhile_p99_ms"] / times["calm_p99_ms"], 2),
        "slowest_s": seen.slowest[0],
    }  # fmt: skip


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        what = f"{r['requests']} hostile requests beside {r['clients']} clients: 500 or no answer; processes lost; the others' p99"
        yield what, f"{r['faults']}; {r['processes_lost']}; {r['p99_ratio']} x that without"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="instead of a small one of random weights")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--attackers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--calm", type=float, default=60)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    model = given.model or small_model(home / "small", 1024)
    with serving(model, "--kv-cache-gib", "0.2", "--feedback", "", "--max-queue", "1024", log=home / "log") as (url, process):
        before = lasting(process.pid)
        seen = asyncio.run(trial(url, given.requests, given.attackers, given.clients, given.calm))
        lost = len(before - lasting(process.pid)) if process.poll() is None else len(before)
    said = (home / "log").read_text()
    row = {"model": given.model.stem if given.model else "random weights, 2 layers of 64", "requests": given.requests,
           "attackers": given.attackers, "clients": given.clients, "processes_lost": lost, **summary(seen),
           "tracebacks": said.count("Traceback")}  # fmt: skip
    print(row, f"slowest: {seen.slowest}", *seen.faults[:20], sep="\n")
    if "Traceback" in said:
        print(said[-3000:])
    if not given.dry:
        write_results("hostile", [row], headline([row]))


if __name__ == "__main__":
    main()
