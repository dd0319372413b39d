"""Measured costs of serving rankings on this machine, for `tenfold plan --serve rank`: core-seconds and bytes of each part."""

import json
import platform
import sqlite3
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tenfold.model.path import model_path
from tenfold.plan.serving.rank import RankCosts, history_flops
from tenfold.rank.ranker import History, Ranker
from tenfold.rank.serving.index import Approximate, Exact
from tenfold.rank.serving.settings import WorkerSettings
from tenfold.rank.serving.start import load_with
from tenfold.serve.options import EngineOptions
from tenfold.serve.start import serving
from tenfold.spec.errors import TenfoldError

REQUESTS = 200
INDEXED = 20_000  # random vectors in the approximate index
PRODUCT = 200_000  # random vectors in the exact index


def measure(path: Path) -> RankCosts:
    """The costs of the ranker at `path`: requests to a server, computing histories, and searching random vectors of its width."""
    ranker = Ranker.load(path)
    width, context = ranker.items.shape[1], ranker.model.spec.context
    spec, length = ranker.model.spec, context - 1
    rng = np.random.default_rng(0)
    drawn = [tuple(rng.integers(1, len(ranker.names), length).tolist()) for _ in range(REQUESTS)]
    history = _core_s(lambda i: ranker.users([History(drawn[i], (), None)]), 50)
    vectors = torch.from_numpy(rng.standard_normal((PRODUCT, width), np.float32))
    users = torch.from_numpy(rng.standard_normal((REQUESTS, width), np.float32))
    exact, few = Exact(vectors), vectors[:INDEXED].contiguous()
    product = _core_s(lambda i: exact.search(users[i : i + 1], 200, [()]), 50)
    graph = Approximate(few)
    index_bytes = max(float(graph.graph.memory_usage) - few.numel() * 4, 0.0)
    search = _core_s(lambda i: graph.search(users[i : i + 1], 200, [()]), 50)
    names = [[ranker.names[token] for token in one] for one in drawn]
    query, event, list_bytes, event_bytes, process = _server(path, names)
    flops = history_flops(spec.dim, spec.n_layers, length)
    vectors_of_model = len(ranker.names) * width * 4
    per_byte = product / (PRODUCT * width * 4)
    return RankCosts(
        machine=f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        query_core_s=max(query - history - per_byte * vectors_of_model, 0.0), history_core_s_per_flop=history / flops,
        item_core_s_per_byte=per_byte, search_core_s=search, index_bytes_per_item=index_bytes / INDEXED, event_core_s=event,
        list_bytes=list_bytes, event_bytes=event_bytes, process_bytes=process,
    )  # fmt: skip


def _core_s(work: Callable[[int], Any], times: int) -> float:
    """Core-seconds of one call, the mean of `times` calls after one to warm up."""
    work(0)
    began = time.process_time()
    for i in range(times):
        work(i)
    return (time.process_time() - began) / times


def _server(path: Path, names: list[list[str]]) -> tuple[float, float, float, float, float]:
    """Costs of a real server: core-seconds of a list and of an event, bytes of each in the store, and bytes of memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.db"
        load = partial(load_with, WorkerSettings(cached_histories=0))
        with serving({"rank": EngineOptions(model_path(path), threads=1)}, load=load, events=f"sqlite:///{file}") as url:
            server = _listening(url)
            _post(url, "/v1/recommend", {"history": names[0]})
            sizes, cores = [_size(file)], [_cpu_s(server)]
            for i in range(len(names)):
                _post(url, "/v1/recommend", {"user": f"user-{i}"})
            cores.append(_cpu_s(server))
            sizes.append(_size(file))
            for one in names:
                _post(url, "/v1/recommend", {"history": one})
            cores.append(_cpu_s(server))
            between = _size(file)
            for i, one in enumerate(names):
                _post(url, "/v1/events", {"user": f"user-{i}", "events": [{"item": one[0]}]})
            cores.append(_cpu_s(server))
            memory = sum(process.memory_info().rss for process in (server, *server.children(recursive=True)))
            event_bytes = (_size(file) - between) / len(names)
    spent, n = np.diff(cores), len(names)
    return spent[1] / n, spent[2] / n, (sizes[1] - sizes[0]) / n, event_bytes, float(memory)


def _listening(url: str) -> psutil.Process:
    """The child process of this one that listens at the port of `url`."""
    port = int(url.rpartition(":")[2])
    for process in psutil.Process().children(recursive=True):
        if any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")):
            return process
    raise TenfoldError(f"The process that listens at {url} is not found: measure where the processes of a user can be listed.")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _size(file: Path) -> int:
    """Bytes of a database in use, also while some of it is still in SQLite's write-ahead log."""
    with sqlite3.connect(file) as connection:
        return connection.execute("select page_count * page_size from pragma_page_count(), pragma_page_size()").fetchone()[0]


def _post(url: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
