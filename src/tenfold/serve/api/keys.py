"""API keys and their file, the callers of requests, and rate limits."""

import hashlib
import hmac
import json
import secrets
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_file, one_at_a_time
from tenfold.spec.versions import require_version

VERSION = 2  # of the file
_OPERATOR = "operator:"


@dataclass(frozen=True)
class Caller:
    """Who sends a request. On a server without keys everybody is the same operator, who may name users."""

    name: str
    is_operator: bool
    may_name_users: bool = False

    def user(self, named: str | None) -> str:
        """The user to whom a request's data belongs: the user that it names, if the caller may name users, else the caller."""
        return named if named and self.may_name_users else self.name


ANYBODY = Caller("anonymous", is_operator=True, may_name_users=True)  # on a server without keys
STRANGER = Caller("stranger", is_operator=False)  # without a key on a server with keys


class Keys:
    """The keys of a server, as SHA-256 hashes by the names of their owners.

    Keys are random 256-bit numbers, so a plain hash is enough. The hash of an operator's key begins with `operator:`.
    """

    def __init__(self, hashes: dict[str, str]):
        self.operators = frozenset(name for name, known in hashes.items() if known.startswith(_OPERATOR))
        self._hashes = {name: known.removeprefix(_OPERATOR) for name, known in hashes.items()}

    @classmethod
    def read(cls, file: Path) -> "Keys":
        """The keys of a JSON file. Raises TenfoldError if it has none, or is damaged."""
        hashes = _read(file)
        if not hashes:
            raise TenfoldError(f"There are no keys in {file}: make a key with `tenfold serve-key NAME --file {file}`.")
        return cls(hashes)

    def owner(self, key: str) -> str | None:
        """The name of a key's owner; None for an unknown key."""
        digest = _digest(key)
        found = None
        for name, known in self._hashes.items():  # compare with all hashes, so that timing reveals nothing
            found = name if hmac.compare_digest(known, digest) else found
        return found

    def caller(self, key: str) -> Caller | None:
        """The caller with this key; None for an unknown key."""
        owner = self.owner(key)
        return None if owner is None else Caller(owner, owner in self.operators)


class KeyFile:
    """The keys of a file, which is read again when it changes, so that new and revoked keys take effect at once."""

    def __init__(self, file: Path):
        self._file, self._stamp = file, _stamp(file)
        self._keys = Keys.read(file)

    def caller(self, key: str) -> Caller | None:
        """The caller with this key; None for an unknown key, and for every key while the file cannot be read."""
        if (stamp := _stamp(self._file)) != self._stamp:
            self._stamp = stamp
            try:
                self._keys = Keys.read(self._file)
            except TenfoldError as error:
                print(error, file=sys.stderr, flush=True)
                self._keys = Keys({})
        return self._keys.caller(key)


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What changes when a file is changed; None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class Rate:
    """A rate limit: at most `limit` events of each name within `seconds`; 0 is no limit."""

    def __init__(self, limit: int, seconds: float):
        self.limit, self.seconds = limit, seconds
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)

    def wait(self, name: str) -> float:
        """Count an event and return 0 if it is allowed; otherwise return the seconds until one will be."""
        if not self.limit:
            return 0
        now, recent = time.monotonic(), self._recent[name]
        while recent and recent[0] < now - self.seconds:
            recent.popleft()
        if len(recent) >= self.limit:
            return recent[0] + self.seconds - now
        recent.append(now)
        return 0


def make_key(file: Path, name: str, operator: bool = False) -> str:
    """Make a key for `name`, replacing an earlier one in `file`, and return it. Only its hash is stored.

    Raises TenfoldError for an empty or unprintable name, or a damaged file.
    """
    if not name.strip() or not name.isprintable():
        raise TenfoldError(f"{name!r} is not a name for a key: give one of printable characters.")
    key = f"tf-{secrets.token_urlsafe(32)}"
    with _changing(file) as keys:
        keys[name] = _OPERATOR * operator + _digest(key)
    return key


def revoke_key(file: Path, name: str) -> None:
    """Remove the key of `name` from `file`. Raises TenfoldError if there is none."""
    with _changing(file) as keys:
        if keys.pop(name, None) is None:
            raise TenfoldError(f"There is no key of {name!r} in {file}: it has those of {', '.join(keys) or 'nobody'}.")


@contextmanager
def _changing(file: Path) -> Iterator[dict[str, str]]:
    """The hashes by name, to be changed within the context, and then written; one process at a time can do so."""
    with one_at_a_time(file.with_name(f".{file.name}.lock"), f"changing the keys of {file}"):
        keys = _read(file)
        yield keys
        with atomic_file(file, private=True) as scratch:
            scratch.write_text(json.dumps({"version": VERSION, "keys": keys}, indent=1) + "\n")


def _read(file: Path) -> dict[str, str]:
    """The hashes by name. A file of version 1 contains nothing else."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        version = found["version"] if isinstance(found.get("version"), int) else 1
        require_version(version, (1, VERSION), file, "make a new one with `tenfold serve-key`")
        return msgspec.convert(found if version == 1 else found["keys"], dict[str, str])
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise TenfoldError(f"{file} is not a file of keys: make a new one with `tenfold serve-key`.") from None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
