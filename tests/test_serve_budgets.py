"""What one client may take of a server: answers, bytes, connections, processes; each against a real server as a user starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.harness import TENFOLD
from bench.serve.server import serving, small_model
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.keys import make_key
from tenfold.serve.api.response_store import ResponseStore
from tenfold.serve.options import EngineOptions, name_models
from tenfold.serve.start import serving as started
from tenfold.spec.errors import TenfoldError

LIMITS = {
    "max-queue": 8, "max-num-seqs": 1, "max-connections": 20, "idle-timeout": 2, "body-timeout": 2, "stalled-timeout": 2,
    "kv-cache-gib": 0.05, "threads": 1, "feedback": "",
}  # fmt: skip
LONG = {"prompt": "hello", "max_tokens": 1900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("models") / "small")


class Site:
    def __init__(self, url, process, keys):
        self.url, self.process, self.keys, self.port = url, process, keys, int(url.rpartition(":")[2])

    def open(self, path, body=None, key="ann"):
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.keys[key]}"}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60)

    def ask(self, path, body=None, key="ann"):
        """The status and the answer."""
        try:
            with self.open(path, body, key) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def post(self, path, body):
        """A connection on which a request was sent."""
        data, connection = json.dumps(body).encode(), self.connect()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.keys['ann']}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection

    def gauges(self):
        """Sequences that run and wait, and the share of the cache in use."""
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{")
        return [float(line.split()[-1]) for line in self.ask("/metrics")[1].splitlines() if line.startswith(names)]

    def aborted(self):
        """Answers whose clients left."""
        lines = self.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if "request_success_total{" in line and '"abort"' in line)

    def wait_for(self, true):
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture(scope="module")
def site(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {name: make_key(file, name, operator=name == "olga") for name in ("ann", "bob", "olga")}
    arguments = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    with serving(model, "--keys", file, *arguments) as (url, process):
        yield Site(url, process, keys)


def test_a_request_counts_as_the_answers_that_it_asks_for(site):
    status, said = site.ask("/v1/completions", {"prompt": ["a"] * 200, "n": 8, "max_tokens": 1})
    assert status == 400 and "asks for 1600 answers at once: at most 4" in said
    assert site.ask("/v1/embeddings", {"input": ["a"] * 5})[0] == 400


def test_one_key_fills_its_share_of_the_queue_and_another_is_answered(site):
    with site.open("/v1/completions", {**LONG, "n": 4}) as stream:
        assert stream.readline().startswith(b"data: {")
        status, said = site.ask("/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert status == 429 and "queue is full" in said
        assert site.ask("/v1/completions", {"prompt": "a", "max_tokens": 1}, "bob")[0] == 200
    site.wait_for(lambda: site.ask("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200)


def test_requests_left_before_their_first_token_leave_nothing_behind(site):
    with site.open("/v1/completions", {**LONG, "max_tokens": 1000}) as first, ExitStack() as left:
        assert first.readline().startswith(b"data: {")  # the others wait for it
        for _ in range(3):
            left.enter_context(site.post("/v1/completions", LONG))
        site.wait_for(lambda: sum(site.gauges()[:2]) == 4)
        before = site.aborted()
    site.wait_for(lambda: site.gauges() == [0, 0, 0])  # with no request after them
    site.wait_for(lambda: site.aborted() == before + 4)
    assert site.ask("/v1/completions", {"prompt": ["a"] * 4, "max_tokens": 1})[0] == 200


@pytest.mark.parametrize("path, body", [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 100_000}),
    ("/tokenize", {"messages": [{"role": "user", "content": "a"}] * 100_000}),
    ("/detokenize", {"tokens": [1] * 5_000_000}),
    ("/v1/responses", {"input": "x", "metadata": {"a": "x" * 1_000_000}}),
])  # fmt: skip
def test_more_than_a_model_could_ever_read_is_refused(site, path, body):
    assert site.ask(path, body)[0] == 400


def test_idle_connections_give_way_and_are_closed(site):
    with ExitStack() as opened:
        idle = [opened.enter_context(site.connect()) for _ in range(60)]
        assert site.ask("/health")[0] == 200
        for connection in idle:
            assert closed(connection)


def test_of_connections_that_come_at_once_no_more_stand_than_may(site):
    server = psutil.Process(site.process.pid)
    with ExitStack() as opened:
        server.suspend()
        for _ in range(100):
            opened.enter_context(site.connect())
        server.resume()
        assert site.ask("/health")[0] == 200
        assert len(server.net_connections()) <= 1 + 20  # it listens


def test_a_head_or_a_body_that_does_not_come_and_an_answer_that_is_not_read(site):
    with site.connect() as head, site.connect() as body, site.post("/detokenize", {"tokens": [100] * 1_000_000}) as unread:
        head.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        body.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{"
            % site.keys["ann"].encode()
        )
        assert closed(head) and closed(body)
        server = psutil.Process(site.process.pid)
        site.wait_for(lambda: len(server.net_connections()) == 1)  # it listens, and that is all
        unread.settimeout(30)
    assert site.ask("/health")[0] == 200


def closed(connection):
    """Whether the server ends a connection before it was given an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_swap_to_what_cannot_be_a_model_starts_no_process(site, model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).symlink_to(file)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    children = psutil.Process(site.process.pid).children()
    for path in (tmp_path / "nothing", broken, tmp_path):
        assert site.ask("/v1/models/swap", {"path": str(path)}, "olga")[0] == 400
    assert psutil.Process(site.process.pid).children() == children
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in children)


def engines(server):
    alive = [p for p in psutil.Process(server).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in alive if "spawn_main" in " ".join(p.cmdline())]


def gone(processes):
    return len(psutil.wait_procs(processes, timeout=60)[1]) == 0


def test_an_engine_ends_with_a_server_that_is_killed(model):
    with serving(model, "--feedback", "", "--kv-cache-gib", "0.05", "--threads", "1") as (url, process):
        engine = engines(process.pid)
        urllib.request.urlopen(
            urllib.request.Request(f"{url}/v1/completions", json.dumps(LONG).encode(), {"content-type": "application/json"})
        ).readline()
        process.kill()
        assert len(engine) == 1 and gone(engine)


def test_an_engine_ends_with_a_launched_server_that_is_killed(model):
    with started({"small": EngineOptions(model, kv_cache_gib=0.05, threads=1)}) as url:
        port = int(url.rpartition(":")[2])
        (server,) = {c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == port and c.status == psutil.CONN_LISTEN}
        engine = engines(server)
        os.kill(server, signal.SIGKILL)
        assert len(engine) == 1 and gone(engine)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot tell a process of the end of its parent")
def test_a_command_of_another_program_ends_with_who_started_it():
    start = "import subprocess, time; from tenfold.launch.child import following; print(subprocess.Popen(following(['sleep', '600'])).pid, flush=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    end = time.monotonic() + 60
    while child.name() != "sleep":
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.kill()
    assert gone([child])
    parent.communicate()


def test_the_address_of_the_page_is_printed_when_the_model_can_answer(model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*TENFOLD, "serve", str(model), "--port", port, "--feedback", "", "--kv-cache-gib", "0.05", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "small: loading\n"
        address = process.stdout.readline().split()[3].rstrip(",")
        with urllib.request.urlopen(f"{address}health", timeout=60) as answer:
            assert answer.status == 200
        process.terminate()


def test_a_server_that_does_not_start_is_one_sentence(tmp_path, capfd):
    with pytest.raises(TenfoldError, match=r"The server of none did not start"), started({"none": EngineOptions(tmp_path)}):
        pass


@pytest.mark.parametrize("paths, names", [
    (["a/g1/model", "b/g1/model"], ["a/g1", "b/g1"]),
    (["a/x/g1", "b/x/g1", "g2"], ["a/x/g1", "b/x/g1", "g2"]),
    (["a/m.gguf", "b/m", "n"], ["a/m", "b/m", "n"]),
])  # fmt: skip
def test_models_of_one_name_are_told_apart(paths, names):
    paths = [Path("/models") / path for path in paths]
    assert name_models(paths) == dict(zip(names, paths, strict=True))


def test_one_model_twice_is_refused():
    with pytest.raises(TenfoldError, match="have the same name"):
        name_models([Path("/models/g1/model"), Path("/models/g1/model")])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=25))
def test_remembered_responses_weigh_no_more_than_is_allowed_and_the_latest_is_kept(added):
    store, most, each = ResponseStore(1000, 0.5), 1000, 500
    for i, (owner, size) in enumerate(added):
        store.add(owner, {"id": f"r{i}", "object": "response", "text": "x" * size}, [])
        found = {(o, n): len(json.dumps([r, m])) for o, n, r, m in kept(store, i + 1)}
        assert sum(found.values()) <= most * 1.2  # this JSON has spaces
        assert all(sum(size for (o, _), size in found.items() if o == owner) <= each * 1.2 for owner in "abc")
        assert (owner, f"r{i}") in found
        assert all(added[int(name[1:])][0] == owner for owner, name in found)  # nobody else's
        for one in "abc":  # and no older one than those that are gone
            mine = [n for n in range(i + 1) if added[n][0] == one]
            there = [n for n in mine if (one, f"r{n}") in found]
            assert there == mine[len(mine) - len(there) :]


def kept(store, count):
    for owner in "abc":
        for i in range(count):
            try:
                yield owner, f"r{i}", *store.get(owner, f"r{i}")
            except ApiError as error:
                assert error.status == 404
