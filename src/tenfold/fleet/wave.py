"""A wave of requests: a day of demand in seconds, drawn with known structure, and what the days before say of it.

The day begins two hours after its quietest, and swings 2.2 times between its quietest and busiest hour, as a real service's does
(ServeGen's m-small); days differ in height by some 8 %, hours by 5 %.
"""

import json
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.fleet.dispatcher import Dispatcher
from tenfold.fleet.fleet import Demand
from tenfold.spec.forecasts import around

HOURS, PEAK = 24, 4
SENDERS = 128


def draw_days(count: int, busiest: float, seed: int) -> list[list[float]]:
    """Rates by the hour, `busiest` at the height of the usual day."""
    draw = np.random.default_rng(seed)
    usual = 1 - 0.375 * (1 + np.cos(2 * math.pi * (np.arange(HOURS) + 2) / HOURS)) / 1.375
    days = busiest * usual * np.exp(draw.normal(0, 0.08, (count, 1)) + draw.normal(0, 0.05, (count, HOURS)))
    return days.tolist()


def draw_arrivals(day: Sequence[float], hour_s: float, seed: int) -> list[float]:
    """When requests come, in seconds from the wave's start: a Poisson process at each hour's rate."""
    draw = np.random.default_rng(seed)
    shares = [hour + draw.random(draw.poisson(rate * hour_s)) for hour, rate in enumerate(day)]
    return sorted((np.concatenate(shares) * hour_s).tolist())


def peak_hours(history: Sequence[Sequence[float]]) -> slice:
    """The hours in which yesterday was busiest."""
    sums = [sum(history[-1][hour : hour + PEAK]) for hour in range(HOURS - PEAK + 1)]
    first = sums.index(max(sums))
    return slice(first, first + PEAK)


def forecast_peak(history: Sequence[Sequence[float]], hour_s: float) -> tuple[float, ...]:
    """Quantiles of the requests in the peak hours: as yesterday, as sure as one day was like the day before, and as counts are."""
    hours = peak_hours(history)
    sums = [sum(day[hours]) * hour_s for day in history]
    changes = np.diff(np.log(sums))
    return around(sums[-1], math.sqrt(float(np.mean(changes**2)) + 1 / sums[-1]))


class Wave:
    """Sends requests at their times, and writes each answer to `path`; those that stand there are not sent again."""

    def __init__(self, path: Path, arrivals: Sequence[float], body: dict[str, Any], dispatcher: Dispatcher):
        self._path, self._arrivals, self._body, self._dispatcher = path, arrivals, body, dispatcher
        answered = {row["request"] for row in read_answers(path)}
        self._left = [i for i in range(len(arrivals)) if i not in answered]
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(SENDERS)
        self._sent: list[Future[None]] = []
        self.began = math.inf

    def begin(self) -> None:
        """From the first request that has no answer."""
        self.began = time.time() - (self._arrivals[self._left[0]] if self._left else self._arrivals[-1])
        threading.Thread(target=self._send, daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether all have answers. Raises what kept one from it."""
        for sent in self._sent:
            if sent.done():
                sent.result()
        return not self._left

    def demand(self, now: float, yesterday: Sequence[float], hour_s: float, per_slot: float) -> Demand:
        """What came in two hours, and what yesterday was like from this hour on."""
        passed = now - self.began
        lately = sum(passed - 2 * hour_s < t <= passed for t in self._arrivals) / (2 * hour_s)
        return Demand(lately, tuple(yesterday[max(0, int(passed / hour_s)) :]), hour_s, per_slot)

    def close(self) -> None:
        """Send no more."""
        self._dispatcher.ended = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self) -> None:
        for i in list(self._left):
            time.sleep(max(0.0, self.began + self._arrivals[i] - time.time()))
            self._sent.append(self._pool.submit(self._ask, i))

    def _ask(self, i: int) -> None:
        answer = self._dispatcher.ask({**self._body, "seed": i})
        row = {"request": i, "came": self._arrivals[i], **asdict(answer)}
        with self._lock:
            with self._path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            self._left.remove(i)


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The answers of a wave, without a line that a kill tore."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
