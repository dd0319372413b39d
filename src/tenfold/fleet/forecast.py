"""Forecasts of demand for the next twelve hours as quantiles, fitted with scikit-learn, and their backtest.

For each horizon, a quantile regression of the logarithm of the rate on the last rates, the rate at the same time a day (and a week)
before, and the time of day. A bin is ten minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from tenfold.spec.errors import NotInstalled, TenfoldError

LEVELS = (0.5, 0.9)  # the quantiles `middle` and `high` of a service
AHEAD = (1, 2, 3, 6, 12, 24, 36, 72)  # horizons in bins of ten minutes: up to twelve hours
DAY, WEEK = 144, 1008  # bins
ROWS = 1008  # the newest bins, a week, that a model is fitted to


@dataclass(frozen=True)
class DemandModel:
    """A linear model of the log-rate for each horizon of AHEAD and each quantile level. Rates below `floor` are taken as
    `floor`."""

    levels: tuple[float, ...]
    floor: float
    weekly: bool
    coefficients: np.ndarray  # [horizon, level, feature]

    def quantiles(self, rates: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """Forecast rates [origin, horizon, level]. An origin is the index in `rates` of the last bin that is known."""
        logs, found = np.log(np.maximum(rates, self.floor)), []
        for ahead, coefficients in zip(AHEAD, self.coefficients, strict=True):
            found.append(np.exp(_features(logs, origins, ahead, self.weekly) @ coefficients.T))
        return np.sort(np.stack(found, 1), -1)


def require_scikit_learn() -> None:
    """Raises NotInstalled where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise NotInstalled("A forecast of demand needs scikit-learn: pip install 'tenfold[fleet]'.")


def fit_demand(rates: np.ndarray, levels: tuple[float, ...] = LEVELS) -> DemandModel:
    """Fit to rates in bins of ten minutes. Raises TenfoldError for less than two and a half days of them."""
    require_scikit_learn()
    from sklearn.linear_model import QuantileRegressor

    if len(rates) < 2 * DAY + AHEAD[-1]:
        raise TenfoldError(f"A forecast of demand needs two and a half days of it, not {len(rates) / DAY:.1f}.")
    floor = max(1e-6, 0.01 * float(np.median(rates)))
    logs, weekly = np.log(np.maximum(rates, floor)), len(rates) >= WEEK + 3 * DAY
    rows: list[Any] = []
    for ahead in AHEAD:
        origins = np.arange(WEEK if weekly else DAY, len(rates) - ahead)[-ROWS:]
        x, y = _features(logs, origins, ahead, weekly), logs[origins + ahead]
        rows.append([QuantileRegressor(quantile=q, alpha=1e-4, fit_intercept=False).fit(x, y).coef_ for q in levels])
    return DemandModel(levels, floor, weekly, np.array(rows))


def rolling(rates: np.ndarray, first: int, every: int = DAY, levels: tuple[float, ...] = LEVELS) -> np.ndarray:
    """Forecasts [bin, horizon, level] at every bin from `first` on, by a model that is fitted anew every `every` bins to the bins
    before.

    A quantile above the median that the rates of the last week exceeded too often is scaled up, so that it would have held for them
    (conformal prediction).
    """
    raw = found = np.zeros((0, len(AHEAD), len(levels)))
    for begin in range(first, len(rates), every):
        start = max(0, begin - 4 * WEEK) // DAY * DAY  # at a whole day, since features have the time of day by index
        model = fit_demand(rates[start:begin], levels)
        new = model.quantiles(rates, np.arange(begin, min(begin + every, len(rates))))
        found = np.concatenate([found, new * _correction(rates, raw, begin, levels)])
        raw = np.concatenate([raw, new])
    return found


def _correction(rates: np.ndarray, raw: np.ndarray, now: int, levels: tuple[float, ...]) -> np.ndarray:
    """Factors [horizon, level] by which last week's `raw` forecasts, those of the models alone, should have been multiplied, from
    those whose outcomes are known."""
    factors = np.ones(raw.shape[1:])
    origins = np.arange(max(now - len(raw), now - WEEK), now)
    for i, ahead in enumerate(AHEAD):
        past = origins[origins + ahead < now]
        if len(past) < DAY // 2:
            continue
        ratios = rates[past + ahead][:, None] / raw[past - now + len(raw), i]
        for j, level in enumerate(levels):
            factors[i, j] = max(1.0, np.quantile(ratios[:, j], level)) if level > 0.5 else 1.0
    return factors


def pinball(actual: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> float:
    """The mean pinball (quantile) loss. The last axis of `quantiles` is the level."""
    over = actual[..., None] - quantiles
    level = np.asarray(levels)
    return float(np.maximum(level * over, (level - 1) * over).mean())


def backtest(rates: np.ndarray, first_days: float = 7.0, levels: tuple[float, ...] = LEVELS) -> dict[str, float]:
    """Rolling forecasts of the time after the first days, compared with a seasonal-naive forecast: the rate one day before, with
    the quantiles of its errors until then.

    Returns the pinball loss of both, and the share of rates that were below the highest level. Raises TenfoldError where there are
    too few days.
    """
    first = round(first_days * DAY)
    last = len(rates) - AHEAD[-1]
    if first < 2 * DAY + AHEAD[-1] or last <= first:
        needed = max(first_days, 2.5) + AHEAD[-1] / DAY
        raise TenfoldError(f"A backtest needs more than {needed:g} days of demand, and there are {len(rates) / DAY:.1f}.")
    origins, ahead = np.arange(first, last), np.asarray(AHEAD)
    actual = rates[origins[:, None] + ahead]
    ours = rolling(rates, first, levels=levels)[: last - first]
    floor = max(1e-6, 0.01 * float(np.median(rates[:first])))
    logs = np.log(np.maximum(rates, floor))
    changes = logs[DAY:] - logs[:-DAY]
    days = range(first, last, DAY)
    errors = np.repeat([np.quantile(changes[: day - DAY], levels) for day in days], DAY, 0)[: last - first]
    naive = np.exp(logs[origins[:, None] + ahead - DAY][..., None] + errors[:, None])
    return {
        "pinball": pinball(actual, ours, levels), "pinball_naive": pinball(actual, naive, levels),
        "under_high": float((actual <= ours[..., -1]).mean()), "under_high_naive": float((actual <= naive[..., -1]).mean()),
    }  # fmt: skip


def _features(logs: np.ndarray, origins: np.ndarray, ahead: int, weekly: bool) -> np.ndarray:
    """The regression's features [origin, feature]; none uses a rate after the origin."""
    at = 2 * np.pi * (origins + ahead) / DAY
    before = origins + ahead - DAY
    columns = [logs[origins], logs[origins - 1], logs[origins - 6], logs[before], logs[origins - DAY]]
    columns += [np.ones(len(origins)), np.sin(at), np.cos(at), np.sin(2 * at), np.cos(2 * at)]
    return np.stack([*columns, *([logs[origins + ahead - WEEK], logs[origins - WEEK]] if weekly else [])], -1)
