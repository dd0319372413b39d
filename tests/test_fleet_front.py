"""The front before real servers: whole answers while they come, go, hang and are killed; cuts that are seen; bounds; affinity."""

import http.client
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import toy_replica
from hypothesis import given
from hypothesis import strategies as st

from bench.fleet.front import WORDS
from bench.serve.server import serving, small_model
from tenfold.fleet.front.control import Front
from tenfold.fleet.front.file import lock_of, write_replicas
from tenfold.fleet.front.replicas import BEGINNING, Replicas, beginning_of
from tenfold.serve.start import answers, free_url
from tenfold.spec.files import holder

MOST, LARGEST = 24, 100_000  # requests and bytes of a body that the front under test takes


def until(true, seconds=240):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def get(url):
    """Status and JSON of a page."""
    try:
        with urlopen(url, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def post(url, body, path="/v1/completions", **headers):
    """Status, headers and the whole body of an answer; raises what a cut one raises."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urlopen(Request(url + path, data, {"Content-Type": "application/json"} | headers), timeout=300) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


class Toy:
    """A replica of toy_replica.py."""

    def __init__(self, *kind):
        self.url = free_url()
        command = [sys.executable, "-S", toy_replica.__file__, self.url.rpartition(":")[2], *map(str, kind)]
        self.process = subprocess.Popen(command)
        until(lambda: answers(self.url))

    @property
    def seen(self):
        return get(f"{self.url}/v1/seen")[1]

    def end(self):
        self.process.kill()
        self.process.wait()


class Site:
    """A front's process, its file, and replicas by name."""

    def __init__(self, folder, *options):
        self.file, self.url, self.toys = folder / "front.json", free_url(), {}
        self.tell()
        words = ["--port", self.url.rpartition(":")[2], "--access-log", "none", "--check-every", "0.2", "--check-timeout", "2"]
        self.process = subprocess.Popen([sys.executable, "-m", "tenfold", "fleet", "front", self.file, *words, *options])
        until(lambda: _listens(self.url))

    def tell(self, *urls):
        write_replicas(self.file, self.url, list(urls))

    @contextmanager
    def replicas(self, *kinds):
        """Toys behind the front, which are ended after the block."""
        toys = [Toy(*kind) for kind in kinds]
        try:
            self.set(*toys)
            yield toys
        finally:
            for toy in toys:
                toy.end()
            self.set()

    def set(self, *toys):
        """Let these be the replicas, once the front has heard so and they are well."""
        self.tell(*(toy.url for toy in toys))
        until(
            lambda: (
                get(f"{self.url}/health")[1]
                == {"status": "ok" if toys else "no replica is well", "replicas": len(toys), "well": len(toys)}
            )
        )


def _listens(url):
    try:
        return get(f"{url}/health")
    except OSError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("front"), "--max-queue", str(MOST), "--max-body-bytes", str(LARGEST))
    yield made
    made.process.terminate()
    assert made.process.wait(60) in (0, -signal.SIGTERM)


LOADS = st.lists(st.integers(0, 30), min_size=1, max_size=8)


def replicas(loads, factor=1.25):
    made = Replicas(factor)
    made.set(f"http://replica-{i}" for i in range(len(loads)))
    for replica, load in zip(made.all, loads, strict=True):
        replica.running = load
    return made


@given(LOADS, LOADS, st.floats(1, 3), st.binary(max_size=8))
def test_no_replica_is_chosen_beyond_the_bound_of_the_mean_and_without_a_beginning_the_least_is(before, loads, factor, beginning):
    made = replicas(before, factor)
    made.choose(beginning)
    for replica, load in zip(made.all, loads, strict=False):
        replica.running = load
    running = [replica.running for replica in made.all]
    assert made.choose(None).running == min(running)
    assert made.choose(beginning).running + 1 <= math.ceil(factor * (sum(running) + 1) / len(running))


@given(st.integers(2, 8), st.data())
def test_a_replica_that_goes_moves_its_own_conversations_only_and_each_gets_its_share(count, data):
    made, keys = replicas([0] * count), [str(i).encode() for i in range(20 * count)]

    def sent(key):
        chosen = made.choose(key)
        with chosen.asked():
            return chosen.url

    before = {key: sent(key) for key in keys}
    assert set(Counter(before.values()).values()) == {20}
    gone = data.draw(st.sampled_from(made.all)).url
    made.set([*(replica.url for replica in made.all if replica.url != gone), "http://one-more"])
    after = {key: sent(key) for key in keys}
    assert all((before[key] != after[key]) == (before[key] == gone) for key in keys)
    assert Counter(after.values())["http://one-more"] > 0


@pytest.mark.parametrize("more, known", [(2, True), (3, False)])
def test_the_front_remembers_a_bounded_number_of_beginnings(monkeypatch, more, known):
    monkeypatch.setattr("tenfold.fleet.front.replicas.HOMES", 3)
    made = replicas([0, 0])
    home = made.choose(b"first")
    for i in range(more):
        made.choose(str(i).encode())
    home.running = 1  # it has room, but not the fewest
    assert (made.choose(b"first") is home) == known


TEXT = st.text(max_size=2 * BEGINNING)


@given(TEXT, TEXT, st.lists(TEXT, max_size=4), st.sampled_from(["messages", "input"]))
def test_all_turns_of_a_conversation_have_one_beginning(told, asked, later, field):
    talk = [{"role": "system", "content": told}, {"role": "user", "content": asked}]
    roles = itertools.cycle(["assistant", "user"])
    longer = [*talk, *({"role": role, "content": text} for role, text in zip(roles, later, strict=False))]
    first, last = ({"model": "chat", field: turns} for turns in (talk, longer))
    assert beginning_of(json.dumps(first).encode()) == beginning_of(json.dumps({**last, "seed": 1}).encode()) is not None
    other = [talk[0], {"role": "user", "content": "Other: " + asked}]
    assert beginning_of(json.dumps({"model": "chat", field: other}).encode()) != beginning_of(json.dumps(first).encode())


@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.recursive(
            st.none() | st.text(),
            lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["prompt", "messages", "input", "role"]), x),
        ).map(lambda x: json.dumps(x).encode()),
    )
)
def test_no_body_is_too_odd_to_be_looked_at(body):
    assert beginning_of(body) is None or len(beginning_of(body)) > 0


def test_a_text_has_a_beginning_where_it_is_long_enough_to_be_kept():
    long = "x" * BEGINNING
    assert beginning_of(b'{"prompt": "def "}') is None and beginning_of(json.dumps({"prompt": [1, 2, 3]}).encode()) is None
    assert beginning_of(json.dumps({"prompt": long + "a"}).encode()) == beginning_of(json.dumps({"prompt": long + "b"}).encode())


def test_what_a_client_and_a_replica_say_passes_through(site):
    with site.replicas(()) as (toy,):
        body = b'{"pieces": 3, "odd": "\xff"}'.replace(b"\xff", "é".encode())
        given = {"Authorization": "Bearer k", "X-Request-ID": "name-1", "X-Odd": "a, b", "Origin": site.url}
        status, headers, said = post(site.url, body, "/v1/chat/completions?a=%2F&b=", **given)
        asked = toy.seen["asked"][0]
        assert status == 200 and said.count(b"data: ") == 4 and said.endswith(b"data: [DONE]\n\n")
        assert headers["X-Request-ID"] == "name-1" and headers.get_all("Date") is not None and len(headers.get_all("Date")) == 1
        assert asked["path"] == "/v1/chat/completions?a=%2F&b=" and asked["body"].encode("latin-1") == body
        heard = asked["headers"]
        assert (heard["authorization"], heard["x-odd"], heard["x-request-id"]) == ("Bearer k", "a, b", "name-1")
        assert "origin" not in heard and heard["host"] == toy.url.removeprefix("http://")
        unnamed = post(site.url, {})[1]["X-Request-ID"]
        assert toy.seen["asked"][1]["headers"]["x-request-id"] == unnamed
        assert get(f"{site.url}/v1/seen")[1]["asked"] and get(f"{site.url}/other")[0] == 404


def test_pieces_come_as_they_are_written_and_a_client_that_leaves_is_noticed_by_the_replica(site, tmp_path):
    with site.replicas(()) as (toy,):
        for leaves in (False, True):
            client = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=240)
            gate = tmp_path / f"gate-{leaves}"
            client.request("POST", "/v1/completions", json.dumps({"pieces": 100_000 if leaves else 2, "last": str(gate)}))
            answer = client.getresponse()
            assert answer.readline() == b"data: 00000000000000000000\n"  # the last is not written yet
            if leaves:
                client.close()
                answer.close()
                gate.touch()
                until(lambda: toy.seen["gone"] == 1)
            else:
                gate.touch()
                assert answer.read().endswith(b"[DONE]\n\n")
        assert "tenfold_front_gone_total 1.0" in urlopen(f"{site.url}/metrics").read().decode()


def test_no_request_is_lost_while_replicas_come_drain_and_are_killed_before_they_answer(site, tmp_path):
    """Each of many clients asks again and again; answers wait for a file, so that a replica is killed with requests in hand."""
    gate = tmp_path / "gate"
    with site.replicas((), ()) as (one, other), ThreadPoolExecutor(MOST) as pool:
        waiting = [pool.submit(post, site.url, {"first": str(gate), "pieces": 2}) for _ in range(8)]
        until(lambda: len(one.seen["asked"]) == len(other.seen["asked"]) == 4)  # by load
        one.end()
        until(lambda: len(other.seen["asked"]) == 8)
        third = Toy()
        site.tell(other.url, third.url)
        until(lambda: post(site.url, {})[1]["X-Port"] == third.url.rpartition(":")[2])
        site.tell(third.url)  # the other drains, with all that it has
        until(lambda: get(f"{site.url}/health")[1]["well"] == 1)
        many = [pool.submit(post, site.url, {"pieces": 3}) for _ in range(30)]
        assert {each.result()[1]["X-Port"] for each in many} == {third.url.rpartition(":")[2]}
        gate.touch()
        done = [each.result() for each in [*waiting, *many]]
        assert all(status == 200 and said.endswith(b"[DONE]\n\n") for status, _, said in done)
        assert sorted(int(headers["X-Tenfold-Tries"]) for _, headers, _ in done[:8]) == [1] * 4 + [2] * 4
        third.end()


def test_requests_wait_for_a_replica_that_comes(site):
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(post, site.url, {"pieces": 2}) for _ in range(4)]
        assert get(f"{site.url}/health")[0] == 503
        with site.replicas(()):
            assert [each.result()[0] for each in asked] == [200] * 4


def test_a_replica_that_hangs_is_left_out_and_what_it_has_not_begun_goes_on_elsewhere(site, tmp_path):
    gate = tmp_path / "gate"
    with site.replicas((), ()) as (one, other), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(post, site.url, {"first": str(gate)}) for _ in range(4)]
        until(lambda: len(one.seen["asked"]) == len(other.seen["asked"]) == 2)
        one.process.send_signal(signal.SIGSTOP)
        until(lambda: len(other.seen["asked"]) == 4)
        gate.touch()
        assert {each.result()[1]["X-Port"] for each in asked} == {other.url.rpartition(":")[2]}
        one.process.send_signal(signal.SIGCONT)
        until(lambda: get(f"{site.url}/health")[1]["well"] == 2)


def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(site, tmp_path):
    with site.replicas(()) as (toy,):
        client = http.client.HTTPConnection(site.url.removeprefix("http://"), timeout=240)
        client.request("POST", "/v1/completions", json.dumps({"pieces": 2, "last": str(tmp_path / "never")}))
        answer = client.getresponse()
        said = answer.readline() + answer.readline()
        toy.end()
        with pytest.raises(http.client.IncompleteRead) as cut:
            while True:
                answer.read()
        rest = cut.value.partial
        assert said.startswith(b"data: 0") and json.loads(rest.split(b"data: ")[1])["error"]["type"] == "server_error"
        assert b"[DONE]" not in rest


@pytest.mark.parametrize("kind", ["429", "503", "500", "hangs-up"])
def test_another_replica_answers_where_one_refuses_or_hangs_up_and_a_refusal_of_all_is_passed_on(site, kind):
    with site.replicas((kind,), ()) as (bad, good):
        assert [post(site.url, {"pieces": 2})[0] for _ in range(10)] == [200] * 10
        assert bad.seen["asked"] and len(good.seen["asked"]) == 10
        if kind == "hangs-up":
            assert len(bad.seen["asked"]) < 10  # it rests
            return
        site.set(bad)
        status, headers, _ = post(site.url, {})
        if kind == "500":  # without JSON: of a server that cancels what it has
            assert status == 502
        else:
            assert (status, headers["Retry-After"]) == (int(kind), "7")


def test_a_request_over_which_replicas_break_off_is_given_up(site):
    with site.replicas(("hangs-up",), ("hangs-up",)) as toys:
        assert post(site.url, {})[0] == 502
        assert sum(len(toy.seen["asked"]) for toy in toys) == 3


def test_a_client_that_reads_nothing_holds_no_more_than_the_buffers_between(site):
    with site.replicas(()) as (toy,), socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2]))) as slow:
        body = json.dumps({"pieces": 4000, "bytes": 100_000})
        slow.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: toy.seen["bytes"] > 100_000)

        def stands():
            before = toy.seen["bytes"]
            assert post(site.url, {})[0] == 200  # others are answered
            time.sleep(0.5)
            return toy.seen["bytes"] - before < 200

        until(stands)
        assert toy.seen["bytes"] < 100_000_000  # of 400 MB
        slow.close()
        until(lambda: toy.seen["gone"] == 1)


def test_bodies_and_requests_under_way_are_bounded(site, tmp_path):
    gate = tmp_path / "gate"
    with site.replicas(()) as (toy,), ThreadPoolExecutor(MOST) as pool:
        assert post(site.url, b"x" * (LARGEST + 1))[0] == 413 and not toy.seen["asked"]
        assert post(site.url, {}, Host="elsewhere")[0] == post(site.url, {}, Origin="http://elsewhere")[0] == 403
        asked = [pool.submit(post, site.url, {"first": str(gate)}) for _ in range(MOST)]
        until(lambda: len(toy.seen["asked"]) == MOST)
        status, headers, _ = post(site.url, {})
        assert status == 429 and int(headers["Retry-After"]) > 0
        gate.touch()
        assert [each.result()[0] for each in asked] == [200] * MOST
        with pytest.raises(HTTPError, match="405"):
            urlopen(Request(f"{site.url}/v1/x", method="DELETE"))


def test_a_file_that_is_damaged_changes_nothing(site):
    with site.replicas(()) as (toy,):
        for damaged in ("", "{", '{"version": 2, "replicas": []}', '{"version": 1, "replicas": ["ftp://x"]}', "[]"):
            site.file.write_text(damaged)
            assert post(site.url, {})[0] == 200
        site.file.unlink()
        assert post(site.url, {})[1]["X-Port"] == toy.url.rpartition(":")[2]


def test_a_front_to_which_nobody_comes_back_ends_and_two_of_one_file_are_not_begun(site, tmp_path):
    forsaken = Site(tmp_path, "--forsaken-after", "1")
    second = [sys.executable, "-m", "tenfold", "fleet", "front", site.file, "--port", "0"]
    refused = subprocess.run(second, capture_output=True, text=True)
    assert refused.returncode and "Another process is the front of" in " ".join(refused.stderr.split())
    assert forsaken.process.wait(240) in (0, -signal.SIGTERM)


CONTROLLER = """
import sys, time
from pathlib import Path
from tenfold.fleet.front.control import Front
front = Front(Path(sys.argv[1]))
front.open(sys.argv[2])
print(front.url, flush=True)
time.sleep(600)
"""


def test_the_front_outlives_its_controller_and_the_next_one_finds_it(tmp_path):
    gate, lock = tmp_path / "gate", lock_of(tmp_path / "front.json")
    with ExitStack() as opened:
        toys = [Toy(), Toy()]
        for toy in toys:
            opened.callback(toy.end)
        controller = subprocess.Popen([sys.executable, "-c", CONTROLLER, tmp_path, toys[0].url], stdout=subprocess.PIPE, text=True)
        url = controller.stdout.readline().strip()
        pool = opened.enter_context(ThreadPoolExecutor(2))
        opened.callback(gate.touch)
        begun = pool.submit(post, url, {"pieces": 2, "last": str(gate)})
        until(lambda: toys[0].seen["bytes"])
        controller.kill()
        controller.wait()
        process = holder(lock)["process"]
        assert post(url, {"pieces": 2})[0] == 200
        front = Front(tmp_path)
        opened.callback(front.end)
        assert front.url == url and holder(lock)["process"] == process
        front.open(toys[1].url)
        assert not front.ask({"stream": True}).lost
        gate.touch()
        assert begun.result()[2].endswith(b"[DONE]\n\n")  # its replica was taken out meanwhile
        os.kill(process, signal.SIGKILL)
        until(lambda: not front.runs())
        front.start()  # as the fleet's world does at its next look
        assert not front.ask({"stream": True}).lost and holder(lock)["process"] != process
        front.end()
        assert holder(lock) is None


def words(chance, count):
    return " ".join(chance.choices(WORDS, k=count))


def counted(url, name):
    """A figure of a real server's metrics."""
    said = urlopen(f"{url}/metrics").read().decode()
    return sum(map(float, re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", said, re.MULTILINE)))


def lead(url, talks, turns=4):
    """Conversations, each sent whole with every turn, one request at a time."""
    chance = random.Random(1)
    for _ in range(turns):
        for i, talk in enumerate(talks):
            assert post(url, {"prompt": talk, "max_tokens": 2})[0] == 200
            talks[i] = f"{talk} {words(chance, 10)}"


@pytest.mark.slow
def test_real_servers_find_conversations_in_their_caches_and_are_killed_and_drained_under_requests(site, tmp_path):
    chance = random.Random(0)
    talks = [words(chance, 60) for _ in range(8)]
    model = small_model(tmp_path / "small", 1024)
    given = (model, "--feedback", "", "--threads", "1", "--kv-cache-gib", "0.1", "--max-num-seqs", "2")
    with serving(*given) as (alone, _), serving(*given) as (one, first), serving(*given) as (other, second):
        lead(alone, list(talks))
        site.tell(one, other)
        until(lambda: get(f"{site.url}/health")[1]["well"] == 2)
        lead(site.url, list(talks))
        hits = [counted(url, "prefix_cache_hits_total") for url in (alone, one, other)]
        assert min(hits) > 0 and sum(hits[1:]) >= 0.95 * hits[0]  # as in one cache
        long = {"prompt": "def", "max_tokens": 900, "ignore_eos": True, "stream": True}

        def whole():
            try:
                status, _, said = post(site.url, long)
                assert status == 200 and said.endswith(b"[DONE]\n\n")
            except http.client.IncompleteRead:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(whole) for _ in range(16)]
            until(lambda: counted(one, "num_requests_running"))
            first.kill()
            assert [each.result() for each in asked].count(False) <= 2  # those it had begun
            asked = [pool.submit(whole) for _ in range(16)]
            until(lambda: counted(other, "num_requests_running"))
            site.tell(alone)
            second.terminate()
            assert all(each.result() for each in asked)
        site.tell()
