"""A server of pieces over HTTP/1.1, in a process of its own: `python toy_replica.py PORT [STATUS]`.

A request says in its body how many `pieces` it wants, of how many `bytes`, and until which file is there the first and the last of
them wait (`first`, `last`). With a STATUS it refuses every request by that, but is well; with `hangs-up` it ends connections
without a word. GET /v1/seen gives what it saw.
"""

import json
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KIND = sys.argv[2] if len(sys.argv) > 2 else ""
SEEN = {"asked": [], "bytes": 0, "gone": 0}


def wait_for(path):
    while path and not Path(path).exists():
        time.sleep(0.02)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        said = b"{}" if self.path == "/health" else json.dumps(SEEN).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        SEEN["asked"].append(
            {
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": body.decode("latin-1"),
            }
        )
        if KIND == "hangs-up":
            self.close_connection = True
            return
        if KIND:
            self.send_response(int(KIND))
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "7")
            self.end_headers()
            return
        self.answer(json.loads(body))

    def answer(self, asked):
        wait_for(asked.get("first"))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Port", sys.argv[1])
        self.end_headers()
        count, size = asked.get("pieces", 1), asked.get("bytes", 20)
        try:
            for number in range(count):
                if number and number == count - 1:
                    wait_for(asked.get("last"))
                self.piece(f"data: {number:0{size}}\n\n".encode())
            self.piece(b"data: [DONE]\n\n")
            self.piece(b"")
        except OSError:
            SEEN["gone"] += 1
            self.close_connection = True

    def piece(self, said):
        self.wfile.write(f"{len(said):x}\r\n".encode() + said + b"\r\n")
        SEEN["bytes"] += len(said)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    threading.Timer(600, server.shutdown).start()
    with suppress(KeyboardInterrupt):
        server.serve_forever()
