"""What a controller saw of its pools and what it expected, kept beside the ledger, for pictures of demand and of power."""

import math
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from tenfold.fleet.pools import Policy, Pool, Service, Size

FILE = "demand.jsonl"  # in the folder of the fleet
LARGEST = 32 << 20  # bytes of the file, after which it becomes `demand.jsonl.1` in place of an older one
BINS = 10  # rows to a bin of the forecast
UNLIMITED = 10**9  # nodes, of a pool without a cap of power


class SeenService(Struct, frozen=True):
    """Requests/s of a service: those that come, those that its nodes answer, and the middle and the high quantile of those that
    are expected `in_s` seconds later; None without a forecast."""

    rate: float
    answers: float
    in_s: float | None = None
    middle: float | None = None
    high: float | None = None


class Seen(Struct, frozen=True):
    """A pool at a time of the fleet's clock: its nodes at work, those that power allows (None without a cap), its services."""

    at: float
    pool: str
    busy: int
    allowed: int | None
    services: dict[str, SeenService]


class Recorded:
    """A policy whose pools are written down before it decides, a few times in each bin of their services' forecasts."""

    def __init__(self, policy: Policy, folder: Path):
        self.policy, self._path = policy, folder / FILE
        self._due: dict[str, float] = {}

    def decide(self, now: float, pool: Pool) -> list[Size]:
        if pool.services and now >= self._due.get(pool.name, -math.inf):
            self._due[pool.name] = now + min(service.bin_s for service in pool.services) / BINS
            self._write(seen(now, pool))
        return self.policy.decide(now, pool)

    def _write(self, row: Seen) -> None:
        """A record that cannot be written, on a full disk, does not keep the fleet from being controlled."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size > LARGEST:
                self._path.replace(f"{self._path}.1")
            with self._path.open("ab") as stream:
                stream.write(msgspec.json.encode(row) + b"\n")


def seen(now: float, pool: Pool) -> Seen:
    """What there is to be seen of a pool."""
    allowed = pool.allowed if pool.allowed < UNLIMITED else None
    return Seen(now, pool.name, pool.training + pool.serving, allowed, {one.name: _service(one) for one in pool.services})


def _service(service: Service) -> SeenService:
    rate, answers = float(service.rate), service.nodes * service.per_node
    if min(len(service.middle), len(service.high)) < 2:  # the first is of the bin that is now
        return SeenService(rate, answers)
    return SeenService(rate, answers, service.bin_s - service.into_s, float(service.middle[1]), float(service.high[1]))


def read_seen(folder: Path, most_bytes: int) -> list[Seen]:
    """The rows in the last `most_bytes` of the record; none where there is no record. Torn lines are left out."""
    path, rows, decoder = folder / FILE, list[Seen](), msgspec.json.Decoder(Seen)
    with suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - most_bytes))
        for line in stream.read().splitlines():
            with suppress(msgspec.MsgspecError):
                rows.append(decoder.decode(line))
    return rows
