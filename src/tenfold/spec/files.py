"""Writing files and folders that are there whole or not at all, and work that one process at a time does in a folder."""

import errno
import fcntl
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from tenfold.spec.errors import TenfoldError, without_secrets
from tenfold.spec.strict_json import strict_json


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raises TenfoldError that names `path` where the block cannot write: a full disk, a read-only folder, no permission."""
    try:
        yield
    except OSError as error:
        raise TenfoldError(f"{path} could not be written: {reason(error)}.") from None


def reason(error: OSError) -> str:
    """What went wrong, as a part of a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def make_folder(path: Path) -> Path:
    """The folder, with those above it. Raises TenfoldError where it cannot be made."""
    with writable(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def make_private(path: Path) -> None:
    """Create an empty file that its owner alone can read, where there is none. Raises TenfoldError where it cannot be made."""
    with writable(path):
        os.close(os.open(path, os.O_CREAT, 0o600))


@contextmanager
def whole_file(path: Path, private: bool = False) -> Iterator[Path]:
    """A scratch file beside `path`, of the same ending, that takes its place when the block ends well.

    A kill leaves the old file or the new one, and a scratch file that the next writer of `path` uses again. A private file
    can be read by its owner alone, from its creation on. Raises TenfoldError where it cannot be written.
    """
    scratch = path.with_name(f".{path.stem}.new{path.suffix}")
    make_folder(path.parent)
    with writable(path):
        try:
            if private:
                scratch.unlink(missing_ok=True)  # a killed writer's
                make_private(scratch)
            yield scratch
            with scratch.open("rb+") as stream:
                os.fsync(stream.fileno())
            scratch.replace(path)
        except BaseException:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole. Raises TenfoldError where it cannot be written."""
    with whole_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole. Raises TenfoldError where it cannot be written."""
    write_text(path, strict_json(value, indent=1) + "\n")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well, and is deleted when it does not.

    A kill leaves a scratch folder that the next maker of `out` deletes first. Raises TenfoldError where `out` holds something
    already, another process makes it, or it cannot be written.
    """
    make_folder(out.parent)
    scratch = out.with_name(f".{out.name}.new")
    with one_at_a_time(out.with_name(f".{out.name}.lock"), f"making {out}"), writable(out):
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise TenfoldError(f"{out} is there already: choose another name, or delete it.")
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            yield scratch
            scratch.replace(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def one_at_a_time(lock: Path, doing: str) -> Iterator[None]:
    """Hold the file `lock` while the block runs; it is gone afterwards, and free again when this process dies.

    Raises TenfoldError, naming the other process, where another holds it; `doing` completes "Another process is ...".
    """
    with writable(lock):
        stream = _locked(lock)
    if stream is None:
        raise TenfoldError(f"Another process is {doing}{_holder(lock)}: wait for its end, or choose another folder.")
    with stream:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _locked(lock: Path) -> TextIO | None:
    """The lock's file, held by this process and saying so; None where another process holds it."""
    while True:
        stream = lock.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return None
        # Its last holder may have deleted the file between the two calls: then the name is another file's, or nobody's.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), lock.stat()):
                break
        stream.close()
    stream.truncate(0)
    command = without_secrets(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}, stream)
    stream.flush()
    return stream


def _holder(lock: Path) -> str:
    try:
        who = json.loads(lock.read_text())
        return f" (process {who['process']} on {who['host']}, `{who['command']}`, since {who['since']})"
    except (OSError, ValueError, KeyError):
        return ""
