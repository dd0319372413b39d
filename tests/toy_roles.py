"""Roles of a fleet without PyTorch: a server that answers in pieces, and work that counts its steps."""

import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tenfold.fleet.slots.hold import hold, stay
from tenfold.launch.job import Job
from tenfold.serve.start import answers

STEPS = 400


class Handler(BaseHTTPRequestHandler):
    nap = None

    def do_GET(self):
        self.send_response(503 if self.nap and self.nap.asleep else 200)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for _ in range(10):
            self.wfile.write(b"data: {}\n\n")
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


def serve(port):
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = False
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    server.server_close()  # waits for its answers


def count(path, steps=STEPS, pause=None):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    with path.open("a+") as stream:
        stream.seek(0)
        for step in range(len(stream.readlines()), steps):
            if stopped:
                return
            print(step, file=stream, flush=True)
            if pause:
                pause.here(stopped)
            time.sleep(0.01)


def ignore_everything(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    path.write_text("")
    time.sleep(600)


def borrow_deaf(launcher, lock, begun):
    """A borrower that hears nothing, at work, and its deadline. A busy machine may need longer than a deadline to start a process:
    that one is gone, and the next has longer."""
    for seconds in (4, 16, 64):
        begun.unlink(missing_ok=True)
        deadline = time.monotonic() + seconds
        borrower = launcher.submit(Job("deaf", function=hold, arguments=(lock, deadline, ignore_everything, begun)))
        while not begun.exists() and borrower.status() == "running":
            assert time.monotonic() < deadline + 60
            time.sleep(0.02)
        if begun.exists() and time.monotonic() < deadline - 1:
            break
    return borrower, deadline


def has_failed(handle):
    """Its end is heard of a moment after its locks are free."""
    return handle.future.exception(timeout=120) is not None and handle.status() == "failed"


class ToyChat:
    finished = False

    def job(self, lock, url, end, leave_s):
        return Job("toy chat", function=hold, arguments=(lock, end, serve, int(url.rpartition(":")[2])))

    def starts(self):
        return 0

    def is_ready(self, url, starts):
        return answers(url)

    def sign(self, url):
        return time.monotonic() if answers(url) else None

    def redone_s(self):
        return 0.0


class Counting:
    def __init__(self, path, steps=STEPS):
        self.path, self.steps = path, steps

    @property
    def finished(self):
        return self.path.exists() and len(self.path.read_text().split()) >= self.steps

    def job(self, lock, url, end, leave_s):
        return Job("counting", function=hold, arguments=(lock, end, count, self.path, self.steps))

    def starts(self):
        return self.sign("")

    def is_ready(self, url, starts):
        return self.starts() > starts

    def sign(self, url):
        return self.path.stat().st_size if self.path.exists() else 0

    def redone_s(self):
        return 0.0


class Pause:
    """What a toy does when it is put to sleep: a loop stands still at `here`, a server says so."""

    def __init__(self):
        self.wanted, self.asleep, self.woken = threading.Event(), threading.Event(), threading.Event()

    def sleep(self):
        self.woken.clear()
        self.wanted.set()
        self.asleep.wait()

    def wake_up(self):
        self.wanted.clear()
        self.asleep.clear()
        self.woken.set()

    def here(self, stopped):
        if self.wanted.is_set():
            self.asleep.set()
            while not stopped and not self.woken.wait(0.05):
                pass


class Nap:
    asleep = False

    def sleep(self):
        self.asleep = True

    def wake_up(self):
        self.asleep = False


def serve_in_slot(lock, end, orders, port):
    Handler.nap = Nap()
    return stay(lock, end, orders, Handler.nap, serve, port)


def count_in_slot(lock, end, orders, path):
    pause = Pause()
    return hold(path.with_name("count.lock"), None, stay, lock, end, orders, pause, count, path, 10**6, pause)


class SleepingChat(ToyChat):
    def job(self, lock, url, end, leave_s, orders):
        return Job("toy chat", function=serve_in_slot, arguments=(lock, end, orders, int(url.rpartition(":")[2])))


class SleepingCount(Counting):
    def __init__(self, path):
        super().__init__(path, 10**6)

    def job(self, lock, url, end, leave_s, orders):
        return Job("counting", function=count_in_slot, arguments=(lock, end, orders, self.path))
