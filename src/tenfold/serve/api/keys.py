"""API keys, stored as hashes, and the rate limit of each."""

import hashlib
import hmac
import json
import secrets
import time
from collections import defaultdict, deque
from pathlib import Path

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json
from tenfold.spec.versions import require_version

VERSION = 2  # of the file
_OPERATOR = "operator:"


class Keys:
    """A JSON file of names and SHA-256 hashes of keys. The keys are random 256-bit numbers, so a plain hash is enough.

    The hash of an operator's key begins with `operator:`.
    """

    def __init__(self, hashes: dict[str, str], requests_per_minute: int = 0):
        self.operators = frozenset(name for name, known in hashes.items() if known.startswith(_OPERATOR))
        self._hashes = {name: known.removeprefix(_OPERATOR) for name, known in hashes.items()}
        self._limit = requests_per_minute
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)

    @classmethod
    def read(cls, file: Path, requests_per_minute: int = 0) -> "Keys":
        """The keys of a file; none if it does not exist. Raises TenfoldError if it is damaged."""
        return cls(_read(file), requests_per_minute)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, key: str) -> str | None:
        """The name that a key belongs to."""
        digest = _digest(key)
        found = None
        for name, known in self._hashes.items():  # compare with all, so that timing reveals nothing
            found = name if hmac.compare_digest(known, digest) else found
        return found

    def wait(self, owner: str) -> float:
        """Count a request of `owner`: 0 if it is allowed, else the seconds until the next one is."""
        if not self._limit:
            return 0
        now, recent = time.monotonic(), self._recent[owner]
        while recent and recent[0] < now - 60:
            recent.popleft()
        if len(recent) >= self._limit:
            return recent[0] + 60 - now
        recent.append(now)
        return 0


def make_key(file: Path, name: str, operator: bool = False) -> str:
    """Add a key for `name` to `file` and return it. Only its hash is stored. An operator may swap models, too."""
    known = _read(file)
    key = f"tf-{secrets.token_urlsafe(32)}"
    write_json(file, {"version": VERSION, "keys": {**known, name: _OPERATOR * operator + _digest(key)}})
    file.chmod(0o600)
    return key


def _read(file: Path) -> dict[str, str]:
    """The hash of each name. A file of version 1 has nothing else."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
        version = found["version"] if isinstance(found.get("version"), int) else 1
        require_version(version, (1, VERSION), file, "make a new one with `tenfold serve-key`")
        return found if version == 1 else dict(found["keys"])
    except (ValueError, TypeError, AttributeError, KeyError):
        raise TenfoldError(f"{file} is not a file of keys: make a new one with `tenfold serve-key`.") from None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
