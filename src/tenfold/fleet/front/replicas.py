"""The replicas behind a front, and the choice of one for each request.

A request goes to the replica with the fewest requests under way; of several such, to the one that was sent the fewest so far. A
request of a conversation goes to the replica that had its beginning before, whose prefix cache has the keys and values, unless that
replica's load exceeds a factor of the mean. The bound is that of Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded
Loads, arXiv 1608.01350; new conversations go to the least loaded replica rather than by a hash, which would spread them less
evenly.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec
from anyio import CancelScope

LOOK_S = 0.1  # seconds between two reads of the file with the replicas
CHECKS = 3  # failed health checks in a row after which a replica gets no requests
LONGEST_REST_S = 30.0  # the longest time for which a failed replica is left out
HOMES = 2**16  # beginnings of conversations whose replica is remembered
BEGINNING = 256  # bytes of a prompt, or of each message, that identify a conversation; also the most messages that are read


@dataclass(eq=False)
class Replica:
    """One server. `running` counts its requests under way, `sent` all that it ever got; `drains` where it left the file."""

    url: str
    running: int = 0
    sent: int = 0
    drains: bool = False
    missed: int = 0  # failed health checks in a row
    rest_s: float = 0.0
    rests_until: float = 0.0
    waiting: set[CancelScope] = field(default_factory=set)  # requests that wait for their answers to begin

    @property
    def is_well(self) -> bool:
        """Whether requests may be sent to it."""
        return not self.drains and self.missed < CHECKS and time.monotonic() >= self.rests_until

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self.running += 1
        self.sent += 1
        try:
            yield
        finally:
            self.running -= 1

    def rest(self) -> None:
        """Leave it out for one second, or twice as long as the last time if no request has succeeded since (exponential
        backoff)."""
        self.rest_s = min(LONGEST_REST_S, 2 * self.rest_s or 1.0)
        self.rests_until = time.monotonic() + self.rest_s

    def check(self, answer: int | None) -> None:
        """Count a health check: `answer` is its status, or None where there was no answer, which may happen `CHECKS` - 1 times in a
        row. Any other status than 200 takes the replica out at once.

        When the replica fails, requests that still wait for its answers are cancelled, so that they go to other replicas.
        """
        self.missed = 0 if answer == 200 else CHECKS if answer else self.missed + 1
        if self.missed >= CHECKS:
            for scope in self.waiting:
                scope.cancel()


class Replicas:
    """The replicas in a front's file, and removed ones that still finish answers.

    A replica keeps its conversations up to `load_factor` times the mean load. None turns affinity off: every request goes to the
    least loaded replica.
    """

    def __init__(self, load_factor: float | None):
        self.all: list[Replica] = []
        self._load_factor = load_factor
        self._homes: OrderedDict[bytes, Replica] = OrderedDict()  # by a hash of the beginning, the least recently used first

    def set(self, urls: Iterable[str]) -> None:
        """Set the addresses to those of the file; replicas that are not among them drain."""
        known = {replica.url: replica for replica in self.all if not replica.drains}
        kept = [known.pop(url) if url in known else Replica(url) for url in dict.fromkeys(urls)]
        for replica in known.values():
            replica.drains = True
        self.all = kept + [replica for replica in self.all if replica.drains]
        self.forget()

    def forget(self) -> None:
        """Drop replicas that drain and have finished all answers."""
        self.all = [replica for replica in self.all if replica.running or not replica.drains]

    def choose(self, beginning: bytes | None, without: Collection[Replica] = ()) -> Replica | None:
        """The replica for a request with this beginning; None where no replica is healthy."""
        well = [replica for replica in self.all if replica.is_well and replica not in without]
        if not well:
            return None
        fewest = min(well, key=lambda replica: (replica.running, replica.sent))
        if beginning is None or self._load_factor is None:
            return fewest
        key = blake2b(beginning, digest_size=16).digest()
        home = self._homes.pop(key, None)
        bound = math.ceil(self._load_factor * (sum(replica.running for replica in well) + 1) / len(well))
        if home is None or home not in well or home.running >= bound:
            home = fewest
        self._homes[key] = home
        if len(self._homes) > HOMES:
            self._homes.popitem(last=False)
        return home


class _Turn(msgspec.Struct):
    role: str = "user"


class _Asked(msgspec.Struct):
    """The fields at the beginning of a prompt, in the bodies of completions, chat completions, messages and responses."""

    model: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: list[msgspec.Raw] = []
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


def beginning_of(body: bytes) -> bytes | None:
    """A key for the requests of one conversation: the model and the beginnings of all messages up to the user's first one, or the
    beginning of a prompt. None for a prompt so short that caching it saves nothing, and for any other body."""
    try:
        asked = msgspec.json.decode(body, type=_Asked)
        text = bytes(asked.prompt) or bytes(asked.input)
        turns = asked.messages
        if asked.input and not asked.prompt and text.startswith(b"["):
            turns = msgspec.json.decode(text, type=list[msgspec.Raw])
        roles = [msgspec.json.decode(turn, type=_Turn).role for turn in turns[:BEGINNING]]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if roles:
        text = b""
        turns = turns[: roles.index("user") + 1] if "user" in roles else turns
    elif len(text) <= BEGINNING:
        return None
    parts = [asked.model, asked.system, asked.instructions, text, *turns]
    return b"\0".join(bytes(part)[:BEGINNING] for part in parts)
