"""The forecast: written before the run, never changed, scored when the run ends."""

import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import convert, structs, to_builtins

from tenfold.scale import documents
from tenfold.scale.law import LEVELS, Law
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256
from tenfold.spec.forecasts import Forecast, Learnt, calibrated, of_intervals, outcome, widened
from tenfold.spec.forecasts import forecast as freeze
from tenfold.train.metrics import read_metrics

# Relative spread of a machine's speed from one quarter of an hour to the next, beside what the probe saw itself.
SPEED_DRIFT = 0.04
TEXT_LOSS, OTHER_LOSS = "loss_bits_per_byte", "loss_nats"
BUSY = 0.1  # of the machine's cores: where other processes use so much more or less than in the probe, speeds say little


@dataclass(frozen=True)
class Quantity:
    """A forecast number: its median and its intervals (percent -> [low, high])."""

    median: float
    intervals: dict[str, list[float]]

    def inside(self, level: int, value: float) -> bool:
        low, high = self.intervals[str(level)]
        return low <= value <= high


@dataclass(frozen=True)
class Speed:
    """What a short probe of the model on this machine measured: seconds of each step, and watts.

    `busy_share` is the part of the machine's cores that other processes used meanwhile.
    """

    step_seconds: list[float]
    tokens_per_step: int
    watts: float
    energy_source: str
    busy_share: float = 0.0


def make_forecast(law: Law, *, flops: float, params: int, tokens: int, width: int, speed: Speed) -> dict[str, Any]:
    """The forecast of one run as a JSON object. Loss in the law's unit (bits per byte), time of training alone."""
    loss = law.predict(params, tokens)
    optimal_n, optimal_d, n_intervals = law.optimum(flops)
    step = statistics.fmean(speed.step_seconds)  # a run has its slow steps, too
    deviations = np.abs(np.array(speed.step_seconds) / step - 1)
    spread = float(np.hypot(SPEED_DRIFT, 1.4826 * np.median(deviations) / len(speed.step_seconds) ** 0.5))
    tokens_per_s = speed.tokens_per_step / step
    seconds = tokens / tokens_per_s
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "flops": flops,
        "width": width,
        "params": params,
        "tokens": tokens,
        "optimal_params": asdict(Quantity(optimal_n, {str(k): list(v) for k, v in n_intervals.items()})),
        "optimal_tokens": optimal_d,
        TEXT_LOSS: asdict(Quantity(loss.median, {str(k): list(v) for k, v in loss.intervals.items()})),
        "loss_by_form": loss.by_form,
        "tokens_per_s": asdict(_around(tokens_per_s, spread)),
        "seconds": asdict(_around(seconds, spread)),
        "energy_kwh": asdict(_around(speed.watts * seconds / 3.6e6, float(np.hypot(spread, 0.03)))),
        "energy_source": speed.energy_source,
        "busy_share": speed.busy_share,
        "points": law.n_points,
        "points_sha256": law.points_sha256,
        "ladder_top_flops": law.largest_flops,
    }


def _around(median: float, relative_spread: float) -> Quantity:
    """A log-normal quantity."""
    sigma = {50: 0.674, 80: 1.282, 95: 1.96}
    return Quantity(
        median,
        {str(k): [median * float(np.exp(s * sigma[k] * relative_spread)) for s in (-1, 1)] for k in LEVELS},
    )


def write_forecast(forecast: dict[str, Any], path: Path) -> str:
    """Write and freeze: the file is made read-only, and its SHA-256 is returned to be kept with the run."""
    if path.exists():
        raise TenfoldError(f"{path} is already written; a forecast is never changed.")
    documents.write(path, forecast)
    path.chmod(0o444)
    return file_sha256(path)


# What a climb forecasts: its kind in the record of forecasts, and its unit.
KINDS = {
    TEXT_LOSS: ("loss", "bits/byte"), OTHER_LOSS: ("loss", "nats"), "tokens_per_s": ("speed", "tokens/s"),
    "seconds": ("duration", "s"), "energy_kwh": ("energy", "kWh"),
}  # fmt: skip


def learn_from_outcomes(forecast: dict[str, Any], generation: Path) -> None:
    """Make the intervals as wide as what came of earlier climbs in the home asks for; `learnt` says what it did, by name."""
    forecast["learnt"] = {}
    for name in KINDS.keys() & forecast.keys():
        learnt = calibrated(generation.parent, _in_record(generation, forecast, name)).learnt or Learnt()
        said = forecast[name]
        said["intervals"] = {k: list(widened(ends, said["median"], learnt.factor)) for k, ends in said["intervals"].items()}
        forecast["learnt"][name] = to_builtins(learnt)


def record_forecast(generation: Path) -> None:
    """Write a generation's frozen forecast to the record of its home."""
    path = generation / "forecast.json"
    forecast, data = documents.read(path), {f"{generation.name}/{path.name}": file_sha256(path)}
    for name in KINDS:
        if name in forecast:
            learnt = convert(forecast.get("learnt", {}).get(name, {}), Learnt)
            freeze(generation.parent, structs.replace(_in_record(generation, forecast, name), data=data, learnt=learnt))


def _in_record(generation: Path, forecast: dict[str, Any], name: str) -> Forecast:
    kind, unit = KINDS[name]
    key = f"climb/{generation.name}/{kind}"
    return Forecast(key=key, who="climb", kind=kind, unit=unit, quantiles=of_intervals(**forecast[name]))


def record_outcome(generation: Path, scores: dict[str, Any]) -> None:
    """Add what was measured, of a generation whose forecast is in the record."""
    for name, (kind, _) in KINDS.items():
        if name not in scores:
            continue
        outcome(generation.parent, f"climb/{generation.name}/{kind}", scores[name]["measured"])


def loss_name(forecast: dict[str, Any]) -> str:
    """What the loss is called in a forecast: bits per byte of text, nats elsewhere."""
    return TEXT_LOSS if TEXT_LOSS in forecast else OTHER_LOSS


def quantity(forecast: dict[str, Any], name: str) -> Quantity:
    return Quantity(**forecast[name])


def score(directory: Path) -> dict[str, Any]:
    """Compare `forecast.json` with the run in the same generation.

    Raises TenfoldError where the run has not ended, or the forecast is not the one that stood when it began.
    """
    path = directory / "forecast.json"
    events = read_metrics(directory / "run.jsonl")
    start = next(e for e in events if e["event"] == "start")
    end = next((e for e in reversed(events) if e["event"] == "end"), None)
    if end is None:
        raise TenfoldError(f"The run in {directory} has not ended: resume it before scoring its forecast.")
    if start.get("forecast_sha256") != file_sha256(path):
        raise TenfoldError(f"{path} was changed after the run began: its forecast cannot be scored.")
    forecast = documents.read(path)
    rows, loss = {}, loss_name(forecast)
    for name, measured in (
        (loss, end["bits_per_byte"] if loss == TEXT_LOSS else end["loss"]),
        ("tokens_per_s", end["tokens_per_s"]),
        ("seconds", end["seconds"]),
        ("energy_kwh", end["energy_kwh"]),
    ):
        q = quantity(forecast, name)
        rows[name] = {
            "forecast": q.median,
            "measured": measured,
            "error_pct": 100 * (q.median / measured - 1),
            **{f"inside_{level}": q.inside(level, measured) for level in LEVELS},
        }
    return {"forecast_sha256": start["forecast_sha256"], "scores": rows, "machine": _machine(forecast, end)}


def _machine(forecast: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    """What other processes used of the machine in the probe and in the run, and whether speed and energy can be compared."""
    probed, ran = forecast.get("busy_share", 0.0), end.get("busy_share", 0.0)
    return {"busy_in_probe": probed, "busy_in_run": ran, "speed_is_comparable": abs(ran - probed) <= BUSY}
