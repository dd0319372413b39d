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
needs_chromium = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="the package playwright is not installed"),
]
CHUNK = 'data: {"id": "a", "choices": [{"delta": {"content": "half"}, "finish_reason": %s}]}\n\n'

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
    opened.set_default_timeout(90_000)
    opened.on("pageerror", lambda error: pytest.fail(f"the page failed: {error}"))
    opened.goto(site.url)
    opened.wait_for_selector(".send:enabled")
    yield opened
    context.close()


def until(page, condition):
    """Return when a condition holds. Playwright's own way evaluates it inside the page, whose policy forbids that."""
    end = time.monotonic() + 90
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def say(page, text):
    page.fill(".say", text)
    page.press(".say", "Enter")


def finished(page, answers=1):
    until(page, f"document.querySelectorAll('article.assistant').length === {answers} && document.querySelector('.stop').hidden")
    return page.locator("article.assistant").last


def rows(site, table):
    return list(site.store.rows(table))
