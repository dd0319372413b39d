"""A wave of requests: a day of demand in seconds, drawn with known structure, and what the days before say of it.

The day begins at its quietest, and swings 2.2 times between its quietest and busiest hour, as a real service's does (ServeGen's
m-small); days differ in height by some 8 %, hours by 5 %.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.fleet.front.control import Front
from tenfold.fleet.slots.slots import Demand
from tenfold.spec.files import append_line, read_lines
from tenfold.spec.forecasts import around

PEAK = slice(10, 14)  # hours
SWING = 2.2


def draw_days(count: int, busiest: float, seed: int, swing: float = SWING) -> list[list[float]]:
    """Rates by the hour, `busiest` at the height of the usual day, which is `swing` times its quietest hour."""
    draw = np.random.default_rng(seed)
    usual = 1 - (1 - 1 / swing) * (1 + np.cos(2 * math.pi * np.arange(24) / 24)) / 2
    return (busiest * usual * np.exp(draw.normal(0, 0.08, (count, 1)) + draw.normal(0, 0.05, (count, 24)))).tolist()


def draw_arrivals(day: Sequence[float], hour_s: float, seed: int) -> list[float]:
    """When requests come, in seconds from the wave's start: a Poisson process at each hour's rate."""
    draw = np.random.default_rng(seed)
    hours = [hour + draw.random(draw.poisson(rate * hour_s)) for hour, rate in enumerate(day)]
    return sorted((np.concatenate(hours) * hour_s).tolist())


def forecast_peak(history: Sequence[Sequence[float]], hour_s: float) -> tuple[float, ...]:
    """Quantiles of the requests in the peak hours: as yesterday, as sure as one day was like the day before, and as counts are."""
    sums = [sum(day[PEAK]) * hour_s for day in history]
    return around(sums[-1], math.sqrt(float(np.mean(np.diff(np.log(sums)) ** 2)) + 1 / sums[-1]))


def demand_at(passed: float, arrivals: Sequence[float], yesterday: Sequence[float], hour_s: float, per_slot: float) -> Demand:
    """What came in two hours, `passed` seconds into the wave, and what yesterday was like from this hour on."""
    lately = sum(passed - 2 * hour_s < t <= passed for t in arrivals) / (2 * hour_s)
    return Demand(lately, tuple(yesterday[int(passed / hour_s) :]), hour_s, passed % hour_s, per_slot)


class Wave:
    """Sends requests at their times, and writes each answer to `path`; those that stand there are not sent again. Times are by the
    fleet's `clock`. `body` is what a request asks by its number; `late_s` of an answer is how long its request waited here."""

    def __init__(
        self, path: Path, arrivals: Sequence[float], body: Callable[[int], dict[str, Any]], front: Front,
        clock: Callable[[], float],
    ):  # fmt: skip
        self._path, self._arrivals, self._body, self._front = path, arrivals, body, front
        self._left = set(range(len(arrivals))) - {row["request"] for row in read_lines(path)}
        self._lock, self._pool, self._sent = threading.Lock(), ThreadPoolExecutor(128), list[Future[None]]()
        self._clock, self._began = clock, clock() - arrivals[min(self._left, default=-1)]  # from the first that has no answer
        threading.Thread(target=self._send, args=(sorted(self._left),), daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether all have answers. Raises what kept one from it."""
        for sent in list(self._sent):
            if sent.done():
                sent.result()
        return not self._left

    def passed(self, now: float) -> float:
        """Seconds of the wave that are over."""
        return max(0.0, now - self._began)

    def close(self) -> None:
        """Send no more."""
        self._front.ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, numbers: list[int]) -> None:
        for i in numbers:
            time.sleep(max(0.0, self._began + self._arrivals[i] - self._clock()))
            if not self._front.ended:
                self._sent.append(self._pool.submit(self._ask, i))

    def _ask(self, i: int) -> None:
        late_s = self._clock() - self._began - self._arrivals[i]
        answer = self._front.ask({**self._body(i), "seed": i})
        row = {"request": i, "came": self._arrivals[i], "late_s": late_s, **asdict(answer)}
        with self._lock:
            append_line(self._path, row)
            self._left.remove(i)
