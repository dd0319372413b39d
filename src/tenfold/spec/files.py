"""Files and folders that are written atomically (complete or not at all), and locks for work that only one process may do."""

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

PRIVATE = 0o600  # file mode: readable and writable by the owner only
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of flock on network file systems mounted without locks


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a TenfoldError that names `path`: a full disk, a read-only folder, no permission.

    If the block fails on another file, such as one that it reads, the error names that file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM and isinstance(error.filename, str) and not _belongs(Path(error.filename), path):
            raise TenfoldError(f"{error.filename}: {reason(error)}.") from None
        raise TenfoldError(f"{path} could not be written: {reason(error)}.") from None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the block's failure to read `path`, or to decode it as text or CSV, into a TenfoldError that names it."""
    try:
        yield
    except OSError as error:
        raise TenfoldError(f"{path} could not be read: {reason(error)}.") from None
    except (UnicodeDecodeError, csv.Error):
        raise TenfoldError(f"{path} is not a text file: give one in UTF-8.") from None


def _belongs(file: Path, path: Path) -> bool:
    """Whether `file` is `path`, a folder above it, a file or folder in it, or its scratch file."""
    file, path = file.absolute(), path.absolute()
    return path.is_relative_to(file) or file.is_relative_to(path) or str(file).startswith(str(_beside(path, "")))


def _beside(path: Path, ending: str) -> Path:
    """A hidden path beside `path`, for its scratch file or its lock."""
    return path.with_name(f".{path.name}.{ending}")


def reason(error: OSError) -> str:
    """What went wrong, in words that can end a sentence."""
    if error.errno in NO_ROOM or (error.errno is None and "requested and" in str(error)):  # NumPy's message
        return "the disk is full; free some room"
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def make_folder(path: Path) -> Path:
    """Make a folder and its parents if they do not exist, and return it. Raises TenfoldError if it cannot be made."""
    with writable(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def make_private(path: Path) -> None:
    """Create an empty file that only its owner can read, unless there is one. Raises TenfoldError if it cannot be made."""
    with writable(path):
        os.close(os.open(path, os.O_CREAT, PRIVATE))


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a scratch file beside `path`, with the same suffix, which replaces `path` when the block ends without an error.

    If the process is killed, `path` is the old file or the new one; the next writer of `path` reuses the scratch file. Several
    writers of one path take turns. Only its owner can ever read a `private` file. A path that is no regular file, such as
    /dev/stdout, is written directly. Raises TenfoldError if it cannot be written.
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
                scratch.chmod(mode)  # some libraries replace the scratch file by one with mode 0600
                _to_disk(scratch)
                scratch.replace(target)
            except BaseException:
                with suppress(OSError):
                    scratch.unlink(missing_ok=True)
                raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises TenfoldError if it cannot be written."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises TenfoldError if it cannot be written."""
    write_text(path, strict_json(value, indent=1) + "\n")


def append_line(path: Path, value: dict[str, Any], *, to_disk: bool = False) -> None:
    """Append a JSON object to a file of JSON lines. If the last line is incomplete (a kill, a full disk), a new line is begun.

    `to_disk` flushes the file to disk. Raises TenfoldError if it cannot be written.
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
    """The objects in a file of JSON lines, without incomplete lines (a kill, a full disk). An empty list if there is no file."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if the file is missing, unreadable or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def atomic_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a scratch folder that becomes `out` when the block ends without an error, and is deleted otherwise.

    A scratch folder that a killed process left is deleted first. Raises TenfoldError if `out` is not empty and `replace` is not
    set, if another process is making it, or if it cannot be written.
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
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError if it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _to_disk(file: Path) -> None:
    """Flush a file to disk. Some network file systems report only here that they are full."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders atomically. If the system cannot, delete the second one and return False."""
    with suppress(AttributeError):
        at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if not ctypes.CDLL(None).renameat2(at, os.fsencode(one), at, os.fsencode(other), exchange):
            return True
    shutil.rmtree(other)
    return False


@contextmanager
def one_at_a_time(lock: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `lock` while the block runs. It is deleted afterwards, and free again if this process dies.

    If another process holds it, `wait` for that process or raise TenfoldError, which names it; `doing` completes the sentence
    "Another process is ...".
    """
    with writable(lock.absolute().parent):
        try:
            stream = _hold(lock, wait)
        except BlockingIOError:
            raise TenfoldError(f"Another process is {doing}{_holder(lock)}: wait for its end, or choose another folder.") from None
    with stream:
        try:
            with suppress(OSError):  # on a full disk the lock works without this description
                stream.write(json.dumps(_this_process()).encode())
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)


def holder(lock: Path) -> dict[str, Any] | None:
    """The process that holds `lock` by `one_at_a_time`: its `process` id, `host`, `command` and start (`since`).

    An empty dict if it has not written these yet; None if no process holds the lock, or the file system has no locks.
    """
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        with suppress(OSError, ValueError):
            return dict(json.loads(lock.read_text()))
        return {}
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return None


def _hold(file: Path, wait: bool, mode: int = 0o666) -> BinaryIO:
    """Open `file`, empty and locked by this process. Raises BlockingIOError if another holds it and `wait` is not set."""
    while True:
        with ExitStack() as opened:
            handle = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, mode)
            stream = opened.enter_context(os.fdopen(handle, "ab", buffering=0))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            # The previous holder may have deleted or renamed the file between open and flock: then the name is gone, or belongs to
            # another file, and the lock must be taken again.
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
