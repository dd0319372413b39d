"""Atomic writing of files and folders (complete, or not there at all), and locks for work that one process at a time may do."""

import csv
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from tenfold.spec.errors import TenfoldError, when_stopped, without_secrets
from tenfold.spec.strict_json import strict_json

PRIVATE = 0o600
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what flock says on a network file system mounted without locks


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raises TenfoldError that names `path` where the block cannot write: a full disk, a read-only folder, no permission.

    Where the block fails on another file, such as one that it reads, the error names that file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM and isinstance(error.filename, str) and not _belongs(Path(error.filename), path):
            raise TenfoldError(f"{error.filename}: {reason(error)}.") from None
        raise TenfoldError(f"{path} could not be written: {reason(error)}.") from None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises TenfoldError that names `path` where the block cannot read it, or it holds no text."""
    try:
        yield
    except OSError as error:
        raise TenfoldError(f"{path} could not be read: {reason(error)}.") from None
    except (UnicodeDecodeError, csv.Error):
        raise TenfoldError(f"{path} holds no text: give a text file in UTF-8.") from None


def _belongs(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, a folder above it, something below it, or its scratch file."""
    file, path = file.absolute(), path.absolute()
    return path.is_relative_to(file) or file.is_relative_to(path) or str(file).startswith(str(_beside(path, "")))


def _beside(path: Path, ending: str) -> Path:
    """The hidden name beside `path` under which it is written until it is finished."""
    return path.with_name(f".{path.name}.{ending}")


def reason(error: OSError) -> str:
    """What went wrong, as the end of a sentence."""
    if error.errno in NO_ROOM or (error.errno is None and "requested and" in str(error)):  # NumPy's message
        return "the disk is full; free some room"
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
        os.close(os.open(path, os.O_CREAT, PRIVATE))


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A scratch file beside `path`, of the same ending, that takes its place when the block ends well.

    A kill leaves the old file or the new one, and a scratch file that the next writer of `path` uses again. Writers of one
    path take turns. A private file can be read by its owner alone, from its creation on. What is no file, such as /dev/stdout,
    is written as it is. Raises TenfoldError where it cannot be written.
    """
    make_folder(path.parent)
    with writable(path):
        if path.exists() and not path.is_file():
            yield path
            return
        target = Path(os.path.realpath(path))
        scratch = _beside(target, f"new{target.suffix}")
        with _hold(scratch, wait=True, mode=PRIVATE if private else 0o666):
            try:
                if target.exists() and not private:
                    shutil.copymode(target, scratch)
                mode = scratch.stat().st_mode
                yield scratch
                scratch.chmod(mode)  # of a library that puts a private file of its own in its place
                _to_disk(scratch)
                scratch.replace(target)
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


def append_line(path: Path, value: dict[str, Any], *, to_disk: bool = False) -> None:
    """Add a JSON object to a file of lines, on a line of its own though a kill or a full disk tore the one before.

    Raises TenfoldError where it cannot be written.
    """
    with writable(path), path.open("a+b") as stream:
        torn = False
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            torn = stream.read(1) != b"\n"
        stream.write(b"\n" * torn + strict_json(value).encode() + b"\n")
        if to_disk:
            stream.flush()
            os.fsync(stream.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines, without a line that a kill or a full disk tore; none where there is no file."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def whole_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the block ends well, and is deleted when it does not.

    What a killed process left of an earlier scratch folder of `out` is deleted first. Raises TenfoldError where `out` holds
    something already and is not to be replaced, another process makes it, or it cannot be written.
    """
    if out.resolve() == Path.cwd():
        raise TenfoldError(f"{out} is the folder that this command runs in: choose another name.")
    make_folder(out.parent)
    scratch = _beside(out, "new")
    with one_at_a_time(_beside(out, "lock"), f"making {out}"), writable(out):
        if out.is_file() or (not replace and out.is_dir() and any(out.iterdir())):
            raise TenfoldError(f"{out} is there already: choose another name, or delete it.")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            with when_stopped(f"{out} was not made; the same command makes it anew"):
                yield scratch
            for file in scratch.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            if not (out.exists() and _exchange(scratch, out)):
                scratch.replace(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_disk(file: Path) -> None:
    """Flush a file to disk. A network file system may report only here that it is full."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step. Where the system cannot, delete the second one and return False."""
    with suppress(AttributeError):
        at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if not ctypes.CDLL(None).renameat2(at, os.fsencode(one), at, os.fsencode(other), exchange):
            return True
    shutil.rmtree(other)
    return False


@contextmanager
def one_at_a_time(lock: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock` while the block runs; it is gone afterwards, and free again when this process dies.

    Raises TenfoldError, naming the other process, where another holds it and this one does not `wait` for its end; `doing`
    completes "Another process is ...".
    """
    with writable(lock.absolute().parent):
        try:
            stream = _hold(lock, wait)
        except BlockingIOError:
            raise TenfoldError(f"Another process is {doing}{_holder(lock)}: wait for its end, or choose another folder.") from None
    with stream:
        try:
            with suppress(OSError):  # a full disk: the lock holds without these words
                stream.write(json.dumps(_this_process()).encode())
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)


def holder(lock: Path) -> dict[str, Any] | None:
    """The `process`, `host` and `command` of the process that holds `lock` by `one_at_a_time`; None where no process holds it."""
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        with suppress(OSError, ValueError):
            return dict(json.loads(lock.read_text()))
        return {}
    return None


def _hold(file: Path, wait: bool, mode: int = 0o666) -> BinaryIO:
    """The file, empty and held by this process. Raises BlockingIOError where another holds it."""
    while True:
        with ExitStack() as opened:
            handle = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, mode)
            stream = opened.enter_context(os.fdopen(handle, "ab", buffering=0))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            # The previous holder may have deleted or renamed the file between open and flock: then the name is gone, or is that
            # of another file, and the lock must be taken again.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                    stream.truncate(0)
                    if mode == PRIVATE:
                        os.fchmod(handle, mode)  # a killed writer may have left the file with another mode
                    opened.pop_all()
                    return stream


def _this_process() -> dict[str, Any]:
    command = without_secrets(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}


def _holder(lock: Path) -> str:
    try:
        who = json.loads(lock.read_text())
        return f" (process {who['process']} on {who['host']}, `{who['command']}`, since {who['since']})"
    except (OSError, ValueError, KeyError):
        return ""
