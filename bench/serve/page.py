"""Processor time of the chat page for one long answer, in headless Chromium.

    python -m bench.serve.page
    python -m bench.serve.page --beside chat.html       # compare with another page that is one HTML file

A small server streams an answer of 4,000 chunks, one word each, in four kinds: mixed Markdown, one list, one paragraph, one block
of code. A script that the server adds to the page sends the question. No debugger is attached, since that costs processor time for
every chunk. Counted is the processor time of the browser's processes from the question until the answer is complete: of the page
itself (the renderer), and of all processes. With `--beside` the two pages alternate.
"""

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from mimetypes import guess_type
from pathlib import Path
from statistics import median

import psutil

from bench.harness import Headline, Row, alternate, options, write_results
from tenfold.serve.page.routes import FILES, POLICY
from tenfold.spec.threads import busy_share

Figures = dict[str, float]
BAR_S = 1.0
MIXED = (
    "## A heading\n\nSome **bold** words and `code` in a paragraph with a [link](https://example.org/), as answers have it.\n\n"
    "- one item\n- another item\n  - one within\n\n```python\ndef double(x):\n    return 2 * x\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\nThe area is $A = \\pi r^2$.\n\n"
)
TEXTS = {  # name: (beginning, repeated part)
    "mixed": ("", MIXED),
    "one list": ("", "- an item of a list with some words in it\n"),
    "one paragraph": ("", "word after word, "),
    "one block of code": ("```python\n", "x = double(x) # a line\n"),
}
DRIVER = """
const find = name => document.querySelector(`.${name}, #${name}`);
const until = async done => { while (!done()) await new Promise(resolve => setTimeout(resolve, 500)); };
await until(() => find("model")?.options.length && !find("send").disabled);
await fetch("/begin", { method: "POST" });
find("say").value = "go";
find("say").form.requestSubmit();
await until(() => find("send").hidden);
await until(() => !find("send").hidden);
await fetch("/end", { method: "POST" });
"""


def events(text: str, number: int) -> Iterator[bytes]:
    """The server-sent events of an answer of `number` chunks."""
    begin, repeated = TEXTS[text]
    words = cycle(repeated.replace(" ", " \0").split("\0"))
    for piece in [begin, *islice(words, number - 1)]:
        yield _event({"delta": {"content": piece}, "finish_reason": None})
    yield _event({"delta": {}, "finish_reason": "stop"})
    yield b"data: [DONE]\n\n"


def _event(choice: dict[str, object]) -> bytes:
    return f"data: {json.dumps({'id': 'x', 'choices': [{'index': 0, **choice}]})}\n\n".encode()


class Site(ThreadingHTTPServer):
    """Serves one page, its models and its answer; `marks` has the processor times at the beginning and the end of the answer."""

    def __init__(self, page: bytes, policy: str, answer: list[bytes], between_s: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.page, self.policy, self.answer, self.between_s = page, policy, answer, between_s
        self.browser: psutil.Process | None = None
        self.marks: list[Figures] = []
        self.ended = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/page/")
        if self.path == "/":
            return self._send(self.server.page, "text/html", {"Content-Security-Policy": self.server.policy})
        if self.path == "/driver.js":
            return self._send(DRIVER.encode(), "text/javascript")
        if name != self.path and (FILES / name).is_file():
            return self._send((FILES / name).read_bytes(), guess_type(name)[0] or "font/woff2")
        known = {"/v1/models": {"data": [{"id": "model"}]}, "/health": {"status": "ok", "feedback": False}}
        return self._send(json.dumps(known.get(self.path, {})).encode(), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        if self.path == "/v1/chat/completions":
            self._stream()
        else:
            self.server.marks.append(processor_s(self.server.browser))
            self._send(b"{}", "application/json")
        if self.path == "/end":
            self.server.ended.set()

    def _send(self, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"content-type": kind, "content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        begun = time.perf_counter()
        for number, event in enumerate(self.server.answer):
            self.wfile.write(event)
            time.sleep(max(0.0, begun + number * self.server.between_s - time.perf_counter()))


def processor_s(browser: psutil.Process | None) -> Figures:
    """Processor seconds of the browser's processes so far: of the busiest renderer, and of all."""
    assert browser is not None
    renderers, whole = [0.0], 0.0
    for process in [browser, *browser.children(recursive=True)]:
        spent = sum(process.cpu_times()[:2])
        whole += spent
        if "--type=renderer" in process.cmdline():
            renderers.append(spent)
    return {"page_s": max(renderers), "browser_s": whole}


@contextmanager
def _chromium(address: str) -> Iterator[psutil.Process]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking"]
        window = ["--headless=new", "--window-size=1000,700", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        running = subprocess.Popen([program, *quiet, *window, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield psutil.Process(running.pid)
        finally:
            running.terminate()
            running.wait()


def measured(page: bytes, policy: str, answer: list[bytes], between_s: float) -> Figures:
    """Processor seconds of one answer."""
    with Site(page, policy, answer, between_s) as site:
        serving = threading.Thread(target=site.serve_forever)
        serving.start()
        try:
            with _chromium(f"http://127.0.0.1:{site.server_port}/") as site.browser:
                if not site.ended.wait(600):
                    raise SystemExit("The page did not end its answer within 600 s.")
        finally:
            site.shutdown()
            serving.join()
    begin, end = site.marks
    return {name: end[name] - begin[name] for name in begin}


def driven(html: str) -> bytes:
    """The page with the script that sends the question."""
    return html.replace("</body>", '<script type="module" src="/driver.js"></script></body>').encode()


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        yield (
            f"{row['page']} page, {row['text']}, {row['chunks']} chunks: seconds of its processor, of the browser's in all",
            (f"{row['page_s']:.2f}, {row['browser_s']:.2f}"),
        )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--beside", type=Path, help="another page to compare with, one HTML file")
    parser.add_argument("--chunks", type=int, default=4000)
    parser.add_argument("--chunks-per-s", type=float, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=[*TEXTS])
    given = parser.parse_args()
    pages = {"this": (driven((FILES / "index.html").read_text()), POLICY)}
    if given.beside:
        pages["older"] = driven(given.beside.read_text()), "default-src * 'unsafe-inline'"
    rows: list[Row] = []
    others = busy_share()
    for text in given.texts:
        answer = [*events(text, given.chunks)]
        sides = {name: partial(measured, *page, answer, 1 / given.chunks_per_s) for name, page in pages.items()}
        for name, found in alternate(sides, given.rounds, warm_up=0).items():
            figures = {what: median(one[what] for one in found) for what in found[0]}
            rows.append({"page": name, "text": text, "chunks": given.chunks, "chunks_per_s": given.chunks_per_s, **figures,
                         "within_bar": figures["page_s"] <= BAR_S, "rounds": len(found), "busy_before": others})  # fmt: skip
    print("\n".join(f"{what}: {figure}" for what, figure in headline(rows)), flush=True)
    write_results("page", rows, headline(rows))


if __name__ == "__main__":
    main()
