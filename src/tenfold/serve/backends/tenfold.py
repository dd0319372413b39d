"""Tenfold's engine as a backend, in a process of its own, behind a pipe.

A backend with another subclass of `Engine` needs only a function that makes it from `EngineOptions`.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any

from tenfold.launch.child import follow_parent
from tenfold.model.io.huggingface import check_model
from tenfold.serve.backends.backend import BackendStopped
from tenfold.serve.engine.build import make_engine
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.grammar import GrammarCompiler
from tenfold.serve.options import EngineOptions
from tenfold.serve.pictures import Sight, read_sight
from tenfold.serve.request import Output, Request, TokenLogprob
from tenfold.serve.sandbox.grammars import GrammarTokenizer
from tenfold.serve.text import read_text_side
from tenfold.spec.errors import TenfoldError
from tenfold.spec.threads import set_waiting_policy

_IDLE_SECONDS = 3600.0


class EngineProcess:
    """A `Backend` whose engine runs in a process of its own."""

    def __init__(self, options: EngineOptions, make: Callable[[EngineOptions], Engine] = make_engine):
        self.options, self._make = options, make
        self.stats: dict[str, float] = {}
        self.max_model_len = 0
        self.sight: Sight | None = None
        self._queues: dict[str, asyncio.Queue[Output | None]] = {}
        self._outbox: SimpleQueue[tuple[str, Any] | None] = SimpleQueue()
        self._alive = False
        self._switched: asyncio.Future[None] | None = None  # done when the engine is asleep, or awake again
        self._process: SpawnProcess | None = None

    @property
    def is_alive(self) -> bool:
        return self._alive

    @property
    def in_flight(self) -> int:
        return len(self._queues)

    async def start(self) -> None:
        await asyncio.to_thread(check_model, self.options.path)  # no process for files that cannot be right
        self.sight = await asyncio.to_thread(read_sight, self.options.path)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        method = multiprocessing.get_context("spawn")
        self._connection, theirs = method.Pipe()
        arguments = theirs, self.options, self._make
        self._process = method.Process(target=_run, args=arguments, daemon=True, name="tenfold-engine")
        self._process.start()
        theirs.close()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()
        await self._ready
        self._alive = True

    async def generate(self, request: Request) -> AsyncGenerator[Output, None]:
        if not self._alive:
            raise BackendStopped
        queue: asyncio.Queue[Output | None] = asyncio.Queue()
        self._queues[request.id] = queue
        left = request.sampling.n if request.generates else 1
        try:
            self._outbox.put(("add", request))
            while left:
                output = await queue.get()
                if output is None:
                    raise BackendStopped
                left -= output.finish_reason is not None
                yield output
                if output.error is not None:
                    break
        finally:
            self._queues.pop(request.id, None)
            if left and self._alive:
                self._outbox.put(("cancel", request.id))

    async def score(self, request: Request) -> list[TokenLogprob]:
        async for output in self.generate(request):
            if output.scores is not None:
                return output.scores
            raise TenfoldError(output.error or "The engine gave no scores.")
        raise BackendStopped

    async def sleep(self) -> None:
        await self._switch("sleep")

    async def wake_up(self) -> None:
        await self._switch("wake_up")

    async def _switch(self, order: str) -> None:
        if not self._alive:
            raise BackendStopped
        self._switched = self._loop.create_future()
        self._outbox.put((order, None))
        await self._switched

    def stop(self) -> None:
        self._alive = False
        if self._process is None:
            return
        self._outbox.put(None)
        self._process.join(timeout=2)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _read(self) -> None:
        """Pass the engine's messages to the event loop until the pipe is closed; runs in a thread."""
        try:
            while True:
                message = self._connection.recv()
                self._loop.call_soon_threadsafe(self._receive, message)
        except (EOFError, OSError, TypeError):  # closed on either side
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._connection_lost)

    def _write(self) -> None:
        """Send what is put in the outbox, up to None.

        It runs in a thread, since long prompts fill the pipe, and the engine reads the pipe only between steps.
        """
        message: Any = ()
        with suppress(OSError):  # closed on the other side, which `_read` notices
            while message is not None:
                message = self._outbox.get()
                self._connection.send(message)

    def _receive(self, message: Any) -> None:
        kind, *rest = message
        if kind == "ready":
            (self.max_model_len,) = rest
            if not self._ready.done():
                self._ready.set_result(None)
        elif kind == "failed":
            self._fail(rest[0])
        elif kind == "turned":
            if self._switched is not None and not self._switched.done():
                self._switched.set_result(None)
        else:
            outputs, self.stats = rest
            for output in outputs:
                if queue := self._queues.get(output.request_id):
                    queue.put_nowait(output)

    def _connection_lost(self) -> None:
        self._alive = False
        self._fail("The engine ended before it was ready.")
        if self._switched is not None and not self._switched.done():
            self._switched.set_exception(BackendStopped())
        for queue in self._queues.values():
            queue.put_nowait(None)

    def _fail(self, reason: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(TenfoldError(reason))


def _run(connection: Connection, options: EngineOptions, make: Callable[[EngineOptions], Engine]) -> None:
    """The main function of the engine's process."""
    # It leaves the server's process group, so that a signal to that group does not end it before requests in flight are answered.
    # It still ends with the server, however the server ends and whatever this process does then.
    os.setpgid(0, 0)
    follow_parent(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_waiting_policy()
    try:
        engine = make(options)
        text, rows = read_text_side(options.path), engine.runner.spec.vocab_size
        text.check_fits(rows)
        engine.grammars = GrammarCompiler(GrammarTokenizer(text.tokenizer.to_str(), rows, sorted(text.stop_tokens)))
    except Exception as error:
        if not isinstance(error, TenfoldError):
            traceback.print_exc()
        connection.send(("failed", str(error) or type(error).__name__))
        return
    try:
        connection.send(("ready", engine.max_model_len))
        _answer(connection, engine)
    except (EOFError, OSError):
        return


def _answer(connection: Connection, engine: Engine) -> None:
    """Take requests from the pipe and send outputs, one message a step, until None comes."""
    while True:
        wait = 0.0 if engine.has_work else _IDLE_SECONDS
        while connection.poll(wait):
            wait = 0.0  # go on to a step after each message, since messages change the stats
            if (message := connection.recv()) is None:
                return
            kind, what = message
            if kind == "add":
                engine.add(what)
            elif kind == "cancel":
                engine.cancel(what)
            else:
                turn = engine.sleep if kind == "sleep" else engine.wake_up
                turn()
                connection.send(("turned",))
        outputs = engine.step()
        connection.send(("step", outputs, engine.stats()))
