"""The engine in a process of its own, and the end of the pipe that asynchronous code holds."""

import asyncio
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import AsyncGenerator
from multiprocessing.connection import Connection
from typing import Any

from tenfold.serve.api.text import read_text_side
from tenfold.serve.backends.llamacpp import make_llamacpp_engine
from tenfold.serve.engine.engine import Engine, make_engine
from tenfold.serve.engine.grammar import GrammarTokenizer
from tenfold.serve.engine.request import Output, Request
from tenfold.serve.options import EngineOptions
from tenfold.spec.errors import TenfoldError

_IDLE_SECONDS = 3600.0


class EngineGone(Exception):
    """The engine's process ended or was stopped."""


class EngineProcess:
    """Starts an engine and talks with it. All methods are for the event loop that called `start`."""

    def __init__(self, options: EngineOptions):
        self.options = options
        self.stats: dict[str, float] = {}
        self.context = 0
        self._queues: dict[str, asyncio.Queue[Output | None]] = {}
        self._ready: asyncio.Future[None] | None = None
        self._alive = False

    @property
    def is_alive(self) -> bool:
        return self._alive

    @property
    def in_flight(self) -> int:
        """Requests that are not answered in full."""
        return len(self._queues)

    async def start(self) -> None:
        """Return when the model can answer. Raises TenfoldError where it cannot be loaded."""
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        method = multiprocessing.get_context("spawn")
        self._connection, theirs = method.Pipe()
        self._process = method.Process(target=_run, args=(theirs, self.options), daemon=True, name="tenfold-engine")
        self._process.start()
        theirs.close()
        threading.Thread(target=self._read, daemon=True).start()
        await self._ready
        self._alive = True

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        """Outputs until every sequence is finished; leaving early cancels. Raises EngineGone where the engine ends."""
        if not self._alive:
            raise EngineGone
        queue: asyncio.Queue[Output | None] = asyncio.Queue()
        self._queues[request.id] = queue
        left = 1 if request.embed else request.sampling.n
        try:
            self._connection.send(("add", request))
            while left:
                output = await queue.get()
                if output is None:
                    raise EngineGone
                left -= output.finish_reason is not None
                yield output
                if output.error is not None:
                    break
        finally:
            self._queues.pop(request.id, None)
            if left and self._alive:
                self._connection.send(("cancel", request.id))

    def stop(self) -> None:
        """End the process; what is in flight ends with EngineGone."""
        self._alive = False
        self._connection.close()
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()

    def _read(self) -> None:
        """Carry what the engine says into the event loop, until it says no more."""
        try:
            while True:
                message = self._connection.recv()
                self._loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError, TypeError):  # closed here, or there
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._lose)

    def _take(self, message: Any) -> None:
        kind, *rest = message
        if kind == "ready":
            (self.context,) = rest
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif kind == "failed":
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(TenfoldError(rest[0]))
        else:
            outputs, self.stats = rest
            for output in outputs:
                if queue := self._queues.get(output.request_id):
                    queue.put_nowait(output)

    def _lose(self) -> None:
        self._alive = False
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(TenfoldError("The engine ended before it was ready."))
        for queue in self._queues.values():
            queue.put_nowait(None)


def _run(connection: Connection, options: EngineOptions) -> None:
    # A signal to the group of the process that started this one must not end it before what is in flight is answered.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait longer than this should sleep
    try:
        engine = make_llamacpp_engine(options) if options.backend == "llamacpp" else make_engine(options)
        text = read_text_side(options.path)
        engine.grammars = GrammarTokenizer(text.tokenizer, engine.runner.spec.vocab_size, sorted(text.stop_tokens))
    except Exception as error:
        if not isinstance(error, TenfoldError):
            traceback.print_exc()
        connection.send(("failed", str(error)))
        return
    try:
        connection.send(("ready", engine.context))
        _answer(connection, engine)
    except (EOFError, OSError):
        return


def _answer(connection: Connection, engine: Engine) -> None:
    while True:
        while connection.poll(0 if engine.has_work else _IDLE_SECONDS):
            kind, what = connection.recv()
            if kind == "add":
                engine.add(what)
            else:
                engine.cancel(what)
        outputs = engine.step()
        connection.send(("step", outputs, engine.stats()))
