"""The one exception that a person is meant to read, and the nearest-name suggestion it often carries."""

import difflib
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_SECRET = re.compile(
    r"(\w://[^\s:/@]*:)\S*(?=@)"  # the password of a URL
    r"|([?&]\w*(?:passw|pwd|secret|token)\w*=)[^\s&]*"  # one in its query
    r"|(\btf-)[\w-]{43}",  # the key of a server
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """The text with `***` in place of the passwords of URLs and the keys of servers."""
    return _SECRET.sub(lambda found: f"{found[found.lastindex or 0]}***", text)


class TenfoldError(Exception):
    """One sentence: what is wrong, where, and what to do. The command line prints it without a trace, and without secrets."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class NotInstalled(TenfoldError):
    """An optional package is missing; the sentence says how to install it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


@contextmanager
def when_stopped(sentence: str) -> Iterator[None]:
    """Where Ctrl-C or a signal ends the block, the command's last line adds `sentence`: what is kept, and how to go on.

    Of nested blocks the innermost one's sentence is shown.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        vars(stop).setdefault("sentence", sentence)
        raise


def stopped(stop: BaseException) -> tuple[signal.Signals, str]:
    """The signal behind a KeyboardInterrupt that reached the top, and what `when_stopped` says of it ("" for nothing).

    Both are also looked for in the exceptions that led to this one: Python replaces an exception raised within a codec by a new
    one with other arguments, and a second signal may come while the first is being handled.
    """
    chain = [stop]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    by = [argument for each in chain for argument in each.args if isinstance(argument, signal.Signals)]
    said = [vars(each)["sentence"] for each in chain if "sentence" in vars(each)]
    return (by or [signal.SIGINT])[0], (said or [""])[0]
