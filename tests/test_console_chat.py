"""The chat as a tab of the console: what is passed on to the server and what is not, and the page in a real Chromium."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from importlib.util import find_spec

import pytest
from chat_page import finished, needs_chromium, say, until
from console_home import console, opened
from fastapi.testclient import TestClient

from tenfold.console.app import make_app
from tenfold.console.options import ConsoleOptions
from tenfold.serve.api.keys import make_key

pytest_plugins = ["chat_page"]
in_chromium = pytest.mark.skipif(any(mark.args[0] for mark in needs_chromium), reason="Chromium or playwright is not installed")
# Without `preload`, by which axe fetches what the chat's style sheet imports from a wrong address, and puts it into the page.
AXE = "axe.run({ preload: false }).then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))"
TYPES = {"/health": "application/json", "/v1/chat/completions": "text/event-stream"}


@pytest.fixture
def recorder():
    """A server that notes each request, and says it back."""
    noted = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            noted.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("content-type", TYPES.get(self.path, "text/html"))
            self.send_header("set-cookie", "of=theserver")
            self.end_headers()
            self.wfile.write(body or b"{}")

        do_POST = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", noted
    server.shutdown()
    server.server_close()


def client(home, **options):
    return TestClient(make_app(ConsoleOptions(home, **options)), base_url="http://127.0.0.1:8765", raise_server_exceptions=False)


def test_requests_of_the_page_are_passed_on_with_the_callers_key_and_nothing_else_of_theirs(tmp_path, recorder):
    address, noted = recorder
    headers = {
        "authorization": "Bearer mine",
        "cookie": "of=console",
        "referer": "http://127.0.0.1:8765/",
        "x-forwarded-for": "1.2.3.4",
    }
    with client(tmp_path, server=address) as api:
        answer = api.post("/chat/v1/chat/completions", json={"a": 1}, headers=headers)
        api.delete("/chat/v1/feedback?user=me", headers=headers)
    assert (
        answer.json() == {"a": 1} and answer.headers["content-type"] == "text/event-stream" and "set-cookie" not in answer.headers
    )
    (post, path, sent, body), (delete, other, _, _) = noted
    assert (post, path, json.loads(body)) == ("POST", "/v1/chat/completions", {"a": 1}) and (delete, other) == (
        "DELETE",
        "/v1/feedback?user=me",
    )
    assert sent["authorization"] == "Bearer mine" and set(sent) <= {
        "host",
        "authorization",
        "content-type",
        "content-length",
        "accept",
    }


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/chat/v1/models/swap"), ("POST", "/chat/v1/completions"), ("GET", "/chat/metrics"), ("GET", "/chat/v1/models/"),
    ("GET", "/chat//v1/models"), ("GET", "/chat/v1/%2e%2e/metrics"), ("GET", "/chat/http://example.org/"), ("GET", "/chat/v1/feedback"),
    ("POST", "/chat/health"), ("PUT", "/chat/v1/feedback"), ("GET", "/chat/v1/models%3F/../../metrics"),
])  # fmt: skip
def test_nothing_else_reaches_the_server(tmp_path, recorder, method, path):
    address, noted = recorder
    with client(tmp_path, server=address) as api:
        assert api.request(method, path).status_code in (404, 405)
    assert noted == []


def test_where_the_console_has_keys_a_stranger_does_not_reach_the_server(tmp_path, recorder):
    address, noted = recorder
    key = make_key(tmp_path / "keys.json", "ann")
    with client(tmp_path, server=address, keys=tmp_path / "keys.json") as api:
        assert api.get("/chat/health").status_code == 401
        assert api.get("/chat/health", headers={"authorization": "Bearer no"}).status_code == 401
        assert api.post("/chat/v1/feedback", json={}, headers={"origin": "https://example.org"}).status_code == 403
        assert api.get("/chat/health", headers={"host": "evil.example"}).status_code == 403
        assert noted == []
        assert api.get("/chat/health", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert noted[0][2]["authorization"] == f"Bearer {key}"


def test_a_server_that_is_not_there_is_said(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    for server, status, told in (("", 404, "--server"), (gone, 502, "does not answer")):
        with client(tmp_path, server=server) as api:
            answer = api.get("/chat/health")
            assert answer.status_code == status and told in answer.json()["error"]["message"]


@pytest.fixture
def tab(site, browser, tmp_path):
    """The chat tab of a console over a real server."""
    with (
        console(tmp_path, server=site.url.rstrip("/")) as address,
        opened(browser, f"{address}#/chat", ready=".send:enabled") as page,
    ):
        yield page


@in_chromium
def test_the_chat_is_a_tab_that_lives_on_while_others_are_shown(tab, site):
    say(tab, "slow")
    until(tab, "document.querySelector('article.assistant .text')?.innerText.includes('word')")
    tab.evaluate("location.hash = '#/learn'")
    tab.wait_for_selector(".view.learn")
    assert site.in_flight == 1 and tab.locator(".tenfold-chat").count() == 0
    tab.evaluate("location.hash = '#/chat'")
    tab.wait_for_selector(".view.chat .stop")
    before = len(tab.inner_text("article.assistant .text"))
    until(tab, f"document.querySelector('article.assistant .text').innerText.length > {before}")
    tab.click(".stop")  # through the console, to the engine
    finished(tab)
    end = 600
    while site.in_flight and end:
        tab.wait_for_timeout(100)
        end -= 1
    assert site.in_flight == 0
    say(tab, "marked")
    assert finished(tab, 2).locator("ol > li").count() == 2


@in_chromium
@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
def test_axe_finds_no_violation_in_the_tab(tab):
    say(tab, "marked")
    finished(tab)
    tab.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
    for width, scheme in ((1100, "dark"), (360, "light")):
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme)
        assert tab.evaluate(AXE) == [], (width, scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
