"""Who may do what: every route by every role on the objects of one of them, and what pages of other sites may not."""

import asyncio
import json
import stat
import subprocess
import sys
from contextlib import contextmanager
from functools import reduce

import pytest
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from bench.rank.made import made_ranker
from bench.serve.server import serving, small_model
from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.rank.serving.settings import WorkerSettings
from tenfold.rank.serving.start import load_with
from tenfold.serve.api.app import make_app
from tenfold.serve.api.errors import ApiError
from tenfold.serve.api.gate import Gate
from tenfold.serve.api.keys import make_key, revoke_key
from tenfold.serve.api.models import Models
from tenfold.serve.api.sites import Sites
from tenfold.serve.feedback.export import export
from tenfold.serve.feedback.feedback import Feedback, corrections, responses
from tenfold.serve.options import EngineOptions, Limits, ServerOptions
from tenfold.serve.request import Output
from tenfold.serve.text import PLAIN_TEMPLATE, TextSide
from tenfold.spec.errors import TenfoldError

ROLES = ("stranger", "another user", "owner", "operator")
NAMES = dict(zip(ROLES[1:], ("bob", "alice", "olga"), strict=True))  # whose keys they are
ANY_KEY, OPERATORS, EVERYONE = (401, 200, 200, 200), (401, 403, 403, 200), (200, 200, 200, 200)
OWNER = (401, 404, 200, 404)
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
PREVIOUS = {"input": "and you?", "previous_response_id": "{response}", "max_output_tokens": 2}
SAID = {"items": [{"role": "user", "content": "a secret"}]}
JUDGED = {"consent": True, "response_id": "{answer}", "rating": 1}
# What each role gets, and the body that is sent. {response} and {answer} are the owner's response and stored answer, {folder} is the
# model's folder.
TABLE = {
    "GET /": (EVERYONE, None),
    "GET /health": (EVERYONE, None),
    "GET /metrics": (EVERYONE, None),
    "GET /openapi.json": (ANY_KEY, None),
    "GET /v1/models": (ANY_KEY, None),
    "GET /v1/models/{name:path}": (ANY_KEY, None),
    "POST /sleep": ((401, 403, 403, 400), None),  # this backend cannot
    "POST /wake_up": (OPERATORS, None),
    "GET /is_sleeping": (ANY_KEY, None),
    "POST /v1/models/swap": (OPERATORS, {"path": "{folder}"}),
    "POST /v1/models/split": (OPERATORS, {"path": "{folder}", "share": 0.5}),
    "POST /v1/chat/completions": (ANY_KEY, CHAT),
    "GET /v1/chat/completions": (ANY_KEY, None),
    "GET /v1/chat/completions/{name}": (OWNER, None),
    "POST /v1/chat/completions/{name}": (OWNER, {"metadata": {"a": "b"}}),
    "DELETE /v1/chat/completions/{name}": (OWNER, None),
    "GET /v1/chat/completions/{name}/messages": (OWNER, None),
    "POST /v1/messages": (ANY_KEY, CHAT),
    "POST /v1/messages/count_tokens": (ANY_KEY, CHAT),
    "POST /v1/completions": (ANY_KEY, {"prompt": "hello", "max_tokens": 2}),
    "POST /v1/embeddings": (ANY_KEY, {"input": "hello"}),
    "POST /v1/score": (ANY_KEY, {"text_1": "hello", "text_2": "there"}),
    "POST /v1/rerank": (ANY_KEY, {"query": "hello", "documents": ["there", "hello"]}),
    "POST /tokenize": (ANY_KEY, {"prompt": "hello"}),
    "POST /detokenize": (ANY_KEY, {"tokens": [1, 2]}),
    "POST /v1/recommend": (ANY_KEY, {"history": ["item-1"], "k": 1}),
    "POST /v1/rank": (ANY_KEY, {"history": ["item-1"], "candidates": ["item-2"]}),
    "POST /v1/events": (ANY_KEY, {"events": [{"item": "item-1"}]}),
    "DELETE /v1/events": (ANY_KEY, None),
    "POST /v1/items": ((401, 403, 403, 400), {"items": [{"item": "new"}]}),  # whose ranker has no tower for new ones
    "DELETE /v1/events/users/{user}": (OPERATORS, None),
    "POST /v1/responses": (OWNER, PREVIOUS),
    "POST /v1/responses/compact": (OWNER, PREVIOUS),
    "POST /v1/responses/input_tokens": (OWNER, PREVIOUS),
    "GET /v1/responses/{name}": (OWNER, None),
    "POST /v1/responses/{name}/cancel": ((401, 404, 400, 404), None),  # it was not made in the background
    "DELETE /v1/responses/{name}": (OWNER, None),
    "POST /v1/conversations": (ANY_KEY, SAID),
    "GET /v1/conversations/{name}": (OWNER, None),
    "POST /v1/conversations/{name}": (OWNER, {"metadata": {"a": "b"}}),
    "DELETE /v1/conversations/{name}": (OWNER, None),
    "POST /v1/conversations/{name}/items": (OWNER, SAID),
    "GET /v1/conversations/{name}/items": (OWNER, None),
    "GET /v1/conversations/{name}/items/{item}": (OWNER, None),
    "DELETE /v1/conversations/{name}/items/{item}": (OWNER, None),
    "POST /v1/feedback": (OWNER, JUDGED),
    "DELETE /v1/feedback": (ANY_KEY, None),  # of the caller's own: see below
    "DELETE /v1/feedback/users/{user}": (OPERATORS, None),
}


class Parrot:
    """Says the prompt again."""

    def __init__(self):
        self.stats, self.max_model_len, self.in_flight, self.is_alive = {}, 4096, 0, True

    async def generate(self, request):
        embedding = [1.0] if request.task == "embed" else None
        yield Output(request.id, 0, request.tokens[: request.sampling.max_tokens], finish_reason="length", embedding=embedding)

    def stop(self):
        self.is_alive = False


class Site:
    """An application with three keys, asked in process."""

    def __init__(self, folder, *, keys=True, **options):
        self.folder, self.database = folder, f"sqlite:///{folder / 'f.db'}"
        made_ranker(folder / "ranker", 20, 16, 10)
        tokenizer = train_tokenizer(["hello there, how are you today? " * 20], 300)

        async def load(options):
            if options.path.parent.name == "ranker":
                return await load_with(WorkerSettings(max_wait_ms=60_000), options)
            if "damaged" in options.path.name:
                raise TenfoldError(f"{options.path / 'model.safetensors'} is cut short: copy it again.")
            return TextSide(tokenizer, PLAIN_TEMPLATE, frozenset(), {}, [], 40, 4096), Parrot()

        file = folder / "keys.json"
        self.keys = {role: make_key(file, name, role == "operator") for role, name in NAMES.items()} if keys else {}
        models = {"tiny": EngineOptions(folder), "other": EngineOptions(folder / "damaged")}
        models["ranker"] = EngineOptions(folder / "ranker" / "model", threads=1)
        events = f"sqlite:///{folder / 'events.db'}"
        options = {"feedback": self.database, "events": events, "keys": file if keys else None} | options
        self.app = make_app(Models(models, Limits(max_loaded=3), load=load), ServerOptions(**options))
        self.client = TestClient(self.app, base_url="http://127.0.0.1:8000")

    def ask(self, route, role, body=None, **more):
        key = {"authorization": f"Bearer {self.keys[role]}"} if role in self.keys else {}
        method, path = route.split(" ")
        return self.client.request(method, path, json=body, headers=key | more.pop("headers", {}), **more)

    def objects(self, role="owner"):
        """A response, a stored answer and a conversation with an item of a role, and the folder."""
        response = self.ask("POST /v1/responses", role, {"input": "a secret", "max_output_tokens": 2}).json()["id"]
        answer = self.ask("POST /v1/chat/completions", role, {**CHAT, "store": True, "user": "invented"}).json()["id"]
        conversation = self.ask("POST /v1/conversations", role, {}).json()["id"]
        item = self.ask(f"POST /v1/conversations/{conversation}/items", role, SAID).json()["first_id"]
        return {"response": response, "answer": answer, "conversation": conversation, "item": item, "folder": str(self.folder)}

    def routes(self):
        """Every method and path of the application, as `METHOD /path`."""
        return {f"{m} {r.path}" for r in iter_route_contexts(self.app.routes) for m in (r.methods or ()) if m != "HEAD"}

    def status(self, route, role):
        """What a role gets at a route, on objects of the owner that are made for it."""
        made = self.objects()
        body = json.dumps(TABLE[route][1])
        for name, value in made.items():
            body = body.replace(f"{{{name}}}", value)
        name = made["answer" if "chat" in route else "conversation" if "conversations" in route else "response"]
        named = {"{name:path}": "tiny", "{name}": name, "{user}": "alice", "{item}": made["item"]}
        filled = reduce(lambda path, field: path.replace(*field), named.items(), route)
        return self.ask(filled, role, json.loads(body)).status_code


@contextmanager
def opened(*arguments, **options):
    site = Site(*arguments, **options)
    with site.client:
        yield site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("site"), feedback_per_day=0) as made:
        yield made


def test_every_route_answers_every_role_as_the_table_says(site):
    assert {route: tuple(site.status(route, role) for role in ROLES) for route in site.routes()} == {
        route: expected for route, (expected, _) in TABLE.items()
    }


def test_no_route_takes_half_of_a_surrogate_pair(site):
    half, json_type, api = "\ud800", {"content-type": "application/json"}, site.app.openapi()
    asked = {
        (m, path): route["requestBody"] for path, of in api["paths"].items() for m, route in of.items() if "requestBody" in route
    }
    assert len(asked) >= 9
    for (method, path), body in asked.items():
        schema = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for name in [*api["components"]["schemas"][schema]["properties"], "unknown"]:
            for value in (half, [{"text": {half: 1}}]):
                sent, route = TABLE[f"{method.upper()} {path}"][1] | {name: value}, f"{method.upper()} {path}"
                answer = site.ask(route, "operator", content=json.dumps(sent), headers=json_type)
                assert answer.status_code == 400 and "surrogate" in answer.json()["error"]["message"], (path, name, answer.text)


def test_without_keys_everybody_may_do_everything(tmp_path):
    with opened(tmp_path, keys=False) as site:
        found = {route: site.status(route, "stranger") for route in site.routes()}
        refused = "POST /v1/items", "POST /v1/responses/{name}/cancel", "POST /sleep"
        assert found == dict.fromkeys(found, 200) | dict.fromkeys(refused, 400)


def test_a_route_that_says_nothing_needs_a_key_of_anybody(tmp_path):
    with opened(tmp_path) as site:
        router = APIRouter()
        router.add_api_route("/v1/own", lambda: 1, methods=["POST", "OPTIONS"])
        router.add_api_websocket_route("/v1/socket", lambda socket: socket.accept())
        site.app.include_router(router)
        for route in ("POST /v1/own", "OPTIONS /v1/own"):
            assert [site.ask(route, role).status_code for role in ROLES] == list(ANY_KEY)
        with pytest.raises(Exception) as refused, site.client.websocket_connect("ws://127.0.0.1:8000/v1/socket"):
            pass
        assert refused.value.status_code == 401


def test_metrics_are_for_operators_where_that_is_chosen(tmp_path):
    with opened(tmp_path, metrics="operators") as site:
        assert [site.ask("GET /metrics", role).status_code for role in ROLES] == list(OPERATORS)
        site.keys = {}
        assert site.ask("GET /health", "stranger").status_code == 200


def test_an_object_of_another_is_refused_as_one_that_is_not_there(site):
    made = site.objects()
    for route, body in (
        ("GET /v1/responses/NAME", None),
        ("DELETE /v1/responses/NAME", None),
        ("POST /v1/responses/NAME/cancel", None),
        ("GET /v1/conversations/NAME", None),
        ("DELETE /v1/conversations/NAME", None),
        ("GET /v1/conversations/NAME/items", None),
        ("POST /v1/conversations/NAME/items", SAID),
        ("GET /v1/chat/completions/NAME", None),
        ("GET /v1/chat/completions/NAME/messages", None),
        ("DELETE /v1/chat/completions/NAME", None),
        ("POST /v1/responses", {"input": "go on", "previous_response_id": "NAME"}),
        ("POST /v1/responses", {"input": "go on", "conversation": "NAME"}),
        ("POST /v1/feedback", {**JUDGED, "response_id": "NAME"}),
    ):
        is_conversation = "conversation" in route or "conversation" in (body or {})
        real = made["conversation" if is_conversation else "response" if "responses" in route else "answer"]
        said = [
            site.ask(route.replace("NAME", name), "another user", body and json.loads(json.dumps(body).replace("NAME", name)))
            for name in (real, "x" * len(real))
        ]
        assert [answer.status_code for answer in said] == [404, 404]
        assert said[0].text.replace(real, "x" * len(real)) == said[1].text and "secret" not in said[0].text
    assert site.ask(f"GET /v1/responses/{made['response']}", "owner").status_code == 200


def test_everybody_deletes_what_is_theirs_alone(tmp_path):
    with opened(tmp_path) as site:
        made = {role: site.objects(role)["answer"] for role in NAMES}
        for role, answer in made.items():
            assert site.ask("POST /v1/feedback", role, {**JUDGED, "response_id": answer}).status_code == 200
        assert site.ask("DELETE /v1/feedback?user=alice", "another user").json() == {"deleted_rows": 2}
        assert {row.id for row in Feedback(site.database).rows(responses)} == {made["owner"], made["operator"]}
        assert site.ask("DELETE /v1/feedback/users/alice", "operator").json() == {"deleted_rows": 2}
        assert {row.id for row in Feedback(site.database).rows(responses)} == {made["operator"]}


def test_one_key_is_one_user_whatever_users_it_invents(tmp_path):
    with opened(tmp_path, feedback_per_day=9) as site:
        answers = [site.objects()["answer"] for _ in range(12)]
        given = [
            site.ask(
                "POST /v1/feedback",
                "owner",
                {"consent": True, "response_id": answer, "user": f"user {i}", "correction": f"better {i}"},
            )
            for i, answer in enumerate(answers)
        ]
        assert [r.status_code for r in given] == [200] * 9 + [429] * 3
        assert int(given[-1].headers["retry-after"]) > 80_000
        store = Feedback(site.database)
        assert {row.user_hash for row in store.rows(corrections)} == {store.user_hash("alice")}
        made = export(store, "dpo", tmp_path / "rows.jsonl", per_user_day=4)
        assert made.train + made.test == 4 and 0 in (made.train, made.test)
        other = site.objects("another user")["answer"]
        assert site.ask("POST /v1/feedback", "another user", {**JUDGED, "response_id": other}).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer {}", 200), ("bearer {}", 200), ("BEARER  {}", 200), ("{}", 401), ("Basic {}", 401), ("Bearer {}x", 401),
        ("Bearer", 401), ("", 401),
    ],
)  # fmt: skip
def test_a_key_is_a_bearer_token(site, header, status):
    headers = {"authorization": header.format(site.keys["owner"])}
    answer = site.client.get("/v1/models", headers=headers)
    assert answer.status_code == status and answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert site.client.get("/v1/models", params={"api_key": site.keys["owner"]}).status_code == 401


def test_keys_are_made_and_revoked_while_the_server_runs(tmp_path):
    with opened(tmp_path) as site:
        file = tmp_path / "keys.json"

        def works(key):
            return site.client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        new, old = make_key(file, "dora"), site.keys["owner"]
        assert works(new) == works(old) == 200
        revoke_key(file, NAMES["owner"])
        assert (works(new), works(old)) == (200, 401)
        good = file.read_text()
        file.write_text(good[:-3])
        assert works(new) == 401  # it may be a key that was to be revoked
        file.unlink()
        assert works(new) == 401
        file.write_text(good)
        assert works(new) == 200
        with pytest.raises(TenfoldError, match="no key of 'alice'"):
            revoke_key(file, NAMES["owner"])


def test_bodies_under_way_are_weighed_by_key_and_in_all(tmp_path):
    keys = {name: make_key(tmp_path / "keys.json", name) for name in ("ann", "bob", "cid")}

    async def reads(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await answered.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    gate = Gate(reads, ServerOptions(keys=tmp_path / "keys.json"), Limits(max_in_flight_bytes=100, key_share=0.6))

    async def post(owner, size, announced):
        pieces = [{"type": "http.request", "body": b"x" * 10, "more_body": i < size // 10 - 1} for i in range(size // 10)]
        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {keys[owner]}".encode())]
        headers += [(b"content-length", str(size).encode())] * announced
        sent = []

        async def receive():
            await asyncio.sleep(0)
            return pieces.pop(0)

        async def send(message):
            sent.append(message.get("status"))

        try:
            await gate({"type": "http", "method": "POST", "path": "/v1/own", "headers": headers}, receive, send)
        except ApiError as error:  # where the body is read, the application answers it
            return error.status
        assert not pieces  # a client that sends the rest reads its answer
        return sent[0]

    async def run(announced):
        nonlocal answered
        answered = asyncio.Event()
        under_way = [asyncio.create_task(post("ann", 50, announced))]
        await asyncio.sleep(0.05)
        assert await post("ann", 20, announced) == 429
        under_way.append(asyncio.create_task(post("bob", 50, announced)))
        await asyncio.sleep(0.05)
        assert await post("cid", 10, announced) == 429
        answered.set()
        assert await asyncio.gather(*under_way, post("cid", 60, announced)) == [200, 200, 200]
        assert await post("ann", 70, announced) == 413

    answered = None
    for announced in (True, False):
        asyncio.run(run(announced))


def test_a_body_of_unknown_length_is_refused_as_one_that_is_announced(site):
    body = (b" " * 2**20 for _ in range(17))
    key = {"authorization": f"Bearer {site.keys['owner']}", "content-type": "application/json"}
    answer = site.client.post("/v1/completions", content=body, headers=key)
    assert answer.status_code == 413 and "larger than the 16777216 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("header", ["api-key", "x-api-key"])
def test_a_key_may_come_as_azure_and_anthropic_send_it(site, header):
    asked = [site.client.get("/v1/models", headers={header: key}).status_code for key in (site.keys["owner"], "x", "")]
    assert asked == [200, 401, 401]


def test_a_correction_says_something(site):
    judged = {"consent": True, "response_id": site.objects()["answer"]}
    said = [site.ask("POST /v1/feedback", "owner", {**judged, "correction": text}).status_code for text in ("", " \n", "better")]
    assert said == [400, 400, 200]


@pytest.mark.parametrize("form", ["json", "text", "none"])
def test_each_request_has_a_name_and_a_line(tmp_path, capsys, form):
    with opened(tmp_path, access_log=form) as site:
        given = [site.ask("GET /v1/models", "owner", headers={"x-request-id": name}) for name in ("abc-1", "a b", "x" * 200)]
        lost = site.ask("POST /v1/none%0aforged", "stranger")
    names = [answer.headers["x-request-id"] for answer in (*given, lost)]
    assert names[0] == "abc-1" and len(set(names)) == 4 and all(len(name) == 32 for name in names[1:])
    lines = capsys.readouterr().err.splitlines()
    if form == "json":
        told = [json.loads(line) for line in lines]
        assert [line["request"] for line in told] == names
        assert [(line["status"], line["method"], line["path"], line["key"]) for line in told] == [
            *[(200, "GET", "/v1/models", "alice")] * 3, (401, "POST", "/v1/none%0Aforged", None)
        ]  # fmt: skip
        assert all(line["seconds"] >= 0 and line["time"].endswith("+00:00") for line in told)
    else:
        assert [line.split()[-1] for line in lines] == (names if form == "text" else [])


def test_an_unforeseen_failure_is_answered_as_others_are_and_logged(tmp_path, capsys):
    with opened(tmp_path, access_log="json", allowed_origins=("http://a.example",)) as site:
        router = APIRouter()
        router.add_api_route("/v1/broken", lambda: 1 / 0)
        site.app.include_router(router)
        site.client = TestClient(site.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        headers = {"x-request-id": "abc", "origin": "http://a.example"}
        answer = site.ask("GET /v1/broken", "owner", headers=headers)
        site.client.options("/v1/models", headers={**headers, "access-control-request-method": "GET"})
    assert answer.status_code == 500 and "an operator finds the reason" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] == "abc" and answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["access-control-allow-origin"] == "http://a.example"
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["status"], line["request"]) for line in told] == [(500, "abc"), (200, "abc")]


@pytest.mark.parametrize("route", ["swap", "split"])
def test_a_path_that_no_file_can_have_is_one_sentence(site, route):
    for path in ("x" * 5000, "a\x00b"):
        answer = site.ask(f"POST /v1/models/{route}", "operator", {"path": path, "share": 0.5})
        assert answer.status_code == 400 and answer.json()["error"]["message"].endswith(".")


def test_files_of_a_server_are_named_to_operators_alone(site):
    said = {role: site.ask("POST /v1/chat/completions", role, {**CHAT, "model": "other"}) for role in ROLES[1:]}
    assert {answer.status_code for answer in said.values()} == {503}
    assert "model.safetensors is cut short" in said["operator"].text
    assert all(str(site.folder) not in said[role].text and "safetensors" not in said[role].text for role in ROLES[1:3])


HOSTS = {
    "127.0.0.1": "127.0.0.1 127.0.0.1:9 localhost LocalHost:8000 [::1] [::1]:8000",
    "192.168.1.5": "192.168.1.5:8000 localhost",
    "::": "[2001:db8::1]:80 10.0.0.7 localhost",
    "0.0.0.0": "10.0.0.7:8000 127.0.0.1",
    "box.example": "box.example:8000",
}


@pytest.mark.parametrize("bound", HOSTS)
def test_a_server_answers_to_its_own_names_alone(bound):
    def passes(host, *allowed, **headers):
        try:
            Sites(bound, allowed, ()).check("GET", {b"host": host.encode()})
        except Exception as error:
            return getattr(error, "status", error)
        return 200

    for host in HOSTS[bound].split():
        assert passes(host) == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a@b"):
        assert passes(host) == 403 and passes(host, "*") == 200, host
    assert passes("chat.example:443", "chat.example") == 200 and passes("10.9.9.9") == (200 if bound in ("::", "0.0.0.0") else 403)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True), ("http://127.0.0.1:8000", True), ("https://127.0.0.1:8000", True), ("https://app.example", True),
        ("http://evil.example:8000", False), ("http://127.0.0.1:3000", False), ("http://localhost:8000", False), ("null", False),
    ],
)  # fmt: skip
def test_only_pages_of_the_server_and_allowed_ones_change_anything(tmp_path_factory, origin, allowed):
    with opened(tmp_path_factory.mktemp("site"), keys=False, allowed_origins=("https://app.example",)) as site:
        headers = {"origin": origin} if origin else {}
        for route in site.routes():
            method = route.split(" ")[0]
            answer = site.ask(route.replace("{name:path}", "tiny"), "stranger", headers=headers)
            assert (answer.status_code == 403) == (method != "GET" and not allowed), route


def test_every_answer_forbids_frames_scripts_and_guesses_of_its_type(site):
    asked = [("GET /none", "owner"), ("GET /v1/models", "owner")]
    asked += [(f"GET {path}", "stranger") for path in ("/", "/page/chat.js", "/page/%2e%2e/routes.py", "/v1/models")]
    for route, role in asked:
        headers = site.ask(route, role).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'" and "unsafe" not in str(policy)
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"


def test_a_real_server_refuses_a_page_of_a_rebound_name_and_other_keys(tmp_path):
    """As a browser sends it that was told that evil.example is 127.0.0.1; and two users' keys beside each other."""
    file, model = tmp_path / "keys.json", small_model(tmp_path / "small", 256)
    made = [sys.executable, "-m", "tenfold", "serve-key", "--file", str(file)]
    keys = {w[0]: subprocess.check_output([*made, *w], text=True).strip() for w in (["a"], ["o", "--operator"])}
    rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000", "sec-fetch-site": "same-origin"}
    asked = ("--kv-cache-gib", "0.02", "--threads", "1", "--keys", file, "--feedback", f"sqlite:///{tmp_path / 'f.db'}")
    with serving(model, *asked, log=tmp_path / "log") as (url, _):
        ask = bench_client(url)
        for method, path, body in (
            ("POST", "/v1/models/swap", {"path": str(model)}),
            ("DELETE", "/v1/feedback/users/anonymous", None),
            ("POST", "/v1/chat/completions", CHAT),
            ("GET", "/v1/models", None),
            ("GET", "/", None),
        ):
            assert ask(method, path, body, keys["o"], **rebound)[0] == 403
        assert ask("POST", "/v1/models/swap", {"path": "/etc/shadow"}, keys["a"])[0] == 403
        status, made = ask("POST", "/v1/responses", {"input": "hello", "max_output_tokens": 2}, keys["a"])
        assert status == 200 and ask("GET", f"/v1/responses/{made['id']}", None, keys["a"])[0] == 200
        assert ask("GET", f"/v1/responses/{made['id']}", None, keys["o"])[0] == 404
        assert ask("POST", "/v1/models/swap", {"path": str(model)}, keys["o"])[0] == 200
        assert {stat.S_IMODE(f.stat().st_mode) for f in (file, *tmp_path.glob("f.db*"))} == {0o600}
    assert not any(key in (tmp_path / "log").read_text() for key in keys.values())


def bench_client(url):
    import httpx2

    client = httpx2.Client(base_url=url, timeout=300)

    def ask(method, path, body, key, **headers):
        answer = client.request(method, path, json=body, headers={"authorization": f"Bearer {key}", **headers})
        return answer.status_code, answer.json() if "json" in answer.headers["content-type"] else answer.text

    return ask
