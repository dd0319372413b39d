"""A server whose model says what a test tells it to, for clients that speak HTTP."""

import asyncio
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from chat_models import TEMPLATE

from tenfold.serve.api.app import make_app
from tenfold.serve.api.models import Models
from tenfold.serve.options import EngineOptions, ServerOptions
from tenfold.serve.request import Output
from tenfold.serve.text import TextSide


class Scripted:
    """A backend that gives `answers`, each a text and why it ended, one after the other, then what it `says`.

    It remembers its prompts, and stands still while `goes_on` is not set.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.stats, self.max_model_len, self.in_flight, self.is_alive = tokenizer, {}, 32_768, 0, True
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.answers, self.says, self.asked = [], "", []

    async def generate(self, request):
        self.asked.append(self.tokenizer.decode(request.tokens, skip_special_tokens=False))
        says, finish = self.answers.pop(0) if self.answers else (self.says, "stop")
        for token in self.tokenizer.encode(says).ids:
            while not self.goes_on.is_set():
                await asyncio.sleep(0.01)
            yield Output(request.id, 0, [token])
        yield Output(request.id, 0, finish_reason=finish)

    def stop(self):
        self.is_alive = False


@contextmanager
def scripted_site(backend, **options):
    """The URL of a server over `backend`."""

    async def load(_):
        return TextSide(backend.tokenizer, TEMPLATE, frozenset(), {}, [], 40, backend.max_model_len), backend

    options = ServerOptions(access_log="none", **options)
    app = make_app(Models({"tiny": EngineOptions(Path())}, options.limits, load=load), options)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
