"""The page of a home: every number with the file that holds it, the forecasts as they are recorded, and nothing hostile alive."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tenfold.console.commands import page as page_command
from tenfold.console.page import ROOMS, write_page
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import Forecast, forecast, normal, outcome, read_forecasts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """What a browser finds in a page: tags, links with their text, ids, cells of the table."""

    def __init__(self, home):
        super().__init__()
        self.tags, self.links, self.ids, self.rows, self.text, self.open = [], [], set(), [], "", []
        self.feed((home / "index.html").read_text())
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        self.ids |= {values["id"]} if "id" in values else set()
        if tag not in VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append([values["href"], ""])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "a" in self.open:
            self.links[-1][1] += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def target(self, home, text):
        """The file that the link with this text leads to."""
        (href,) = {href for href, shown in self.links if shown == text}
        return home / unquote(urlsplit(href).path)


def check_links(found, home):
    """No link leaves the home or leads to nothing, and nothing is loaded or run."""
    for href, _ in found.links:
        parts = urlsplit(href)
        assert not parts.scheme and not parts.netloc and not parts.query, href
        if parts.path:
            assert (home / unquote(parts.path)).resolve(strict=True).is_relative_to(home.resolve()), href
        else:
            assert parts.fragment in found.ids, href
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "object", "link", "form"}
    assert not [name for _, values in found.tags for name in values if name.startswith("on") or name in ("src", "xlink:href")]


def circle(home, rooms):
    (home / "circle.json").write_text(json.dumps({"version": 1, "rooms": rooms}))


@pytest.fixture
def home(tmp_path):
    """A home with two rooms done, one skipped and one failed, and three forecasts, one of them inside its interval."""
    home = tmp_path / "generations"
    (home / "g1").mkdir(parents=True)
    (home / "g1" / "run.jsonl").write_text('{"event": "step", "loss": 2.5}\n')
    (home / "g1" / "score.json").write_text(json.dumps({"scores": {"loss": 2.345678, "gpus": 12345}}))
    numbers = {"loss": 2.345678, "gpus": 12345, "held": True, "served": {"p50": 0.125}, "leases": [1, 2, 3]}
    circle(
        home,
        {
            "climb": {"numbers": numbers, "files": ["g1/run.jsonl", "g1/score.json"], "seconds": 61.25},
            "plan": {"numbers": {"days": 83}, "files": ["g1"], "seconds": 1.0},
            "sites": {"skipped": "The package highspy is not installed."},
            "learn": {"failed": "There is no feedback."},
        },
    )
    for key, mean in (("climb/loss", 2.4), ("plan/hours", 5.0), ("plan/later", 7.0)):
        forecast(home, Forecast(key=key, who=key.split("/")[0], kind="loss", unit="nats", quantiles=normal(mean, 0.1)))
    outcome(home, "climb/loss", 2.345678)
    outcome(home, "plan/hours", 9.0)
    return home


def test_every_number_links_to_the_file_that_holds_it(home):
    assert write_page(home) == home / "index.html"
    found = Page(home)
    check_links(found, home)
    for text, file in (("2.346", "g1/score.json"), ("12,345", "g1/score.json"), ("yes", "circle.json"), ("0.125", "circle.json")):
        assert found.target(home, text) == home / file
    assert found.target(home, "3") == found.target(home, "83") == home / "circle.json"
    assert found.target(home, "g1/run.jsonl") == home / "g1" / "run.jsonl"
    assert "The package highspy is not installed." in found.text and "There is no feedback." in found.text


def test_the_picture_has_every_room_with_its_state_and_a_link_to_its_section(home):
    write_page(home)
    states = ("done", "done", "skipped", "failed", "waiting", "waiting")
    links = [(text, href) for href, text in Page(home).links if href.startswith("#")]
    assert [text for text, _ in links] == [name + state for name, state in zip(ROOMS, states, strict=True)]
    assert len({href for _, href in links}) == len(ROOMS)


def test_the_table_has_every_forecast_and_the_line_counts_the_intervals_that_held(home):
    write_page(home)
    found = Page(home)
    for one, row in zip(read_forecasts(home), found.rows[1:], strict=True):
        said = one.forecast
        assert row[:5] == [said.key, said.who, said.kind, said.unit, f"{said.median:.4g}"]
        assert row[5] == f"{said.quantiles[1]:.4g} to {said.quantiles[5]:.4g}"
    assert [row[6:8] for row in found.rows[1:]] == [["2.346", "inside"], ["9", "outside"], ["", ""]]
    assert float(found.rows[2][8]) == pytest.approx(4, rel=0.05) and not found.rows[3][8]  # so far from it, the distance itself
    assert "1 of 2 intervals of 80 % held." in found.text and "1 of 3 forecasts wait" in found.text


def test_a_home_without_a_circle_is_a_page_with_the_forecasts(home):
    (home / "circle.json").unlink()
    write_page(home)
    found = Page(home)
    check_links(found, home)
    assert len(found.rows) == 4 and "tenfold circle" in found.text


def test_an_empty_home_is_a_page_and_a_missing_one_an_error(tmp_path):
    write_page(tmp_path)
    check_links(Page(tmp_path), tmp_path)
    with pytest.raises(TenfoldError, match="no directory"):
        write_page(tmp_path / "nowhere")


def test_hostile_names_are_text_and_their_links_stay_in_the_home(home):
    (home.parent / "secret.json").write_text('{"loss": 0.777}')
    (home / "out").symlink_to(home.parent)
    inside = ["javascript:alert(1)", "a?b#c.json", 'quote"<b>.json', "%2e%2e"]
    for name in inside:
        (home / name).write_text('{"odd": 31337}')
    outside = ["../secret.json", "out/secret.json", str(home.parent / "secret.json"), "https://example.org/", "//example.org/x"]
    broken = ["\0", "x" * 5000, "\ud800", f"{HOSTILE}.json"]
    numbers = {HOSTILE: 1, "loss": 0.777, "said": HOSTILE, "\ud800": "\ud800"}
    circle(home, {HOSTILE: {"numbers": numbers, "files": [*inside, *outside, *broken]}, "plan": {"failed": HOSTILE}})
    forecast(home, Forecast(key=HOSTILE, who=HOSTILE, kind=HOSTILE, unit=HOSTILE, quantiles=normal(0, 1)))
    write_page(home)
    found = Page(home)
    check_links(found, home)
    assert found.text.count(HOSTILE) >= 6
    assert found.target(home, "0.777") == home / "circle.json"
    assert all(found.target(home, name) == home / name for name in inside)
    assert not {text for _, text in found.links} & {*outside, *broken}
    (policy,) = (values["content"] for tag, values in found.tags if values.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script" not in policy


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"version": 1}', '{"version": 1, "rooms": {"climb": 3}}'])
def test_a_damaged_circle_is_an_error_and_the_page_before_it_stays(home, text):
    before = write_page(home).read_bytes()
    (home / "circle.json").write_text(text)
    with pytest.raises(TenfoldError, match=r"circle\.json"):
        write_page(home)
    assert (home / "index.html").read_bytes() == before


def test_the_command_prints_the_path(home, capsys):
    page_command(home=home)
    assert Path(capsys.readouterr().out.strip()) == home / "index.html"
    page_command(home=home, json=True)
    assert json.loads(capsys.readouterr().out) == {"file": str(home / "index.html")}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_sideways_scrolling_or_errors(home, scheme):
    sync = pytest.importorskip("playwright.sync_api")
    write_page(home)
    with sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.goto((home / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("link", name="climb").click()
        assert page.url.endswith("#room-1") and not said
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}[scheme]
