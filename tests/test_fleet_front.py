"""The dispatcher before real servers: what did not begin is sent again elsewhere, the same beginning goes to the same server."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tenfold.fleet.dispatcher import Dispatcher
from tenfold.serve.start import free_url


@contextmanager
def server(kind, seen, wait=None):
    """One that answers, or says that it is busy, or hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(self.rfile.read(int(self.headers["Content-Length"])))
            if kind == "hangs up":
                return
            self.send_response(503 if kind == "busy" else 200)
            self.end_headers()
            if kind == "answers":
                if wait:
                    wait.wait(30)
                self.wfile.write(b"data: {}\n\ndata: [DONE]\n\n")

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


def test_what_did_not_begin_goes_to_another_and_a_failing_server_rests():
    with ExitStack() as opened:
        seen = {kind: [] for kind in ("answers", "busy", "hangs up")}
        dispatcher = Dispatcher()
        for kind, rows in seen.items():
            dispatcher.open(opened.enter_context(server(kind, rows)), "chat")
        dispatcher.open(free_url(), "chat")  # nobody listens there
        answers = [dispatcher.ask({"prompt": f"{i}"}) for i in range(40)]
    assert not any(answer.lost for answer in answers) and len(seen["answers"]) == 40
    assert max(answer.sent for answer in answers) <= 4 and sum(answer.sent == 1 for answer in answers) >= 20


def test_the_same_beginning_goes_to_the_same_server_and_load_comes_first():
    with ExitStack() as opened:
        rows, wait = [[], []], threading.Event()
        dispatcher = Dispatcher()
        for one in rows:
            dispatcher.open(opened.enter_context(server("answers", one, wait)), "chat")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(dispatcher.ask, {"prompt": "the same"}) for _ in range(4)]
            while len(rows[0]) + len(rows[1]) < 4:
                threading.Event().wait(0.01)
            wait.set()
            assert not any(one.result().lost for one in asked)
        assert len(rows[0]) == len(rows[1]) == 2  # all at once: by load
        for one in rows:
            one.clear()
        for prompt in [f"prompt {i}" for i in range(12)] * 3:
            dispatcher.ask({"prompt": prompt})
        counts = [Counter(one) for one in rows]
        assert not set(counts[0]) & set(counts[1]) and all(counts) and set(counts[0].values()) == {3}
