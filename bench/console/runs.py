"""A run of a million logged steps in the console: opened, zoomed and followed, by one page and by many.

    python -m bench.console.runs                                  # a million steps, 200 pages that follow; some minutes
    python -m bench.console.runs --steps 50000 --pages 20 --seconds 10     # a quick trial

A run is written with a line for each step, as the trainer writes it (`run.jsonl` and `time.jsonl`), and a console is started over
it in its own process. In headless Chromium the run's page is opened twice (with a console that has read nothing yet, and again),
zoomed into the middle tenth, and followed while one line per second is appended. Recorded are the seconds until the whole picture
is drawn, from a zoom until its data are drawn, and from an appended line until the page shows it; the frames per second meanwhile;
and the memory of the console and of the page. Then many clients follow the run's events at once while it grows, each like a page.
The console's share of one core is its processor time over the elapsed time.
Writes bench/results/console_runs.json.
"""

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.harness import Headline, Row, options, write_results

BAR_S, BAR_FPS, BAR_MB, BAR_SHARE = 1.5, 60, 300, 0.2
NAME = "long"
MIB = 2**20
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAST_STEP = "main a.figure[data-key$=':step']"
FRAMES = """seconds => new Promise(done => {
  const began = performance.now(); let frames = 0, longest = 0, last = began;
  const frame = now => {
    frames += 1; longest = Math.max(longest, now - last); last = now;
    if (now - began < 1000 * seconds) requestAnimationFrame(frame); else done([frames / (now - began) * 1000, longest]);
  };
  requestAnimationFrame(frame);
})"""


def line(step: int, random_: random.Random) -> str:
    """A line of run.jsonl: one logged step."""
    figures = {
        "loss": 2 + 8 * step**-0.3 + random_.gauss(0, 0.05), "grad_norm": random_.random() * 2,
        "tokens_per_s": 24000 + random_.random() * 1000, "mfu": 0.4 + random_.random() * 0.01, "watts": 300 + random_.random(),
        "learning_rate": 1e-3 * random_.random(), "tokens": step * 1000,
    }  # fmt: skip
    return json.dumps({"event": "step", "time": round(1.7e9 + step * 0.3, 3), "step": step, **figures}) + "\n"


def write_run(folder: Path, steps: int) -> None:
    """Write run.jsonl and time.jsonl of a run that has not ended."""
    folder.mkdir(parents=True)
    random_ = random.Random(0)
    with (folder / "run.jsonl").open("w") as record, (folder / "time.jsonl").open("w") as spent:
        record.write(json.dumps({"event": "start", "time": 1.7e9, "version": 2, "hyperparameters": {"steps": 2 * steps}}) + "\n")
        spent.write(json.dumps({"began": 1.7e9 - 9, "time": 1.7e9, "step": 0}) + "\n")
        for step in range(1, steps + 1):
            record.write(line(step, random_))
            row = {"time": 1.7e9 + step * 0.3, "step": step, "stepping": step * 0.29, "saving": step * 1e-3, "evaluating": 0.0}
            spent.write(json.dumps(row) + "\n")


@contextmanager
def console(home: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run a console in its own process; the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tenfold", "console", "--home", str(home), "--port", str(port)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/"
        while not _answers(address):
            if process.poll() is not None:
                raise SystemExit("The console ended before it answered.")
            time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address).close()
    except OSError:
        return False
    return True


@contextmanager
def growing(record: Path, first: int) -> Iterator[list[tuple[int, float]]]:
    """Append one line per second; yields the growing list of (step, time at which it was appended)."""
    done, appended, random_ = threading.Event(), list[tuple[int, float]](), random.Random(1)

    def grow() -> None:
        step = first
        while not done.wait(1.0):
            with record.open("a") as stream:
                stream.write(line(step, random_))
            appended.append((step, time.monotonic()))
            step += 1

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        yield appended
    finally:
        done.set()
        thread.join()


def opened(page: Any, address: str) -> float:
    """Seconds from the request of the page until the run's picture stands."""
    began = time.monotonic()
    page.goto(f"{address}#/run/{NAME}")
    page.wait_for_selector(".plot canvas")
    page.evaluate("() => new Promise(requestAnimationFrame)")
    return time.monotonic() - began


def zoomed(page: Any) -> tuple[float, float]:
    """Seconds from a drag over the middle tenth of the loss until that part's data are drawn, and the frames a second meanwhile."""
    box = page.locator(".plot .u-over").first.bounding_box()
    left, y = box["x"] + 0.225 * box["width"], box["y"] + box["height"] / 2  # the picture goes to the end of the plan
    page.evaluate(f"() => {{ window.frames_ = ({FRAMES})(1.5); }}")
    page.mouse.move(left, y)
    page.mouse.down()
    page.mouse.move(left + 0.05 * box["width"], y, steps=10)
    began = time.monotonic()
    with page.expect_response(lambda answer: f"/data/run/{NAME}.json?from=" in answer.url):
        page.mouse.up()
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.monotonic() - began
    return seconds, page.evaluate("() => window.frames_")[0]


def followed(page: Any, record: Path, first: int, seconds: float) -> tuple[float, float, float]:
    """Seconds from an appended line until the page shows it (median), frames a second, and the longest frame in ms."""
    page.wait_for_selector(LAST_STEP)
    with growing(record, first) as appended:
        page.evaluate(
            f"""() => {{ window.seen_ = {{}}; setInterval(() => {{
              const shown = document.querySelector("{LAST_STEP}")?.dataset.value;
              if (shown) window.seen_[shown] ??= Date.now();
            }}, 20); }}"""
        )
        offset = time.time() - time.monotonic()
        rate, longest = page.evaluate(FRAMES, seconds)
        page.wait_for_timeout(3000)
        seen = page.evaluate("() => window.seen_")
    late = [seen[str(step)] / 1000 - offset - at for step, at in appended if str(step) in seen]
    return median(late), rate, longest


@contextmanager
def new_page(browser: Any) -> Iterator[Any]:
    """A fresh browser page."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(300_000)
    yield page
    page.close()


def in_browser(home: Path, steps: int, seconds: float, rounds: int) -> Row:
    """Measure one page: opening, zooming and following, in medians over `rounds`."""
    from playwright.sync_api import sync_playwright

    cold, warm, zooms = [], [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--enable-precise-memory-info"])
        for _ in range(rounds):
            with console(home) as (_, address):
                with new_page(browser) as page:
                    cold.append(opened(page, address))
                with new_page(browser) as page:
                    warm.append(opened(page, address))
                    zooms.append(zoomed(page))
        with console(home) as (process, address), new_page(browser) as page:
            opened(page, address)
            lag, rate, longest = followed(page, home / NAME / "run.jsonl", steps + 1, seconds)
            memory = process.memory_info().rss / MIB
            heap = page.evaluate("() => performance.memory.usedJSHeapSize") / MIB
        browser.close()
    return {
        "case": "one page", "steps": steps, "open_cold_s": median(cold), "open_s": median(warm),
        "zoom_s": median(seconds for seconds, _ in zooms), "zoom_frames_per_s": median(rate for _, rate in zooms),
        "follow_lag_s": lag, "follow_frames_per_s": rate, "follow_longest_frame_ms": longest, "console_rss_mb": memory,
        "page_heap_mb": heap,
    }  # fmt: skip


async def listen(address: str, got: list[int]) -> None:
    """Follow a run's stream of events, as a page does; counts the events in `got[0]`."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /events/run/{NAME} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    try:
        while text := await reader.readline():
            got[0] += text.startswith(b"data:")
    finally:
        writer.close()


async def with_pages(process: psutil.Process, address: str, pages: int, seconds: float) -> tuple[float, int]:
    """(the console's share of one core while `pages` clients listen, the number of events that they received)."""
    got = [0]
    tasks = [asyncio.create_task(listen(address, got)) for _ in range(pages)]
    await asyncio.sleep(5)  # until all are connected
    before, began, sent = sum(process.cpu_times()[:2]), time.monotonic(), got[0]
    await asyncio.sleep(seconds)
    share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
    sent = got[0] - sent
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return share, sent


def many_pages(home: Path, steps: int, pages: int, seconds: float) -> Row:
    """Measure the console while many clients follow one run that was read before."""
    with console(home) as (process, address):
        urllib.request.urlopen(f"{address}data/run/{NAME}.json").read()
        with growing(home / NAME / "run.jsonl", 2 * steps):
            share, sent = asyncio.run(with_pages(process, address, pages, seconds))
    return {"case": "many pages", "steps": steps, "pages": pages, "share_of_a_core": share, "events_per_s": sent / seconds}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        write_run(home / NAME, asked.steps)
        one = in_browser(home, asked.steps, asked.seconds, asked.rounds)
        many = many_pages(home, asked.steps, asked.pages, asked.seconds)
    bars = {"open_s": BAR_S, "open_cold_s": BAR_S, "zoom_s": BAR_S, "follow_lag_s": BAR_S, "console_rss_mb": BAR_MB}
    one |= {"met": {name: one[name] <= bar for name, bar in bars.items()}, "frames_met": one["follow_frames_per_s"] >= BAR_FPS - 1}
    many |= {"met": many["share_of_a_core"] <= BAR_SHARE}
    headline: Headline = [
        (
            f"The console with a run of {asked.steps:,} logged steps: opened, opened for the first time, zoomed",
            f"{one['open_s']:.2f} s, {one['open_cold_s']:.2f} s, {one['zoom_s']:.2f} s, {one['console_rss_mb']:.0f} MB",
        ),
        (f"{asked.pages} open pages that follow one run: the console's share of one core", f"{many['share_of_a_core']:.1%}"),
    ]
    print(write_results("console_runs", [one, many], headline))


if __name__ == "__main__":
    main()
