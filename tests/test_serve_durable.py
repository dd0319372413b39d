"""A server that is killed while clients write loses no answer and no judgement that it acknowledged.

A kill leaves the operating system's cache whole, so that a loss of power is not tried.
"""

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from bench.serve.server import serving, small_model

KILLS, CLIENTS = 50, 4


class Client(threading.Thread):
    """Asks and judges until the server is gone; `kept` is what it was told is kept."""

    def __init__(self, url, name):
        super().__init__(daemon=True)
        self.url, self.user = url, name
        self.kept = []  # table and column, and a value that stands in one row of it alone
        self.refused = ""

    def run(self):
        previous, number = "", 0
        with contextlib.suppress(OSError, ValueError):  # the server was killed, or its answer was cut off
            while True:
                number += 1
                mark = f"{self.user}-{number}"
                asked = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "store": True, "user": self.user}
                name = self.post("/v1/chat/completions", asked)["id"]
                self.kept.append(("responses.id", name))
                judged = {"consent": True, "user": self.user, "response_id": name}
                self.post("/v1/feedback", {**judged, "rating": 1, "comment": mark})
                self.kept.append(("ratings.comment", mark))
                self.post("/v1/feedback", {**judged, "correction": mark})
                self.kept.append(("corrections.text", mark))
                if previous:
                    self.post("/v1/feedback", {**judged, "other_response_id": previous, "winner": "a"})
                    self.kept.append(("pairs.a_response_id", name))
                previous = name

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            self.refused = f"{path}: {error.read().decode()}"
            raise


def one_life(model, database, life, seconds):
    """Start a server, let clients write for some time after the first write, kill it; what they were told is kept."""
    asked = ("--kv-cache-gib", "0.02", "--threads", "1", "--feedback", f"sqlite:///{database}")
    with serving(model, *asked) as (url, process):
        clients = [Client(url, f"user-{life}-{i}") for i in range(CLIENTS)]
        for client in clients:
            client.start()
        while not any(client.kept for client in clients) and any(client.is_alive() for client in clients):
            time.sleep(0.002)
        time.sleep(seconds)
        for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(one.pid, signal.SIGKILL)
        process.wait()
        for client in clients:
            client.join()
    assert not any(client.refused for client in clients), [client.refused for client in clients]
    return [mark for client in clients for mark in client.kept]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_was_acknowledged_before_a_kill_is_there(tmp_path):
    chance = random.Random(0)
    model, database = small_model(tmp_path / "small", 256), tmp_path / "feedback.db"
    kept = [mark for life in range(KILLS) for mark in one_life(model, database, life, chance.uniform(0, 1))]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        there = {
            (where, value)
            for where in {where for where, _ in kept}
            for (value,) in connection.execute("SELECT {1} FROM {0}".format(*where.split(".")))
        }
    assert len(kept) >= KILLS and set(kept) <= there
