"""The picture of the ladder: runs by compute, the law with its band, forecasts, outcomes, and the next generation."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from tenfold.console.document import Figure, figure, read_json, read_rows, stamp, value_at
from tenfold.console.views.chance import Chance, chance
from tenfold.spec.errors import TenfoldError

PLACES = 24  # points of the law's line
LOSSES = {"loss_bits_per_byte": "bits/byte", "loss_nats": "nats"}


class Runs(Struct):
    """Losses by compute, with the generation of each in `names`; `low` and `high` are 80 % intervals."""

    flops: list[float] = []
    loss: list[float] = []
    names: list[str] = []
    low: list[float] = []
    high: list[float] = []


class Line(Struct):
    """The law of the generation `name` at the optimal model size for each compute, with its 80 % band."""

    name: str
    file: str
    flops: list[float]
    loss: list[float]
    low: list[float]
    high: list[float]


class Ladder(Struct):
    """The data of the picture; losses are in `unit`. `measured` are rungs; `forecasts` and `outcomes` are of the generations' own
    runs.

    `arrow` goes from the newest generation's run to the law's forecast at ten times its compute.
    """

    unit: str
    measured: Runs
    forecasts: Runs
    outcomes: Runs
    law: Line | None = None
    arrow: Line | None = None
    note: str = ""


class Next(Struct):
    """What the next generation (ten times the compute) needs by the newest plan, and the chance that it pays."""

    flops: Figure
    time: Figure
    energy: Figure | None
    money: Figure | None
    chance: Chance | None


def ladder(home: Path, generations: list[str]) -> Ladder:
    """The picture of these generations, with the law of the newest one. Only losses in the newest generation's unit are shown."""
    unit = next((found for name in reversed(generations) if (found := _unit(home / name))), "")
    shown = Ladder(unit, Runs(), Runs(), Runs())
    seen = set()
    for name in generations:
        if _unit(home / name) != unit:
            continue
        for row in _points(home / name):
            if row not in seen:
                seen.add(row)
                _add(shown.measured, name, *row)
        _add_forecast(shown, home, name)
    for name in reversed(generations):
        if (home / name / "law.json").exists() and _unit(home / name) in (unit, ""):
            shown.law, shown.note = _law(home, name)
            shown.arrow = _arrow(shown, name)
            break
    return shown


def _unit(folder: Path) -> str:
    """The unit of a generation's loss by its forecast; empty without one."""
    return LOSSES.get(loss_in(folder) or "", "")


def loss_in(folder: Path) -> str | None:
    """The name of the loss in a generation's forecast; None without one."""
    if not (folder / "forecast.json").exists():
        return None
    made = read_json(folder / "forecast.json")
    return next((name for name in LOSSES if name in made), None)


def _points(folder: Path) -> list[tuple[float, float]]:
    try:
        return [(float(row["flops"]), float(row["loss"])) for row in read_rows(folder / "points.csv")]
    except (TenfoldError, KeyError, ValueError, TypeError):
        return []


def _add(runs: Runs, name: str, flops: float, loss: float, interval: list[float] | None = None) -> None:
    runs.names.append(name)
    runs.flops.append(flops)
    runs.loss.append(loss)
    if interval:
        runs.low.append(interval[0])
        runs.high.append(interval[1])


def _add_forecast(shown: Ladder, home: Path, name: str) -> None:
    """Add a generation's forecast and, if it has one, its outcome."""
    folder = home / name
    loss = loss_in(folder)
    if loss is None:
        return
    made = folder / "forecast.json"
    flops, median, interval = (value_at(made, key) for key in ("flops", f"{loss}.median", f"{loss}.intervals.80"))
    _add(shown.forecasts, name, flops, median, interval)
    if (folder / "score.json").exists() and loss in value_at(folder / "score.json", "scores"):
        _add(shown.outcomes, name, flops, value_at(folder / "score.json", f"scores.{loss}.measured"))


def _arrow(shown: Ladder, name: str) -> Line | None:
    """The arrow from a generation's outcome, or its forecast while there is none, to the end of the law's line."""
    law = shown.law
    runs = next((found for found in (shown.outcomes, shown.forecasts) if name in found.names), None)
    if law is None or runs is None:
        return None
    at = runs.names.index(name)
    flops, loss = runs.flops[at], runs.loss[at]
    return Line(name, law.file, [flops, law.flops[-1]], [loss, law.loss[-1]], [loss, law.low[-1]], [loss, law.high[-1]])


def _law(home: Path, name: str) -> tuple[Line | None, str]:
    """The law's line up to ten times the compute of the generation's run, or None and a sentence why there is none."""
    file = f"{name}/law.json"
    made = home / name / "forecast.json"
    top = 10 * float(value_at(made, "flops")) if made.exists() else None
    try:
        return Line(name, file, *_line(home / file, stamp(home / file), top)), ""
    except (TenfoldError, KeyError, ValueError, TypeError) as error:
        return None, str(error) if isinstance(error, TenfoldError) else f"{file} is damaged: run `tenfold climb` again."


@lru_cache(256)
def _line(path: Path, _: tuple[int, int], top: float | None) -> tuple[list[float], list[float], list[float], list[float]]:
    """FLOPs, and the median, low and high end of the 80 % interval of the loss at the optimal size for them."""
    import numpy as np

    from tenfold.scale.law import Law

    law = Law.from_dict(read_json(path))
    least = min(point.flops for point in law.points)
    flops = np.geomspace(least, top or 10 * law.largest_flops, PLACES)
    sizes = [law.optimum(float(one))[:2] for one in flops]
    found = law.predict_all([n for n, _ in sizes], [d for _, d in sizes])
    return flops.tolist(), [f.median for f in found], [f.intervals[80][0] for f in found], [f.intervals[80][1] for f in found]


def next_tenfold(home: Path, law: Line | None) -> Next | None:
    """The next generation by the home's `plan/plan.json`, and the chance that it pays by the law; None without a plan."""
    file = "plan/plan.json"
    if not (home / file).exists():
        return None
    plan = read_json(home / file)

    def ranged(*keys: str, unit: str) -> Figure | None:
        """The figure of the first of these keys that the plan has."""
        for key in keys:
            if (found := _at(plan, key)) is not None:
                return figure(home, file, f"{key}.mid", unit, (found["low"], found["high"]))
        return None

    days = ranged("time.wall_days", unit="days")
    if days is None or _at(plan, "model.flops") is None:
        return None
    money = ranged("cost.rent_usd", "cost.own_usd", unit="USD")
    return Next(
        flops=figure(home, file, "model.flops", "FLOPs"),
        time=days,
        energy=ranged("power.energy_mwh", unit="MWh"),
        money=money,
        chance=chance(home, law.file, float(plan["model"]["flops"]), money) if law else None,
    )


def _at(plan: Any, key: str) -> Any:
    for part in key.split("."):
        plan = plan.get(part) if isinstance(plan, dict) else None
    return plan
