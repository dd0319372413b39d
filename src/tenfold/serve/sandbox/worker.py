"""The process that compiles grammars and renders chat templates from untrusted sources: it may crash without harm to the server.

    python -m tenfold.serve.sandbox.worker

It reads frames from standard input. The first says what its jobs are: to render a template, or to try grammars for a tokenizer.
Each further frame is a job, to which it writes a frame as the reply. A frame is a length in four bytes, big-endian, and JSON.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import psutil

from tenfold.data.conversations.template import TemplateRefusal, render
from tenfold.serve.sandbox.grammars import GrammarSource, GrammarTokenizer
from tenfold.spec.errors import TenfoldError

MAX_FRAME = 64 * 2**20  # bytes
CLOCK_SECONDS = 60.0  # of wall time for a job on a busy machine; its limit of CPU time is lower
_STACK = 4 * 2**20  # bytes, less than in the engine, so that what compiles here compiles there
Job = dict[str, Any]
Reply = dict[str, str]


def pack(value: Any) -> bytes:
    """A value as a frame."""
    said = json.dumps(value).encode()
    return len(said).to_bytes(4, "big") + said


def ended_by(number: int) -> Reply:
    """The reply to a job whose process was ended by signal `number`.

    It is "busy", for another try, if the job never ran, or exceeded the limit of wall time but not that of CPU time.
    """
    if number <= 0 or number == signal.SIGALRM:
        return {"busy": ""}
    return {"ended": "it takes too long" if number == signal.SIGPROF else "it is nested too deeply or needs too much memory"}


def _read(file: BinaryIO) -> Any:
    """The next frame; None at the end of the input."""
    head = file.read(4)
    return json.loads(file.read(int.from_bytes(head, "big"))) if len(head) == 4 else None


def _confine() -> None:
    """Limit this process to a small stack, no writing of files and no core dumps."""
    for kind, most in ((resource.RLIMIT_STACK, _STACK), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _limit_memory(memory_mib: int) -> None:
    """Limit this process to `memory_mib` more memory than it has."""
    most = psutil.Process().memory_info().vms + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _limit_time(seconds: float) -> None:
    """End this process after so many seconds of CPU time, or CLOCK_SECONDS of wall time; 0 removes the limits."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS if seconds else 0)


def _rendering(setup: Job) -> Callable[[Job], Reply]:
    """A function that renders the template in this process, so that the template is compiled once."""
    _limit_memory(setup["memory_mib"])

    def work(job: Job) -> Reply:
        _limit_time(setup["seconds"])
        try:
            return {"text": render(setup["template"], job["messages"], setup["special"], **job["more"])}
        finally:
            _limit_time(0)

    return work


def _proving(setup: Job) -> Callable[[Job], Reply]:
    """A function that tries a grammar in a fork of this process.

    So the tokenizer is read only once, and a job cannot affect later ones.
    """
    tokenizer = GrammarTokenizer(**setup["tokenizer"])

    def prove(job: Job) -> Reply:
        source = GrammarSource(**job)
        grammar = source.grammar()
        matcher = tokenizer.compile(grammar, source.kind).deep_copy()
        matcher.compute_bitmask()
        if matcher.is_error():
            raise TenfoldError(f"The {source.kind} cannot be used: it is too large to be followed.")
        return {"text": grammar}

    def work(job: Job) -> Reply:
        tokenizer.warm()
        ours, theirs = os.pipe()
        child = os.fork()
        if not child:
            _limit_memory(setup["memory_mib"])
            _limit_time(setup["seconds"])
            with os.fdopen(theirs, "wb") as out:
                out.write(json.dumps(_reply_to(prove, job)).encode())
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as file:
            said = file.read()
        status = os.waitpid(child, 0)[1]
        return ended_by(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else json.loads(said)

    return work


def _reply_to(work: Callable[[Job], Reply], job: Job) -> Reply:
    try:
        return work(job)
    except TemplateRefusal as error:
        return {"refused": str(error)}
    except TenfoldError as error:
        return {"error": str(error)}
    except BaseException as error:  # llguidance's panics are not subclasses of Exception
        return {"ended": f"it fails ({type(error).__name__})"}


def main() -> None:
    files = sys.stdin.buffer, sys.stdout.buffer
    setup = _read(files[0])
    _confine()
    os.nice(setup["niceness"])
    work = _rendering(setup) if "template" in setup else _proving(setup)
    while (job := _read(files[0])) is not None:
        said = pack(_reply_to(work, job))
        if len(said) > MAX_FRAME:
            said = pack({"ended": "it writes too much"})
        files[1].write(said)
        files[1].flush()


if __name__ == "__main__":
    main()
