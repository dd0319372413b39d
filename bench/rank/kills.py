"""Kill a ranking server (SIGKILL) while clients send events: how many acknowledged events are lost?

    python -m bench.rank.kills                # 50 kills

The operating system's cache survives a kill, so this does not test a loss of power.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil

from bench.harness import TENFOLD, Row, options, write_results
from bench.rank.made import ask, made_ranker
from bench.serve.server import free_port, wait_for

CLIENTS = 4


class Client(threading.Thread):
    """Requests recommendations and sends events until the server is gone; `kept` are the ids of acknowledged events."""

    def __init__(self, url: str, user: str):
        super().__init__(daemon=True)
        self.url, self.user, self.kept, self.refused = url, user, list[str](), ""

    def run(self) -> None:
        number = 0
        with contextlib.suppress(OSError, ValueError):  # the server was killed, or its answer was cut off
            while not self.refused:
                _, shown = ask(f"{self.url}/v1/recommend", {"user": self.user, "k": 3})
                ids = [f"{self.user}-{number + i}" for i in range(3)]
                number += 3
                sent = [{"item": "item-1", "id": one, "list": shown["id"]} for one in ids]
                status, answer = ask(f"{self.url}/v1/events", {"user": self.user, "events": sent})
                if status != 200:
                    self.refused = str(answer)
                else:
                    self.kept += ids


def one_life(model: Path, database: Path, life: int, seconds: float) -> list[str]:
    """Start a server, let clients write for `seconds` after the first write, kill it; the ids that it acknowledged.

    Raises AssertionError if it refused any.
    """
    port = free_port()
    command = [*TENFOLD, "rank", "serve", str(model), "--port", str(port), "--events", f"sqlite:///{database}"]
    process = subprocess.Popen([*command, "--feedback", "", "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    clients = [Client(f"http://127.0.0.1:{port}", f"user-{life}-{i}") for i in range(CLIENTS)]
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        for client in clients:
            client.start()
        while not any(client.kept for client in clients) and any(client.is_alive() for client in clients):
            time.sleep(0.002)
        time.sleep(seconds)
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(one.pid, signal.SIGKILL)
        process.wait()
        for client in clients:
            if client.ident is not None:
                client.join()
    assert not any(client.refused for client in clients), [client.refused for client in clients]
    return [mark for client in clients for mark in client.kept]


def lost(database: Path, acknowledged: list[str]) -> list[str]:
    """The acknowledged ids that are not in the database. Raises AssertionError if the database is damaged."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        there = {name.partition("-")[2] for (name,) in connection.execute("SELECT id FROM events")}
    return [one for one in acknowledged if one not in there]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    kills, chance, kept = parser.parse_args().kills, random.Random(0), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        model, database = made_ranker(Path(folder) / "r", 100, 16, 20), Path(folder) / "events.db"
        for life in range(kills):
            kept += one_life(model, database, life, chance.uniform(0, 1))
            print(f"life {life + 1}: {len(kept)} events acknowledged", flush=True)
        gone = lost(database, kept)
    rows: list[Row] = [{"kills": kills, "acknowledged": len(kept), "lost": len(gone)}]
    write_results("rank_kills", rows, [(f"events lost of {len(kept)} acknowledged, in {kills} kills", str(len(gone)))])


if __name__ == "__main__":
    main()
