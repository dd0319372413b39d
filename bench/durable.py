"""A server killed with SIGKILL while it writes answers and feedback, 50 times: is all there that it acknowledged?

    python bench/durable.py
    python bench/durable.py --kills 3 --dry      # a try

Clients ask the server for answers with `store: true` and rate, correct and compare what they got; each notes what was
acknowledged (a whole answer, or 200 to a judgement). The server's process, and its engine's, are killed at a random moment
and started again on the same SQLite file. At the end every acknowledged answer and judgement must be in the file, and
nothing half written: the file passes SQLite's own integrity check.

What this cannot show: a kill leaves the operating system's cache whole, so that a loss of power is not tried.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from results_file import write_results
from server import serving, small_model


class Client(threading.Thread):
    """Asks and judges until the server is gone; `kept` is what it was told is kept."""

    def __init__(self, url: str, name: str):
        super().__init__(daemon=True)
        self.url, self.user = url, name
        self.kept: list[tuple[str, str]] = []  # table, and a value that stands in one row of it alone

    def run(self) -> None:
        previous, number = "", 0
        with contextlib.suppress(OSError):  # it was killed
            while True:
                number += 1
                mark = f"{self.user}-{number}"
                asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "store": True, "user": self.user}
                name = self.post("/v1/chat/completions", asked)["id"]
                self.kept.append(("responses.id", name))
                judged: dict[str, Any] = {"consent": True, "user": self.user, "response_id": name}
                self.post("/v1/feedback", {**judged, "rating": 1, "comment": mark})
                self.kept.append(("ratings.comment", mark))
                self.post("/v1/feedback", {**judged, "correction": mark})
                self.kept.append(("corrections.text", mark))
                if previous:
                    self.post("/v1/feedback", {**judged, "other_response_id": previous, "winner": "a"})
                    self.kept.append(("pairs.a_response_id", name))
                previous = name

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"the server refused {path}: {error.read().decode()}") from None
        except ValueError:  # an answer that was cut off
            raise OSError from None


def one_life(model: Path, database: Path, life: int, clients: int, seconds: float) -> tuple[list[tuple[str, str]], float]:
    """Start a server, let clients write for some time after the first write, kill it; what they were told is kept."""
    options = ("--kv-cache-gib", "0.02", "--threads", "1", "--feedback", f"sqlite:///{database}")
    with serving(model, *options) as (url, process):
        started = time.monotonic()
        threads = [Client(url, f"user-{life}-{i}") for i in range(clients)]
        for thread in threads:
            thread.start()
        while not any(thread.kept for thread in threads):
            time.sleep(0.002)
        time.sleep(seconds)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for thread in threads:
            thread.join()
    return [mark for thread in threads for mark in thread.kept], time.monotonic() - started


def lost(database: Path, kept: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What was acknowledged and is not in the database. Raises SystemExit where that is damaged."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        if (said := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
            raise SystemExit(f"the database is damaged: {said}")
        there = {
            (where, value)
            for where in {where for where, _ in kept}
            for (value,) in connection.execute("SELECT {1} FROM {0}".format(*where.split(".")))
        }
    return [mark for mark in kept if mark not in there]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home, chance = Path(tempfile.mkdtemp()), random.Random(0)
    model, database = small_model(home / "small", 256), home / "feedback.db"
    kept: list[tuple[str, str]] = []
    for life in range(given.kills):
        more, seconds = one_life(model, database, life, given.clients, chance.uniform(0, 1))
        kept += more
        print(f"kill {life + 1}: {len(more)} writes acknowledged in {seconds:.1f} s", flush=True)
    gone = lost(database, kept)
    counts = Counter(where.split(".")[0] for where, _ in kept)
    row = {"kills": given.kills, "clients": given.clients, "acknowledged": len(kept), **counts, "lost": len(gone)}
    print(row, *gone[:5])
    if not given.dry:
        write_results("durable", [row])


if __name__ == "__main__":
    main()
