"""A record, beside the ledger, of the demand and power that the controller saw and the demand that it expected.

The console draws it.
"""

import math
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from tenfold.fleet.pools import Policy, Pool, Service, Size

FILE = "demand.jsonl"  # in the fleet's folder
LARGEST = 32 << 20  # bytes at which the file is renamed to `demand.jsonl.1`, replacing an older one
BINS = 10  # rows that are written for each bin of the forecast
UNLIMITED = 10**9  # nodes that are allowed in a pool without a power cap


class SeenService(Struct, frozen=True):
    """Requests/s of a service: those that arrive (`rate`), those that its nodes can answer (`answers`), and the median and the high
    quantile of the forecast for `in_s` seconds later. The last three are None without a forecast."""

    rate: float
    answers: float
    in_s: float | None = None
    middle: float | None = None
    high: float | None = None


class Seen(Struct, frozen=True):
    """A pool at the time `at` of the fleet's clock: busy nodes, nodes that power allows (None without a cap), and its services."""

    at: float
    pool: str
    busy: int
    allowed: int | None
    services: dict[str, SeenService]


class Recorded:
    """A policy that writes each pool to the record before it decides, `BINS` times in each bin of the services' forecasts."""

    def __init__(self, policy: Policy, folder: Path):
        self.policy, self._path = policy, folder / FILE
        self._due: dict[str, float] = {}

    def decide(self, now: float, pool: Pool) -> list[Size]:
        if pool.services and now >= self._due.get(pool.name, -math.inf):
            self._due[pool.name] = now + min(service.bin_s for service in pool.services) / BINS
            self._write(seen(now, pool))
        return self.policy.decide(now, pool)

    def _write(self, row: Seen) -> None:
        """An error, such as a full disk, is ignored: the fleet must be controlled without the record too."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_size > LARGEST:
                self._path.replace(f"{self._path}.1")
            with self._path.open("ab") as stream:
                stream.write(msgspec.json.encode(row) + b"\n")


def seen(now: float, pool: Pool) -> Seen:
    """The row that is written for a pool."""
    allowed = pool.allowed if pool.allowed < UNLIMITED else None
    return Seen(now, pool.name, pool.training + pool.serving, allowed, {one.name: _service(one) for one in pool.services})


def _service(service: Service) -> SeenService:
    rate, answers = float(service.rate), service.nodes * service.per_node
    if min(len(service.middle), len(service.high)) < 2:  # the first value is that of the current bin
        return SeenService(rate, answers)
    return SeenService(rate, answers, service.bin_s - service.into_s, float(service.middle[1]), float(service.high[1]))


def read_seen(folder: Path, most_bytes: int) -> list[Seen]:
    """The rows in the last `most_bytes` of the record; an empty list where there is no record. Incomplete lines are skipped."""
    path, rows, decoder = folder / FILE, list[Seen](), msgspec.json.Decoder(Seen)
    with suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - most_bytes))
        for line in stream.read().splitlines():
            with suppress(msgspec.MsgspecError):
                rows.append(decoder.decode(line))
    return rows
