"""What the console's server takes of one core while many pages follow one run.

    python -m bench.console.listeners

A run is written at ten steps a second. So many connections listen to its events, as pages do; counted is the processor time of the
server's process, and that every listener got every step.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from bench.console.homes import console, make_home
from bench.harness import Row, options, write_results

STEPS_PER_S = 10
BAR = 0.20


async def listen(address: str, path: str, heard: list[int], begun: asyncio.Event) -> None:
    """Read events until cancelled; `heard` counts them."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(f"GET /{path} HTTP/1.1\r\nHost: {place.netloc}\r\nAccept: text/event-stream\r\n\r\n".encode())
    try:
        while line := await reader.readline():
            begun.set()
            if line.startswith(b"data:"):
                heard[0] += 1
    finally:
        writer.close()


def write_steps(run: Path, first: int, seconds: float) -> int:
    """Append steps for a while; returns how many."""
    written, end = 0, time.monotonic() + seconds
    with run.open("a") as stream:
        while time.monotonic() < end:
            step = {
                "event": "step",
                "time": time.time(),
                "step": first + written,
                "loss": 2.5,
                "tokens_per_s": 9700.0,
                "tokens": 1000,
            }
            stream.write(json.dumps(step) + "\n")
            stream.flush()
            written += 1
            time.sleep(1 / STEPS_PER_S)
    return written


async def measure(address: str, server: int, run: Path, asked: argparse.Namespace) -> Row:
    """The server's share of a core with so many listeners."""
    heard = [[0] for _ in range(asked.listeners)]
    begun = [asyncio.Event() for _ in heard]
    path = f"{asked.path}/{run.parent.name}"
    tasks = [asyncio.create_task(listen(address, path, one, event)) for one, event in zip(heard, begun, strict=True)]
    await asyncio.gather(*(event.wait() for event in begun))
    process = psutil.Process(server)
    before, began = process.cpu_times(), time.monotonic()
    steps = await asyncio.to_thread(write_steps, run, 1000, asked.seconds)
    after, took = process.cpu_times(), time.monotonic() - began
    await asyncio.sleep(3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    used = after.user + after.system - before.user - before.system
    events = [one[0] for one in heard]
    return {
        "listeners": asked.listeners, "seconds": took, "steps": steps, "share_of_a_core": used / took,
        "events_least": min(events), "events_most": max(events), "memory_mib": process.memory_info().rss / 2**20,
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--path", default="events/run", help="what is listened to, before the run's name")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = make_home(Path(folder) / "generations", 1)
        run = home / "g1" / "run.jsonl"
        run.write_text("".join(f"{line}\n" for line in run.read_text().splitlines() if '"end"' not in line))  # it goes on
        with console(home) as (address, server):
            row = asyncio.run(measure(address, server, run, asked))
    share = f"{100 * row['share_of_a_core']:.1f} % of a core (bar {100 * BAR:.0f} %)"
    print(write_results("console_listeners", [row], [(f"console, {asked.listeners} pages follow one run", share)]))
    print(row)


if __name__ == "__main__":
    main()
