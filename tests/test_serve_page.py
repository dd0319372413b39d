"""The chat page in a real headless Chromium, over the real application; only the engine is replaced, by one that says set texts."""

import asyncio
import os
import shutil
import socket
import threading
import time
from importlib.util import find_spec

import pytest
import uvicorn
from sqlalchemy import text as sql

from tenfold.data.text.tokenizer import train_tokenizer
from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.feedback.feedback import Feedback, corrections, pairs, ratings, responses
from tenfold.serve.options import EngineOptions, Limits, ServerOptions
from tenfold.serve.request import Output
from tenfold.serve.text import PLAIN_TEMPLATE, TextSide

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="the package playwright is not installed"),
]

MARKED = """Two ways:

1. **First**, add `x`.
2. Then *look*.

```python
def double(x):
    return 2 * x
```

| a | b |
|---|---|
| 1 | 2 |

<img src=x onerror="window.broken = 1"> [bad](javascript:window.broken=1) [good](https://example.org/)
"""
ANSWERS = {
    "marked": MARKED,
    "blocks": "Text\n\n" + "```python\na = 1\n\nb = 2\n```\n\n- one\n- two\n\nmore\n\n" * 2 + "end " * 200,
    "slow": "word " * 400,
    "arabic": "مرحبا! هذه إجابة باللغة العربية مع `code` في الوسط.",
    "hindi": "नमस्ते! यह हिन्दी में एक उत्तर है।",
    "wide": "x" * 300 + "\n\n```\n" + "y" * 300 + "\n```\n\n|" + "wide column|" * 20 + "\n|" + "---|" * 20,
}


class ScriptedEngine:
    """Says the text that the last message asks for, and who says it where it asks for nothing known."""

    def __init__(self, name, tokenizer):
        self.name, self.tokenizer, self.max_model_len = name, tokenizer, 4096
        self.stats, self.is_alive, self.in_flight = {}, True, 0
        self.asked = 0

    async def generate(self, request):
        self.in_flight += 1
        self.asked += 1
        try:
            said = self.tokenizer.decode(request.tokens).rsplit("User:", 1)[-1]
            key = next((k for k in ANSWERS if k in said), None)
            tokens = self.tokenizer.encode(ANSWERS.get(key, f"I am {self.name}, answer {self.asked}.")).ids
            for i in range(0, len(tokens), 3):
                await asyncio.sleep(0.05 if key == "slow" else 0.002)
                yield Output(request.id, 0, tokens[i : i + 3])
            yield Output(request.id, 0, finish_reason="stop")
        finally:
            self.in_flight -= 1

    def stop(self):
        self.is_alive = False


class Site:
    """The application on a free port, in a thread."""

    def __init__(self, folder):
        tokenizer = train_tokenizer(["hello there, how are you today? " * 20], 300)
        text = TextSide(tokenizer, PLAIN_TEMPLATE, frozenset(), {}, [], 40, 4096)

        async def load(options):
            options.path.mkdir()
            return text, ScriptedEngine(options.path.name, tokenizer)

        models = Models({n: EngineOptions(folder / n) for n in ("alpha", "beta")}, Limits(max_loaded=2), load=load)
        self.models, self.database = models, f"sqlite:///{folder / 'f.db'}"
        self.store = Feedback(self.database)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        config = uvicorn.Config(make_app(models, ServerOptions(feedback=self.database)), port=port, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    @property
    def in_flight(self):
        return sum(m.backend.in_flight for m in self.models.loaded.values())

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    running = Site(tmp_path_factory.mktemp("site"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    os.environ.setdefault("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(site, browser):
    for table in (ratings, corrections, pairs, responses):
        with site.store._engine.begin() as connection:
            connection.execute(sql(f"DELETE FROM {table.name}"))
    context = browser.new_context(viewport={"width": 1100, "height": 800}, permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    opened.on("pageerror", lambda error: pytest.fail(f"the page failed: {error}"))
    opened.goto(site.url)
    opened.wait_for_selector("#model option", state="attached")
    yield opened
    context.close()


def until(page, condition):
    """Return when a condition holds. Playwright's own way evaluates it inside the page, whose policy forbids that."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def say(page, text):
    page.fill("#say", text)
    page.press("#say", "Enter")


def finished(page, answers=1):
    until(page, f"document.querySelectorAll('article.assistant').length === {answers} && document.querySelector('#stop').hidden")
    return page.locator("article.assistant").last


def rows(site, table):
    return list(site.store.rows(table))


def test_an_answer_streams_and_its_speed_is_shown(page):
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.includes('word word')")
    assert page.is_visible("#stop") and not page.is_visible("#send")
    early = page.inner_text("article.assistant .text")
    until(page, f"document.querySelector('article.assistant .text').innerText.length > {len(early)}")
    assert all(words in page.inner_text("#panel") for words in ("alpha", "first token", "tokens/s"))
    page.press("body", "Escape")
    finished(page)
    assert page.inner_text("#status") == "Stopped"


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_answer_here_and_in_the_engine(page, site, how):
    say(page, "slow")
    until(page, "document.querySelector('article.assistant .text')?.innerText.includes('word')")
    page.click("#stop") if how == "button" else page.press("#say", "Escape")
    answer = finished(page)
    assert 0 < answer.locator(".text").inner_text().count("word") < 400
    end = time.monotonic() + 20
    while site.in_flight:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert answer.get_by_role("button", name="Good").count() == 0  # what was not finished was not stored
    say(page, "and now")
    assert "I am alpha" in finished(page, 2).inner_text()


def test_markdown_is_shown_and_html_is_text(page):
    say(page, "marked")
    answer = finished(page)
    assert answer.locator("ol > li").count() == 2 and answer.locator("strong").inner_text() == "First"
    assert answer.locator("pre code").inner_text() == "def double(x):\n    return 2 * x"
    assert answer.locator("td").all_inner_texts() == ["1", "2"]
    assert answer.locator("img").count() == 0 and "<img src=x" in answer.inner_text()
    assert [a.get_attribute("href") for a in answer.locator("a").all()] == ["https://example.org/"]
    assert page.evaluate("window.broken") is None
    answer.locator(".tools button", has_text="Copy").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "def double(x):\n    return 2 * x"


def test_the_page_runs_no_other_script_and_talks_with_no_other_site(page, site):
    """What an attacker would try whose text became HTML; the page's own script runs, or no other test here would pass."""
    port = site.url.rsplit(":", 1)[1].strip("/")
    page.evaluate("""() => {
      const script = document.createElement('script'); script.textContent = 'window.broken = 1'; document.body.append(script);
      const image = document.createElement('img'); image.src = 'x'; image.setAttribute('onerror', 'window.broken = 2'); document.body.append(image);
    }""")
    assert (
        page.evaluate(f"fetch('http://localhost:{port}/health', {{ mode: 'no-cors' }}).then(() => 'sent', () => 'refused')")
        == "refused"
    )
    assert page.evaluate("fetch('/health').then(reply => reply.status)") == 200
    page.evaluate("""() => new Promise(done => {
      const frame = document.createElement('iframe'); frame.src = '/'; document.body.append(frame); setTimeout(done, 500); })""")
    assert len(page.frames) == 1 or not page.frames[1].query_selector("#say")
    assert page.evaluate("window.broken") is None


def test_thumbs_and_corrections_are_kept_with_consent_alone(page, site):
    say(page, "one")
    assert finished(page).get_by_role("button", name="Good").count() == 0
    assert not rows(site, responses)
    page.check("#consent")
    say(page, "two")
    answer = finished(page, 2)
    answer.get_by_role("button", name="Good").click()
    page.wait_for_selector("[aria-pressed=true]")
    (stored,) = rows(site, responses)
    assert stored.messages[-1] == {"role": "user", "content": "two"} and stored.text.startswith("I am alpha")
    assert [(r.response_id, r.value) for r in rows(site, ratings)] == [(stored.id, 1)]
    answer.get_by_role("button", name="Bad").click()
    page.get_by_label("What was wrong").fill("too short")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('[aria-pressed=true]')?.textContent.includes('Bad')")
    assert [(r.value, r.reasons) for r in rows(site, ratings)][1:] == [(-1, ["too short"])]
    answer.get_by_role("button", name="Correct it").click()
    page.get_by_label("Better answer").fill("I am better.")
    page.get_by_role("button", name="Keep correction").click()
    until(page, "document.querySelector('article.assistant:last-child .text').innerText === 'I am better.'")
    assert [r.text for r in rows(site, corrections)] == ["I am better."]
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    until(page, "document.querySelector('#panel').textContent.includes('deleted')")
    assert not any(rows(site, t) for t in (responses, ratings, corrections))


def test_retry_and_edit_make_branches_that_can_be_walked(page):
    say(page, "hello")
    first = finished(page).locator(".text").inner_text()
    page.get_by_role("button", name="Retry").click()
    until(page, "document.querySelector('article.assistant .tools')?.textContent.includes('2 / 2')")
    second = finished(page).locator(".text").inner_text()
    assert first != second
    page.get_by_role("button", name="Earlier version").click()
    assert page.locator("article.assistant .text").inner_text() == first
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit message").fill("hello again")
    page.get_by_role("button", name="Send again").click()
    until(page, "document.querySelector('article.user .tools').textContent.includes('2 / 2')")
    finished(page)
    assert page.locator("article.user .text").inner_text() == "hello again"
    page.get_by_role("button", name="Earlier version").click()
    assert page.locator("article.user .text").inner_text() == "hello"
    assert page.locator("article.assistant .text").inner_text() == first
    page.click("#new")
    assert page.locator("article").count() == 0


@pytest.mark.parametrize("side", ["Left", "Right"])
def test_side_by_side_is_blind_and_says_which_won(page, site, side):
    page.check("#consent")
    page.check("#beside")
    say(page, "who are you")
    answer = finished(page)
    shown = answer.locator(".sides .text").all_inner_texts()
    assert len(shown) == 2 and answer.locator(".who").inner_text() == "Two answers"
    answer.get_by_role("button", name=f"{side} is better").click()
    until(page, "document.querySelectorAll('article.assistant .text').length === 1")
    chosen = shown[side == "Right"]
    assert answer.locator(".text").inner_text() == chosen
    (pair,) = rows(site, pairs)
    texts = {r.id: r.text for r in rows(site, responses)}
    assert texts[pair.a_response_id].startswith("I am alpha") and texts[pair.b_response_id].startswith("I am beta")
    assert texts[getattr(pair, f"{pair.winner}_response_id")] == chosen and pair.blind
    assert pair.position_swapped == ("beta" in shown[0])


def test_all_of_it_by_keyboard(page, site):
    page.evaluate("document.querySelector('#consent').focus()")
    page.keyboard.press("Space")
    page.focus("#say")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator("article.user .text").inner_text() == "one\ntwo"
    assert page.evaluate("document.activeElement.id") == "say"
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if "Good" in page.evaluate("document.activeElement.textContent"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-pressed=true]")
    assert [r.value for r in rows(site, ratings)] == [1]
    assert "Good" in page.evaluate("document.activeElement.textContent")  # not thrown back to the beginning


def test_everything_that_can_be_used_has_a_name(page):
    page.check("#consent")
    say(page, "marked")
    finished(page)
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, a')].filter(e => "
        "!(e.textContent.trim() || e.ariaLabel || e.labels?.length && e.labels[0].textContent.trim())).map(e => e.outerHTML)"
    )
    assert nameless == [] and page.get_attribute("html", "lang") == "en"
    assert page.get_attribute("#status", "aria-live") == "polite" and page.inner_text("#status") == "Answer finished"


@pytest.mark.parametrize(("language", "direction"), [("arabic", "rtl"), ("hindi", "ltr")])
def test_text_runs_the_way_it_is_read(page, language, direction):
    say(page, language)
    text = finished(page).locator(".text p").first
    assert text.inner_text() == ANSWERS[language].replace("`", "")
    assert text.evaluate("e => getComputedStyle(e).direction") == direction
    page.fill("#say", ANSWERS[language])
    assert page.locator("#say").evaluate("e => getComputedStyle(e).direction") == direction


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    page.check("#beside")
    say(page, "wide")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth")
    box = page.locator("#say").bounding_box()
    assert box["width"] > width / 3 and box["y"] + box["height"] <= 700


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    say(page, "marked")
    finished(page)
    ratios = page.evaluate("""() => {
      const canvas = document.createElement('canvas').getContext('2d');
      const light = c => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const d = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
        .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * d[0] + .7152 * d[1] + .0722 * d[2]; };
      const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return 'white'; };
      return [...document.querySelectorAll('p, li, code, td, h1, label, button, .who, #panel')].filter(e => e.checkVisibility() && !e.disabled)
        .map(e => { const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x); return (a + .05) / (b + .05); });
    }""")
    assert len(ratios) > 10 and min(ratios) >= 4.5  # WCAG 2.2, level AA


def test_an_error_is_told_where_the_answer_would_be(page):
    say(page, "x" * 30_000)
    page.wait_for_selector("article .error")
    assert "too many for the context of 4096" in page.inner_text("article .error")
    assert page.get_by_role("button", name="Retry").is_enabled()


CHUNK = 'data: {"id": "a", "choices": [{"delta": {"content": "half"}, "finish_reason": %s}]}\n\n'


@pytest.mark.parametrize(("reply", "said"), [
    ({"status": 502, "content_type": "text/html", "body": "<html>Bad gateway</html>"}, "The server answered 502"),
    ({"content_type": "text/event-stream", "body": CHUNK % "null"}, "The answer was cut off"),
    ({"content_type": "text/event-stream", "body": CHUNK % '"length"' + "data: [DONE]\n\n"}, "Cut at the longest length"),
    ({"content_type": "text/event-stream", "body": (CHUNK % '"stop"').replace("half", " ") + "data: [DONE]\n\n"}, "The answer is empty"),
])  # fmt: skip
def test_an_answer_that_is_not_whole_says_so(page, reply, said):
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**reply))
    say(page, "hello")
    assert said in finished(page).inner_text()


def test_a_conversation_survives_a_reload_and_goes_on(page):
    for i, text in enumerate(("hello", "marked"), 1):
        say(page, text)
        finished(page, i)
    page.click("article.assistant >> nth=1 >> text=Retry")
    finished(page, 2)
    before = page.inner_text("#log")
    page.reload()
    page.wait_for_selector("article.assistant >> nth=1")
    assert page.inner_text("#log") == before and "2 / 2" in before
    say(page, "again")
    finished(page, 3)
    page.click("#new")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert not page.inner_text("#log")


def test_a_text_looks_alike_while_it_comes_and_when_it_is_whole(page):
    """Blocks that are finished are not drawn again: code with empty lines, lists and tables are not cut in two."""
    say(page, "blocks")
    page.wait_for_selector("article.assistant .tail", state="attached")
    page.evaluate("""() => {
      const clean = box => { const copy = box.cloneNode(true); for (const tail of copy.querySelectorAll(".tail")) tail.replaceWith(...tail.childNodes); return copy.innerHTML; };
      window.last = "";
      new MutationObserver(() => { const box = document.querySelector("article.assistant .text"); if (box.querySelector(".tail")) window.last = clean(box); })
        .observe(document.querySelector("#log"), { childList: true, subtree: true });
    }""")
    answer = finished(page)
    coming, whole = page.evaluate("window.last"), answer.locator(".text").inner_html()
    assert coming and whole.startswith(coming[: coming.rindex("</")]) and whole.count("<pre") == 2
