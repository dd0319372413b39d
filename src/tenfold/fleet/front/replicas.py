"""The replicas behind a front, and the choice of one for each request.

A request goes to the replica with the fewest under way, of several such to the one that was sent the fewest. One of a conversation
goes where its beginning went before, whose keys and values are in that replica's prefix cache, as long as there is room: none has
room beyond a factor of the mean load (the bound of Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads,
arXiv 1608.01350; a hash would spread conversations less evenly than the load does).
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

LOOK_S = 0.1  # between looks at the file that names them
CHECKS = 3  # checks of health without an answer after which a replica is out
LONGEST_REST_S = 30.0
HOMES = 2**16  # beginnings of which it is known where they went
BEGINNING = 256  # bytes of a prompt, or of each message, by which a beginning is known


@dataclass(eq=False)
class Replica:
    """One server. `running` requests were sent there and have no whole answer; `sent` counts all."""

    url: str
    running: int = 0
    sent: int = 0
    drains: bool = False
    missed: int = 0  # checks of health in a row
    rest_s: float = 0.0
    rests_until: float = 0.0
    waiting: set[CancelScope] = field(default_factory=set)  # for an answer to begin

    @property
    def is_well(self) -> bool:
        """Whether requests may go there."""
        return not self.drains and self.missed < CHECKS and time.monotonic() >= self.rests_until

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Count a request as long as the block runs."""
        self.running += 1
        self.sent += 1
        try:
            yield
        finally:
            self.running -= 1

    def rest(self) -> None:
        """Leave it out for a second, and twice as long as before where nothing went well in between."""
        self.rest_s = min(LONGEST_REST_S, 2 * self.rest_s or 1.0)
        self.rests_until = time.monotonic() + self.rest_s

    def check(self, answer: int | None) -> None:
        """Note the status of its answer to a check of health, None where there was none.

        Once it is out, those that wait for an answer to begin go elsewhere.
        """
        self.missed = 0 if answer == 200 else CHECKS if answer else self.missed + 1
        if self.missed >= CHECKS:
            for scope in self.waiting:
                scope.cancel()


class Replicas:
    """Those that stand in a front's file, and those taken out of it that still answer.

    A replica has room up to `load_factor` times the mean load; None sends every request to the one with the fewest.
    """

    def __init__(self, load_factor: float | None):
        self.all: list[Replica] = []
        self._load_factor = load_factor
        self._homes: OrderedDict[bytes, Replica] = OrderedDict()  # by a hash of the beginning, the longest unused first

    def set(self, urls: Iterable[str]) -> None:
        """Take over the addresses of the file: what does not stand there drains."""
        known = {replica.url: replica for replica in self.all if not replica.drains}
        kept = [known.pop(url) if url in known else Replica(url) for url in dict.fromkeys(urls)]
        for replica in known.values():
            replica.drains = True
        self.all = kept + [replica for replica in self.all if replica.drains]
        self.forget()

    def forget(self) -> None:
        """Let go of those that drained and have answered all."""
        self.all = [replica for replica in self.all if replica.running or not replica.drains]

    def choose(self, beginning: bytes | None, without: Collection[Replica] = ()) -> Replica | None:
        """The replica for a request with this beginning, or None where none is well."""
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
    """The fields of completions, chats, messages and responses that a model reads first."""

    model: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: list[msgspec.Raw] = []
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


def beginning_of(body: bytes) -> bytes | None:
    """What the requests of one conversation have in common: the model, and the beginnings of what is said up to the user's first
    words; or the beginning of a text. None for a text so short that a cache of it saves nothing, and for any other body."""
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
