"""Who gets what from the console: other hosts and sites, keys, files outside the home, hostile names and texts."""

import http.client
import json
import shutil
from urllib.parse import urlsplit

import pytest
from console_home import console, needs_chromium, opened
from fastapi.testclient import TestClient

from tenfold.console.app import make_app
from tenfold.console.options import ConsoleOptions
from tenfold.console.site import all_views
from tenfold.serve.api.keys import make_key
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json

pytest_plugins = ["chat_page", "console_home"]
HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=2</script>"


def client(home, **options):
    return TestClient(
        make_app(ConsoleOptions(home=home, **options)), base_url="http://127.0.0.1:8765", raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def keyed(home, tmp_path_factory):
    """A console with keys, and the headers of an operator and of a user."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    operator, user = make_key(keys, "olga", operator=True), make_key(keys, "una")
    return client(home, keys=keys), {"Authorization": f"Bearer {operator}"}, {"Authorization": f"Bearer {user}"}


@pytest.mark.parametrize("path", [
    "/files/../secret", "/files/..%2f..%2fsecret", "/files/%2e%2e/secret", "/files//etc/passwd", "/files/%2fetc%2fpasswd", "/files/out/secret",
    "/files/g1/../../secret", "/files/%00", "/files/g1%5c..%5csecret", "/web/../app.py", "/web/..%2fapp.py", "/web/%2e%2e/app.py",
    "/data/../secret.json", "/data/generations/..%2f..%2fsecret.json", "/data/generations/%2fetc%2fpasswd.json", "/data/generations/out.json",
    "/data/../../secret", "/files/.forecasts.lock", "/files/chat-1/data/train.jsonl", "/files/chat-1/lineage.json", "/files/feedback.db", "/files/g1",
])  # fmt: skip
def test_no_other_file_is_read(home, keyed, path):
    (home.parent / "secret").write_text("hunter2")
    (home.parent / "secret.json").write_text('{"is": "hunter2"}')
    if not (home / "out").exists():
        (home / "out").symlink_to(home.parent)
    app, _, user = keyed
    with console(home, keys=app.app.state.options.keys) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)  # sends paths as they are
        for headers in ({}, user):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status in (400, 403, 404), path
            assert b"hunter2" not in text and b"personal" not in text and b"root:" not in text


def test_other_names_and_sites_are_refused(home):
    app = client(home, allowed_hosts=("console.example",))
    for host, status in (
        ("127.0.0.1:8765", 200),
        ("localhost", 200),
        ("console.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil", 403),
        ("", 403),
    ):
        assert app.get("/data/console.json", headers={"Host": host}).status_code == status, host
        assert app.get("/", headers={"Host": host}).status_code == status, host


def changing(app):
    """Every route of the console that changes something, but for the chat, where each key has its own rights at the server."""
    return [
        (method, route.path)
        for route in app.app.routes
        for method in getattr(route, "methods", ()) or ()
        if method not in ("GET", "HEAD", "OPTIONS") and not route.path.startswith("/chat/")
    ]


def test_every_change_needs_an_operators_key_and_a_page_of_the_console(keyed):
    app, operator, user = keyed
    for method, path in changing(app):
        path = path.replace("{name:path}", "g1").replace("{name}", "g1")
        for headers in ({}, user, {"Authorization": "Bearer nonsense"}):
            assert app.request(method, path, headers=headers, json={}).status_code in (401, 403), (path, headers)
        for origin in ("https://evil.example", "null", "http://127.0.0.1:9", "http://localhost:8765.evil"):
            assert app.request(method, path, headers={**operator, "Origin": origin}, json={}).status_code == 403, (path, origin)


def test_what_is_personal_needs_an_operators_key(keyed, home):
    app, operator, user = keyed
    for view in all_views().values():
        for name in view.names(home):
            path = f"/data/{view.name}{'/' * bool(name)}{name}.json"
            for headers in ({}, user):
                assert app.get(path, headers=headers).status_code == (403 if view.private else 200), path
            assert app.get(path, headers=operator).status_code == 200, path
    assert app.get("/data/generations.json", headers={"Authorization": "Bearer nonsense"}).status_code == 401


def test_without_keys_only_this_machine_is_listened_to(home):
    from tenfold.serve.api.listen import check_address

    with pytest.raises(TenfoldError, match="can be reached by others"):
        check_address(ConsoleOptions(home=home, host="0.0.0.0", port=0).listening())


def test_pages_and_files_say_that_no_inline_code_runs(home):
    app = client(home)
    policy = app.get("/").headers["content-security-policy"]
    assert (
        "script-src 'self';" in policy
        and "unsafe" not in policy
        and "frame-ancestors 'none'" in policy
        and "default-src 'none'" in policy
    )
    file = app.get("/files/g1/score.json")
    assert file.headers["content-security-policy"].startswith("sandbox;") and file.headers["x-content-type-options"] == "nosniff"
    assert "script" not in file.headers["content-security-policy"]
    for path in ("/web/console.js", "/data/console.json", "/nothing"):
        answer = app.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff" and "content-security-policy" in answer.headers


def test_a_proxys_path_is_known_and_its_absence_too(home):
    app = client(home, root_path="/tenfold")
    for before in ("", "/tenfold"):
        for path in ("/", "/data/console.json", "/web/console.js", "/files/g1/score.json"):
            assert app.get(before + path).status_code == 200, before + path
    bare = app.get("/tenfold", follow_redirects=False)
    assert bare.status_code == 307 and bare.headers["location"] == "/tenfold/"
    assert app.get("/tenfolding/").status_code == 404


@pytest.fixture(scope="module")
def hostile(home, tmp_path_factory):
    """The home with names and texts that would run scripts if any of them were taken for HTML."""
    copy = tmp_path_factory.mktemp("hostile") / "generations"
    shutil.copytree(home, copy, symlinks=True)
    folder = copy / HOSTILE.replace("/", "∕")
    shutil.copytree(copy / "g1", folder)
    (folder / "report.html").write_text(f"<h1>report</h1>{HOSTILE}")
    write_json(
        folder / "gate.json",
        {"version": 1, "passed": False, "reason": HOSTILE, "checks": [{"name": HOSTILE, "passed": False, "says": HOSTILE}]},
    )
    climb = json.loads((copy / "g2" / "climb.json").read_text())
    write_json(copy / "g2" / "climb.json", {**climb, "corpus": HOSTILE, "parent": HOSTILE})
    rooms = {HOSTILE: {"numbers": {HOSTILE: 1}, "files": [HOSTILE, "javascript:window.broken=3"]}, "plan": {"failed": HOSTILE}}
    write_json(copy / "circle.json", {"version": 1, "rooms": rooms})
    return copy


@pytest.mark.parametrize("_", [pytest.param("", marks=needs_chromium)])
def test_hostile_names_and_texts_are_shown_as_text(hostile, browser, _):
    with console(hostile) as url, opened(browser, url) as page:
        assert page.locator("main").inner_text().count("<img src=x") >= 5
        page.locator("tbody a", has_text="<img").first.click()
        page.wait_for_selector("h1:has-text('<img')")
        assert page.locator("main img, main script").count() == 0
        links = page.evaluate("[...document.querySelectorAll('a')].map(a => new URL(a.href.baseVal ?? a.href, location).protocol)")
        assert set(links) == {"http:"} and page.evaluate("window.broken") is None
        report = page.get_by_role("link", name="The report").evaluate("link => link.href")
        with opened(browser, report, ready="h1:has-text('report')", strict=False) as shown:  # the browser tells what it blocks
            assert shown.locator("script").count() and shown.evaluate("window.broken") is None
