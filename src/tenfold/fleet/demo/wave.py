"""A day of requests, compressed to seconds and drawn at random, and forecasts of it from the days before.

The day begins at its quietest hour. The busiest hour has 2.2 times its rate, as in a real service (ServeGen's m-small). Days vary
by about 8 % and hours by 5 % (standard deviations).
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

PEAK = slice(10, 14)  # the peak hours of the day
SWING = 2.2


def draw_days(count: int, busiest: float, seed: int, swing: float = SWING) -> list[list[float]]:
    """Rates of `count` days by hour. A usual day's peak is `busiest` requests/s, `swing` times the rate of its quietest hour."""
    draw = np.random.default_rng(seed)
    usual = 1 - (1 - 1 / swing) * (1 + np.cos(2 * math.pi * np.arange(24) / 24)) / 2
    return (busiest * usual * np.exp(draw.normal(0, 0.08, (count, 1)) + draw.normal(0, 0.05, (count, 24)))).tolist()


def draw_arrivals(day: Sequence[float], hour_s: float, seed: int) -> list[float]:
    """The times of requests in seconds since the day's beginning: a Poisson process with each hour's rate."""
    draw = np.random.default_rng(seed)
    hours = [hour + draw.random(draw.poisson(rate * hour_s)) for hour, rate in enumerate(day)]
    return sorted((np.concatenate(hours) * hour_s).tolist())


def forecast_peak(history: Sequence[Sequence[float]], hour_s: float) -> tuple[float, ...]:
    """Quantiles of the number of requests in the peak hours: yesterday's number, with the spread of changes from day to day and of
    Poisson counts."""
    sums = [sum(day[PEAK]) * hour_s for day in history]
    return around(sums[-1], math.sqrt(float(np.mean(np.diff(np.log(sums)) ** 2)) + 1 / sums[-1]))


def demand_at(passed: float, arrivals: Sequence[float], yesterday: Sequence[float], hour_s: float, per_slot: float) -> Demand:
    """The demand `passed` seconds after the day's beginning: the rate of the last two hours, and yesterday's rates from this hour
    on as the forecast."""
    lately = sum(passed - 2 * hour_s < t <= passed for t in arrivals) / (2 * hour_s)
    return Demand(lately, tuple(yesterday[int(passed / hour_s) :]), hour_s, passed % hour_s, per_slot)


class Wave:
    """Sends requests at their times, and appends each answer to `path`; requests that have an answer there are not sent again.

    Times are by the fleet's `clock`. `body` makes the body of a request from its number. An answer's `late_s` is how much later
    than planned its request was sent.
    """

    def __init__(
        self, path: Path, arrivals: Sequence[float], body: Callable[[int], dict[str, Any]], front: Front,
        clock: Callable[[], float],
    ):  # fmt: skip
        self._path, self._arrivals, self._body, self._front = path, arrivals, body, front
        self._left = set(range(len(arrivals))) - {row["request"] for row in read_lines(path)}
        self._lock, self._pool, self._sent = threading.Lock(), ThreadPoolExecutor(128), list[Future[None]]()
        # The wave continues with the first request that has no answer.
        self._clock, self._began = clock, clock() - arrivals[min(self._left, default=-1)]
        threading.Thread(target=self._send, args=(sorted(self._left),), daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether all requests have answers. Raises the error of a request that failed."""
        for sent in list(self._sent):
            if sent.done():
                sent.result()
        return not self._left

    def passed(self, now: float) -> float:
        """The seconds since the day's beginning."""
        return max(0.0, now - self._began)

    def close(self) -> None:
        """Send no further requests."""
        self._front.ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, numbers: list[int]) -> None:
        for i in numbers:
            time.sleep(max(0.0, self._began + self._arrivals[i] - self._clock()))
            if not self._front.ended:
                self._sent.append(self._pool.submit(self._ask, i))

    def _ask(self, i: int) -> None:
        late_s = self._clock() - self._began - self._arrivals[i]
        answer = self._front.ask(self._body(i))
        row = {"request": i, "came": self._arrivals[i], "late_s": late_s, **asdict(answer)}
        with self._lock:
            append_line(self._path, row)
            self._left.remove(i)
