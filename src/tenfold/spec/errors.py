"""The exception whose message is for the user, the suggestion of the nearest name, and what to say when a command is stopped."""

import difflib
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_SECRET = re.compile(
    r"(\w://[^\s:/@]*:)\S*(?=@)"  # the password in a URL
    r"|([?&]\w*(?:passw|pwd|secret|token)\w*=)[^\s&]*"  # a password or token in the query of a URL
    r"|(\btf-)[\w-]{43}",  # a key of Tenfold's server
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """The text with `***` in place of passwords in URLs and of server keys."""
    return _SECRET.sub(lambda found: f"{found[found.lastindex or 0]}***", text)


class TenfoldError(Exception):
    """An error for the user. The message is one sentence: what is wrong, where, and what to do. Shown without secrets."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class NotInstalled(TenfoldError):
    """An optional package is missing. The message says how to install it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known name closest to `name`, or an empty string if none is close."""
    match = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


@contextmanager
def when_stopped(sentence: str) -> Iterator[None]:
    """If Ctrl-C or a signal ends the block, the command's last line adds `sentence`, which says what is kept and how to go on.

    In nested blocks, the sentence of the innermost one is shown.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        vars(stop).setdefault("sentence", sentence)
        raise


def stopped(stop: BaseException) -> tuple[signal.Signals, str]:
    """The signal that caused a KeyboardInterrupt, and the sentence that `when_stopped` attached to it, or "".

    The exceptions that led to this one are searched too: Python replaces an exception raised within a codec by a new one with other
    arguments, and a second signal may come while the first is being handled.
    """
    chain = [stop]
    while before := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(before)
    by = [argument for each in chain for argument in each.args if isinstance(argument, signal.Signals)]
    said = [vars(each)["sentence"] for each in chain if "sentence" in vars(each)]
    return (by or [signal.SIGINT])[0], (said or [""])[0]
