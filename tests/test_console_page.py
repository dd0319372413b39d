"""The console in a real Chromium: what a person finds on it, permalinks, pictures to save, keys, sizes, and what is told as it happens."""

import csv
import functools
import http.server
import io
import json
import shutil
import threading
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from console_home import climb, console, judged, needs_chromium, opened, parsed

from tenfold.console.export import export

pytest_plugins = ["chat_page", "console_home"]
pytestmark = needs_chromium


@contextmanager
def receiving(handler):
    """A web server of the standard library on a free port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()


def fact(page, term):
    """What stands beside a term."""
    return page.locator("dl > div", has=page.locator(f"dt:text-is('{term}')")).locator("dd").first.inner_text()


def test_a_stranger_finds_what_was_forecast_what_came_and_what_comes_next(address, home, browser):
    with opened(browser, address) as page:
        row = page.locator("section:has(h2:text-is('All generations')) tr:has(a:text-is('g2'))").inner_text()
        forecast = parsed(home / "g2/forecast.json", "loss_bits_per_byte.median")
        measured = parsed(home / "g2/score.json", "scores.loss_bits_per_byte.measured")
        assert f"{forecast:.4g}" in row and f"{measured:.4g}" in row  # how good will it be, and how good did it become?
        assert fact(page, "time").split()[1] in ("days", "h", "min", "s") and "USD" in fact(
            page, "money"
        )  # how long, at what price?
        assert 0 <= float(fact(page, "chance that it pays").split()[0]) <= 1  # does it pay?
        assert "intervals of 80 % held" in page.inner_text("main")  # how far can the forecasts be trusted?
        page.get_by_label("generation chat-1").click()
        page.wait_for_selector("h1:has-text('chat-1')")  # from what was this model made, and may it go out?
        assert {"feedback.db", "g2"} <= set(page.locator(".lineage text.name").all_text_contents())
        assert "finds the right answers likelier" in page.inner_text("main")


def test_every_figure_shown_links_to_its_file_and_has_its_value(address, home, browser):
    with opened(browser, address) as page:
        for place in ("#/generations", "#/generations/g2", "#/generations/chat-1"):
            page.goto(f"{address}{place}")
            page.wait_for_selector(f"main[data-shown='{place}']")
            figures = page.evaluate(
                "[...document.querySelectorAll('.figure')].map(f => [f.dataset.file, f.dataset.key, f.dataset.value, f.textContent])"
            )
            assert figures
            for file, key, value, text in figures:
                assert parsed(home / file, key) == json.loads(value) and text.strip()
        page.locator("a.figure").first.click()
        assert "/files/" in page.url


def test_permalinks_lead_back_and_two_generations_stand_side_by_side(address, browser):
    with opened(browser, f"{address}#/generations/g1?with=g2") as page:
        assert page.locator(".generation h2").first.inner_text() == "g1" and page.locator(".generation").count() == 2
        assert page.title() == "g1 · Generations · Tenfold"
        page.get_by_role("link", name="Generations").click()
        page.wait_for_selector("main[data-shown='#/generations']")
        page.get_by_label("Left generation").select_option("g2")
        page.get_by_role("button", name="Compare").click()
        page.wait_for_selector("h1:has-text('g2 beside')")
        page.go_back()
        page.wait_for_selector("main[data-shown='#/generations']")


def test_a_picture_is_saved_as_png_svg_and_csv(address, home, browser):
    with opened(browser, address) as page:
        page.wait_for_selector(".uplot canvas")
        saved = {}
        for kind in ("PNG", "SVG", "CSV"):
            with page.expect_download() as download:
                page.get_by_role("button", name=f"{kind} of The ladder").click()
            saved[kind] = Path(download.value.path()).read_bytes()
        assert saved["PNG"].startswith(b"\x89PNG")
        drawing = ElementTree.fromstring(saved["SVG"])
        dots = len(drawing.findall(".//{http://www.w3.org/2000/svg}circle"))
        rows = list(csv.DictReader(io.StringIO(saved["CSV"].decode())))
        measured = [row for row in rows if row["measured runs"]]
        losses = {line.split(",")[3] for name in ("g1", "g2") for line in (home / name / "points.csv").read_text().splitlines()[1:]}
        assert {float(row["measured runs"]) for row in measured} == {float(loss) for loss in losses} and dots >= len(measured)
        page.locator("figure summary").first.click()
        page.wait_for_selector("figure details tbody tr")  # the table is made when it is opened
        assert page.locator("figure details tbody tr").count() == len(rows)


def test_a_picture_is_zoomed_and_moved_by_keys(address, browser):
    with opened(browser, address) as page:
        page.wait_for_selector(".uplot canvas")
        seen = "document.querySelector('.uplot canvas').toDataURL()"
        page.focus(".plot")
        whole = page.evaluate(seen)
        pictures = [whole]
        for key in ("+", "ArrowRight", "-", "0"):
            page.keyboard.press(key)
            page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            pictures.append(page.evaluate(seen))
        assert len(set(pictures[:4])) == 4 and pictures[4] == whole


@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
def test_axe_finds_no_violation_and_nothing_is_wider_than_the_window(address, browser):
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    sizes = (
        (1280, "light", "#/generations"),
        (360, "dark", "#/generations"),
        (360, "light", "#/generations/g2?with=chat-1"),
        (3840, "dark", "#/generations/g2"),
    )
    for width, scheme, place in sizes:
        with opened(browser, f"{address}{place}", width=width, scheme=scheme) as page:
            page.wait_for_selector(".uplot canvas")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.evaluate(axe)
            found = page.evaluate(
                "axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))"
            )
            assert found == [], (width, scheme, place)


def test_dark_and_light_are_chosen_and_kept(address, browser):
    with opened(browser, address) as page:
        back = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(back)
        page.get_by_role("button", name="Dark").click()
        dark = page.evaluate(back)
        page.reload()
        page.wait_for_selector("main[data-shown]")
        assert dark != light and page.evaluate(back) == dark


def test_an_export_shows_the_same_under_any_path(home, address, tmp_path, browser):
    export(home, tmp_path / "deep" / "report")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    place = "#/generations"
    with (
        receiving(functools.partial(Quiet, directory=tmp_path)) as url,
        opened(browser, f"{url}deep/report/{place}") as page,
        opened(browser, f"{address}{place}") as live,
    ):
        assert page.locator("main").inner_text() == live.locator("main").inner_text()
        page.get_by_role("link", name="g2", exact=True).first.click()
        page.wait_for_selector("h1:has-text('g2')")
        file = page.locator("a.figure").first.evaluate("link => link.href")
        assert "/deep/report/files/g2/" in file and page.request.get(file).ok


def test_what_is_new_comes_by_itself_and_an_alert_reaches_the_webhook(home, tmp_path, browser):
    copy, posted, came = tmp_path / "generations", [], threading.Event()
    shutil.copytree(home, copy, symlinks=True)

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()
            came.set()

        def log_message(self, *_):
            pass

    with receiving(Hook) as hook, console(copy, webhook=hook) as url, opened(browser, url) as page:
        page.wait_for_selector("#live:has-text('live')")
        page.locator("figure summary").first.click()
        page.locator("th a:text-is('g2')").focus()
        climb(copy, "g3", 2e13, "g2")
        judged(copy / "g3", passed=False)
        page.wait_for_selector("th a:text-is('g3')")
        assert page.evaluate("document.activeElement.textContent") == "g2"  # a reader stays at the same place
        page.wait_for_selector("figure details[open] tbody tr")
        page.wait_for_selector("#alerts a:has-text('The gate refuses g3')")
        assert came.wait(120)
    assert [(one["kind"], one["place"]) for one in posted] == [("gate", "#/generations/g3")]
