"""The console as a command: it says where it is, follows what changes, and ends at once though pages listen."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import sysconfig

import pytest
from console_home import needs_chromium, opened

from tenfold.console.events import Feeds

pytest_plugins = ["chat_page", "console_home"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(home, port, *more):
    """The command's process, when it has said that it answers."""
    command = [sys.executable, "-m", "tenfold", "console", "--home", str(home), "--port", str(port), *more]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert f":{port}/" in running.stdout.readline()
    return running


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_trace_while_a_page_listens(home, by):
    port = free_port()
    running = started(home, port)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/events/generations")
    stream = connection.getresponse()
    assert stream.getheader("content-type").startswith("text/event-stream") and stream.readline() == b": here\n"
    running.send_signal(by)
    _, said = running.communicate(timeout=120)
    assert "Traceback" not in said and "Exception" not in said, said
    assert stream.read().strip() == b""  # the stream was ended, not cut


def test_a_feed_that_fails_ends_its_streams_so_that_pages_connect_again():
    def begin():
        def poll():
            raise KeyError("a damaged file")

        return poll

    async def pieces():
        return [piece async for piece in Feeds().stream("view/", begin).body_iterator]

    async def within_10_s():
        return await asyncio.wait_for(pieces(), 10)

    assert asyncio.run(within_10_s()) == [b": here\n\n", b""]


@needs_chromium[0]
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_climb_is_shown_as_its_own_command_tells_it(tmp_path, browser):
    home = tmp_path / "generations"
    texts = f"{sysconfig.get_path('stdlib')}/email"
    asked = ["--corpus", texts, "--top", "6e10", "--vocab-size", "300", "--seq-len", "16", "--home", str(home), "--json"]
    done = subprocess.run([sys.executable, "-m", "tenfold", "climb", *asked], capture_output=True, text=True, check=True)
    loss = json.loads(done.stdout)["scores"]["loss_bits_per_byte"]
    port = free_port()
    running = started(home, port)
    try:
        with opened(browser, f"http://127.0.0.1:{port}/#/generations/g1") as page:
            row = page.locator("section:has(h2:text-is('Forecast and score')) tr:has(th:text-is('loss'))").inner_text()
            assert f"{loss['forecast']:.4g}" in row and f"{loss['measured']:.4g}" in row
            page.get_by_role("link", name="The run").click()
            page.wait_for_selector("h1:has-text('g1') >> visible=true")
            page.wait_for_selector(".uplot canvas")
    finally:
        running.terminate()
        running.communicate(timeout=120)
