"""The forecast of a run: written before it starts, never changed afterwards, scored when it ends."""

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

# Relative standard deviation of a run's speed from that of its probe, beyond the scatter of the probe's steps: the root mean square
# over the first eight climbs in bench/results/circle.json, on a shared machine. Outcomes narrow it where a machine is steadier.
SPEED_DRIFT = 0.08
TEXT_LOSS, OTHER_LOSS = "loss_bits_per_byte", "loss_nats"
BUSY = 0.1  # share of the cores: if other processes' use differs more between probe and run, their speeds are not comparable


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
    """The measurements of a short probe of the model on this machine: seconds of each step, tokens of a step, and watts.

    `busy_share` is the share of the machine's cores that other processes used during the probe.
    """

    step_seconds: list[float]
    tokens_per_step: int
    watts: float
    energy_source: str
    busy_share: float = 0.0


def make_forecast(law: Law, *, flops: float, params: int, tokens: int, width: int, speed: Speed) -> dict[str, Any]:
    """The forecast of one run as a JSON object: loss in the law's unit, and tokens/s, seconds and kWh of its training alone."""
    loss = law.predict(params, tokens)
    optimal_n, optimal_d, n_intervals = law.optimum(flops)
    step = statistics.fmean(speed.step_seconds)  # not the median: a run has slow steps, too
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
    """A log-normal quantity around `median`."""
    sigma = {50: 0.674, 80: 1.282, 95: 1.96}
    return Quantity(
        median,
        {str(k): [median * float(np.exp(s * sigma[k] * relative_spread)) for s in (-1, 1)] for k in LEVELS},
    )


def write_forecast(forecast: dict[str, Any], path: Path) -> str:
    """Write a forecast, make the file read-only, and return its SHA-256, which the run keeps in its record.

    Raises TenfoldError where the file exists.
    """
    if path.exists():
        raise TenfoldError(f"{path} exists, and a forecast is never changed: climb in another --home.")
    documents.write(path, forecast)
    path.chmod(0o444)
    return file_sha256(path)


# Quantities that a climb forecasts: name -> (kind in the record of forecasts, unit).
KINDS = {
    TEXT_LOSS: ("loss", "bits/byte"), OTHER_LOSS: ("loss", "nats"), "tokens_per_s": ("speed", "tokens/s"),
    "seconds": ("duration", "s"), "energy_kwh": ("energy", "kWh"),
}  # fmt: skip


def learn_from_outcomes(forecast: dict[str, Any], generation: Path) -> None:
    """Widen or narrow the forecast's intervals by the outcomes of earlier climbs in the home.

    Changes `forecast` in place and adds `learnt`, what was applied to each quantity.
    """
    forecast["learnt"] = {}
    for name in KINDS.keys() & forecast.keys():
        learnt = calibrated(generation.parent, _in_record(generation, forecast, name)).learnt or Learnt()
        q = forecast[name]
        q["intervals"] = {k: list(widened(ends, q["median"], learnt.factor)) for k, ends in q["intervals"].items()}
        forecast["learnt"][name] = to_builtins(learnt)


def record_forecast(generation: Path) -> None:
    """Add a generation's `forecast.json` to the record of forecasts in its home."""
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
    """Add the measured values of a generation to the record in which its forecast is."""
    for name, (kind, _) in KINDS.items():
        if name in scores:
            outcome(generation.parent, f"climb/{generation.name}/{kind}", scores[name]["measured"])


def loss_name(forecast: dict[str, Any]) -> str:
    """The key of the loss in a forecast: `loss_bits_per_byte` for text, `loss_nats` otherwise."""
    return TEXT_LOSS if TEXT_LOSS in forecast else OTHER_LOSS


def quantity(forecast: dict[str, Any], name: str) -> Quantity:
    return Quantity(**forecast[name])


def score(directory: Path) -> dict[str, Any]:
    """Compare `forecast.json` with the run in the same generation.

    Raises TenfoldError where the run has not begun or not ended, or the forecast was changed after it began.
    """
    path = directory / "forecast.json"
    events = read_metrics(directory / "run.jsonl")
    start = next((e for e in events if e["event"] == "start"), None)
    end = next((e for e in reversed(events) if e["event"] == "end"), None)
    if start is None or end is None:
        raise TenfoldError(
            f"The run in {directory} has not {'begun' if start is None else 'ended'}: finish the climb before scoring its forecast."
        )
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
    """The share of the machine that other processes used in the probe and in the run, and whether speeds can be compared."""
    probed, ran = forecast.get("busy_share", 0.0), end.get("busy_share", 0.0)
    return {"busy_in_probe": probed, "busy_in_run": ran, "speed_is_comparable": abs(ran - probed) <= BUSY}
