"""Who may do what: every route by every role on the objects of one of them, and what pages of other sites may not."""

import json
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from bench.serve.server import serving, small_model
from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.rank.family import MODEL_TYPE
from tenfold.serve.api.app import make_app
from tenfold.serve.api.keys import make_key
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
JUDGED = {"consent": True, "response_id": "{answer}", "rating": 1}
# What each role gets, and the body that is sent. {response}, {answer} and {folder} are the owner's response and stored answer, and
# the model's folder.
TABLE = {
    "GET /": (EVERYONE, None),
    "GET /health": (EVERYONE, None),
    "GET /metrics": (EVERYONE, None),
    "GET /openapi.json": (ANY_KEY, None),
    "GET /v1/models": (ANY_KEY, None),
    "GET /v1/models/{name:path}": (ANY_KEY, None),
    "POST /v1/models/swap": (OPERATORS, {"path": "{folder}"}),
    "POST /v1/chat/completions": (ANY_KEY, CHAT),
    "POST /v1/completions": (ANY_KEY, {"prompt": "hello", "max_tokens": 2}),
    "POST /v1/embeddings": (ANY_KEY, {"input": "hello"}),
    "POST /tokenize": (ANY_KEY, {"prompt": "hello"}),
    "POST /detokenize": (ANY_KEY, {"tokens": [1, 2]}),
    "POST /v1/recommend": (ANY_KEY, {"history": ["hello"], "k": 1}),
    "POST /v1/responses": (OWNER, PREVIOUS),
    "POST /v1/responses/input_tokens": (OWNER, PREVIOUS),
    "GET /v1/responses/{name}": (OWNER, None),
    "DELETE /v1/responses/{name}": (OWNER, None),
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
        (folder / "config.json").write_text(f'{{"model_type": "{MODEL_TYPE}"}}')
        tokenizer = train_tokenizer(["hello there, how are you today? " * 20], 300)

        async def load(options):
            if "damaged" in options.path.name:
                raise TenfoldError(f"{options.path / 'model.safetensors'} is cut short: copy it again.")
            return TextSide(tokenizer, PLAIN_TEMPLATE, frozenset(), {}, [], 40, 4096), Parrot()

        file = folder / "keys.json"
        self.keys = {role: make_key(file, name, role == "operator") for role, name in NAMES.items()} if keys else {}
        models = {"tiny": EngineOptions(folder), "other": EngineOptions(folder / "damaged")}
        options = {"feedback": self.database, "keys": file if keys else None} | options
        self.app = make_app(Models(models, Limits(max_loaded=2), load=load), ServerOptions(**options))
        self.client = TestClient(self.app, base_url="http://127.0.0.1:8000")

    def ask(self, route, role, body=None, **more):
        key = {"authorization": f"Bearer {self.keys[role]}"} if role in self.keys else {}
        method, path = route.split(" ")
        return self.client.request(method, path, json=body, headers=key | more.pop("headers", {}), **more)

    def objects(self, role="owner"):
        """A response and a stored answer of a role, and the folder."""
        response = self.ask("POST /v1/responses", role, {"input": "a secret", "max_output_tokens": 2}).json()["id"]
        answer = self.ask("POST /v1/chat/completions", role, {**CHAT, "store": True, "user": "invented"}).json()["id"]
        return {"response": response, "answer": answer, "folder": str(self.folder)}

    def routes(self):
        """Every method and path of the application, as `METHOD /path`."""
        return {f"{m} {r.path}" for r in iter_route_contexts(self.app.routes) for m in (r.methods or ()) if m != "HEAD"}

    def status(self, route, role):
        """What a role gets at a route, on objects of the owner that are made for it."""
        made = self.objects()
        body = json.dumps(TABLE[route][1])
        for name, value in made.items():
            body = body.replace(f"{{{name}}}", value)
        filled = route.replace("{name:path}", "tiny").replace("{name}", made["response"]).replace("{user}", "alice")
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
        assert {site.status(route, "stranger") for route in site.routes()} == {200}


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
        ("POST /v1/responses", {"input": "go on", "previous_response_id": "NAME"}),
        ("POST /v1/feedback", {**JUDGED, "response_id": "NAME"}),
    ):
        real = made["answer" if "feedback" in route else "response"]
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
        answer = site.objects()["answer"]
        body = {"consent": True, "response_id": answer}
        given = [
            site.ask("POST /v1/feedback", "owner", {**body, "user": f"user {i}", "correction": f"better {i}"}) for i in range(12)
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
    for route, role in (("GET /", "stranger"), ("GET /v1/models", "owner"), ("GET /v1/models", "stranger"), ("GET /none", "owner")):
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
