"""Sandbox processes in which a server renders chat templates, and tries grammars before its engine compiles them."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process, create_subprocess_exec
from collections import OrderedDict
from typing import Any

from tenfold.data.conversations.template import TemplateRefusal
from tenfold.serve.sandbox import worker
from tenfold.serve.sandbox.grammars import GrammarSource
from tenfold.serve.sandbox.worker import CLOCK_SECONDS, MAX_FRAME, Job, Reply, ended_by, pack
from tenfold.serve.text import TextSide
from tenfold.spec.errors import TenfoldError

MAX_GRAMMAR = 256 * 1024  # characters in a grammar, schema or regular expression
_RENDERING: Job = {"memory_mib": 512, "seconds": 1.0, "niceness": 0}
_PROVING: Job = {"memory_mib": 128, "seconds": 2.0, "niceness": 10}
_TURN_SECONDS = 30.0  # for which a job waits for the jobs before it
_START_SECONDS = 60.0  # for starting a process with a large tokenizer on a busy machine
_KEPT, _KEPT_SIZE = 256, 64 * 1024  # verdicts on grammars, and the most characters of a grammar whose verdict is kept
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TZ")  # not those that may hold secrets


class SandboxBusy(Exception):
    """Too many jobs wait, or the machine is too busy."""


class Worker:
    """A process that does jobs one after another. It is started for the first job, and again after a job that ended it."""

    def __init__(self, setup: Job):
        self._setup, self._turn = setup, asyncio.Lock()
        self._process: Process | None = None

    async def do(self, job: Job) -> Reply:
        """The reply to a job; for a job that ended the process, why it did. Raises SandboxBusy."""
        try:
            await asyncio.wait_for(self._turn.acquire(), _TURN_SECONDS)
        except TimeoutError:
            raise SandboxBusy from None
        task = asyncio.create_task(self._exchange(pack(job)))
        task.add_done_callback(lambda _: self._turn.release())
        reply = await asyncio.shield(task)  # the reply must be read, even if the caller is cancelled
        if "busy" in reply:
            raise SandboxBusy
        return reply

    async def _exchange(self, frame: bytes) -> Reply:
        try:
            return await asyncio.wait_for(self._ask(frame), _START_SECONDS + CLOCK_SECONDS)
        except TimeoutError:
            self._kill()
            await self._end()
            return ended_by(signal.SIGALRM)
        except (OSError, EOFError):
            return ended_by(-await self._end())

    async def _ask(self, frame: bytes) -> Reply:
        process = self._process
        if process is None:
            process = self._process = await _start(self._setup)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(frame)
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(4), "big")
        if size > MAX_FRAME:
            self._kill()
            raise EOFError
        return json.loads(await process.stdout.readexactly(size))

    async def _end(self) -> int:
        """Wait for the process to end, and return its exit status; 0 if there is no process."""
        process, self._process = self._process, None
        if process is None:
            return 0
        await process.communicate()
        return await process.wait()

    def _kill(self) -> None:
        """Kill the process. `Process.kill` may reap the process itself, so that asyncio misses its exit status."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the process, with any job under way."""
        self._kill()
        async with self._turn:
            await self._end()


async def _start(setup: Job) -> Process:
    """Start a process in a session of its own, so that Ctrl-C in the server's terminal does not end it, without secrets."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    command = (sys.executable, "-P", "-m", worker.__name__)
    process = await create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(pack(setup))
    return process


class Sandbox:
    """The sandbox of one model: a process that renders its template, and one that tries grammars."""

    def __init__(self, text: TextSide):
        tokenizer = text.tokenizer
        size = max(tokenizer.get_vocab().values()) + 1
        made_of = {"tokenizer": tokenizer.to_str(), "vocab_size": size, "stop_tokens": sorted(text.stop_tokens)}
        self._renderer = Worker({**_RENDERING, "template": text.template, "special": text.special})
        self._prover = Worker({**_PROVING, "tokenizer": made_of})
        self._verdicts: OrderedDict[bytes, Reply] = OrderedDict()

    async def render(self, messages: list[dict[str, Any]], variables: dict[str, Any] | None = None) -> str:
        """The text of a conversation. Raises SandboxBusy, and TenfoldError if the template refuses, fails or takes too long."""
        reply = await self._renderer.do({"messages": messages, "more": {"add_generation_prompt": True, **(variables or {})}})
        return _text(reply, "The model's chat template failed on this conversation")

    async def prove(self, source: GrammarSource) -> str:
        """A grammar that the engine can compile. Raises SandboxBusy, and TenfoldError if the source cannot be used."""
        subject = f"The {source.kind} cannot be used"
        if len(source.text) > MAX_GRAMMAR:
            raise TenfoldError(f"{subject}: it has {len(source.text)} characters, and at most {MAX_GRAMMAR} are taken.")
        digest = hashlib.sha256(repr(source).encode()).digest()
        reply = self._verdicts.get(digest) or await self._prover.do(source._asdict())
        if len(reply.get("text", "")) <= _KEPT_SIZE:
            self._verdicts[digest] = reply
            self._verdicts.move_to_end(digest)
            if len(self._verdicts) > _KEPT:
                self._verdicts.popitem(last=False)
        return _text(reply, subject)

    async def stop(self) -> None:
        """End both processes."""
        await self._renderer.stop()
        await self._prover.stop()


async def check_template(text: TextSide) -> None:
    """Raises TenfoldError if a model's template cannot be rendered; a template that refuses the trial conversation is fine."""
    sandbox = Sandbox(text)
    try:
        await sandbox.render([{"role": "user", "content": "Hello"}])
    except TemplateRefusal:
        pass
    except SandboxBusy:
        raise TenfoldError("The machine is too busy to try the model's chat template: load the model again later.") from None
    finally:
        await sandbox.stop()


def _text(reply: Reply, subject: str) -> str:
    """The text in a reply. Raises TenfoldError, for a job that ended with `subject` and the reason, if it has none."""
    if "ended" in reply:
        raise TenfoldError(f"{subject}: {reply['ended']}.")
    if "refused" in reply:
        raise TemplateRefusal(reply["refused"])
    if "error" in reply:
        raise TenfoldError(reply["error"])
    return reply["text"]
