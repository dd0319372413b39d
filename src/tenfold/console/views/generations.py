"""Generations: the ladder with its law, forecasts and outcomes, the lineage, and all that is known of one generation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from tenfold.console.document import Figure, View, figure, read_json, read_rows, value_at
from tenfold.console.views.ladder import LOSSES, Ladder, Next, ladder, loss_in, next_tenfold
from tenfold.console.views.lineage import Lineage, lineage
from tenfold.console.views.record import Record, Room, record, rooms
from tenfold.spec.errors import TenfoldError

MARKS = ("climb.json", "forecast.json", "run.jsonl", "lineage.json", "gate.json")  # a folder with one of these is a generation
FILES = (
    "report.html", "card.html", "climb.json", "points.csv", "law.json", "forecast.json", "score.json", "gate.json",
    "lineage.json", "identity.json", "run.toml", "run.jsonl", "time.jsonl", "climb.png", "run.png", "README.md",
)  # fmt: skip
STATES = {  # a generation's state is the first one whose file exists
    "scored": "score.json", "judged": "gate.json", "trained or training": "run.jsonl", "forecast": "forecast.json", "begun": "",
}  # fmt: skip
Made = TypeVar("Made")
UNITS = {**LOSSES, "tokens_per_s": "tokens/s", "seconds": "s", "energy_kwh": "kWh"}
TITLES = {**dict.fromkeys(LOSSES, "loss"), "tokens_per_s": "speed", "seconds": "time", "energy_kwh": "energy"}


class Row(Struct):
    """A generation in the list: its compute, the forecast loss with its 80 % interval, the measured loss, and the gate's verdict.

    Where its files are damaged, `state` is the error's sentence.
    """

    name: str
    state: str
    flops: Figure | None = None
    params: Figure | None = None
    tokens: Figure | None = None
    forecast: Figure | None = None
    measured: Figure | None = None
    inside: Figure | None = None
    passed: Figure | None = None


class Quantity(Struct):
    """A forecast quantity: its median with the 80 % interval, and its outcome."""

    title: str
    forecast: Figure
    measured: Figure | None = None
    error_pct: Figure | None = None
    inside: Figure | None = None


class Check(Struct):
    """A check of the gate: the measured value, the limit, and its sentence."""

    name: str
    passed: Figure
    said: str
    measured: Figure | None = None
    limit: Figure | None = None


class Point(Struct):
    """A run of the ladder."""

    flops: Figure
    params: Figure
    tokens: Figure
    loss: Figure


class Overview(Struct):
    """All generations of a home."""

    generations: list[Row]
    ladder: Ladder
    next: Next | None
    lineage: Lineage
    rooms: list[Room]
    record: Record
    notes: list[str]
    empty: str = ""


class Generation(Struct):
    """One generation."""

    row: Row
    ladder: Ladder
    quantities: list[Quantity]
    points: list[Point]
    checks: list[Check]
    reason: Figure | None
    lineage: Lineage
    files: list[str]


def names(home: Path) -> list[str]:
    """The overview, and every generation."""
    return ["", *_folders(home)]


def document(home: Path, name: str) -> Overview | Generation:
    """The overview, or one generation."""
    if name:
        return _generation(home, name)
    found = _folders(home)
    rows = [_row_or_sentence(home, one) for one in found]
    sound = [row.name for row in rows if row.state in STATES]
    picture, notes = ladder(home, sound), list[str]()

    def noted(make: Callable[[], Made], otherwise: Made) -> Made:
        try:
            return make()
        except TenfoldError as error:
            notes.append(str(error))
            return otherwise

    return Overview(
        generations=rows,
        ladder=picture,
        next=noted(lambda: next_tenfold(home, picture.law), None),
        lineage=noted(lambda: lineage(home, sound), Lineage([], [])),
        rooms=noted(lambda: rooms(home), []),
        record=noted(lambda: record(home), Record([], 0, 0)),
        notes=notes,
        empty="" if found else f"tenfold climb --home {home.name}",
    )


def _folders(home: Path) -> list[str]:
    """The generations of a home: those of climbs in their order, then others by name."""
    found = {path.parent.name for mark in MARKS for path in home.glob(f"*/{mark}") if not path.parent.name.startswith(".")}
    return sorted(found, key=lambda name: (not _is_climb(name), int(name[1:]) if _is_climb(name) else 0, name))


def _is_climb(name: str) -> bool:
    return name[:1] == "g" and name[1:].isdecimal()


def _row_or_sentence(home: Path, name: str) -> Row:
    try:
        return _row(home, name)
    except TenfoldError as error:
        return Row(name, str(error))


def _row(home: Path, name: str) -> Row:
    folder = home / name
    row = Row(name, _state(folder))
    if (loss := loss_in(folder)) is not None:
        file = f"{name}/forecast.json"
        row.flops, row.params, row.tokens = (
            figure(home, file, key, unit) for key, unit in (("flops", "FLOPs"), ("params", ""), ("tokens", ""))
        )
        row.forecast = _forecast(home, name, loss)
    elif (folder / "climb.json").exists():
        row.flops = figure(home, f"{name}/climb.json", "top_flops", "FLOPs")
    if (folder / "score.json").exists() and loss:
        row.measured = figure(home, f"{name}/score.json", f"scores.{loss}.measured", UNITS[loss])
        row.inside = figure(home, f"{name}/score.json", f"scores.{loss}.inside_80")
    if (folder / "gate.json").exists():
        row.passed = figure(home, f"{name}/gate.json", "passed")
    return row


def _state(folder: Path) -> str:
    """The generation's state."""
    return next((state for state, file in STATES.items() if (folder / file).exists()), "begun")


def _forecast(home: Path, name: str, quantity: str) -> Figure:
    file = f"{name}/forecast.json"
    interval = value_at(home / file, f"{quantity}.intervals.80")
    return figure(home, file, f"{quantity}.median", UNITS[quantity], interval)


def _generation(home: Path, name: str) -> Generation:
    folder = home / name
    files = [f"{name}/{file}" for file in FILES if (folder / file).is_file()]
    files += [str(path.relative_to(home)) for path in sorted(folder.glob("ladder/*/run.jsonl"))]
    checks, reason = _gate(home, name)
    shown = ladder(home, [name])
    return Generation(
        row=_row(home, name),
        ladder=shown,
        quantities=list(_quantities(home, name)),
        points=_points(home, name, shown.unit),
        checks=checks,
        reason=reason,
        lineage=lineage(home, [name]),
        files=files,
    )


def _quantities(home: Path, name: str) -> Iterator[Quantity]:
    folder = home / name
    if not (folder / "forecast.json").exists():
        return
    made = read_json(folder / "forecast.json")
    scores = value_at(folder / "score.json", "scores") if (folder / "score.json").exists() else {}
    for quantity, unit in UNITS.items():
        if quantity not in made:
            continue
        found = Quantity(TITLES[quantity], _forecast(home, name, quantity))
        if quantity in scores:
            file, key = f"{name}/score.json", f"scores.{quantity}"
            found.measured = figure(home, file, f"{key}.measured", unit)
            found.error_pct = figure(home, file, f"{key}.error_pct", "%")
            found.inside = figure(home, file, f"{key}.inside_80")
        yield found


def _points(home: Path, name: str, unit: str) -> list[Point]:
    """The rows of the generation's `points.csv`. They begin in line 2 of the file, after the header."""
    file = f"{name}/points.csv"
    units = {"flops": "FLOPs", "params": "", "tokens": "", "loss": unit}
    count = len(read_rows(home / file)) if (home / file).exists() else 0
    lines = range(2, count + 2)
    return [Point(**{key: figure(home, file, f"{line}:{key}", said) for key, said in units.items()}) for line in lines]


def _gate(home: Path, name: str) -> tuple[list[Check], Figure | None]:
    """The gate's checks and its reason; without a verdict an empty list and None."""
    file = f"{name}/gate.json"
    if not (home / file).exists():
        return [], None
    checks = []
    try:
        for i, check in enumerate(read_json(home / file).get("checks", [])):
            found = {key: figure(home, file, f"checks.{i}.{key}") for key in ("measured", "limit") if check.get(key) is not None}
            checks.append(Check(str(check["name"]), figure(home, file, f"checks.{i}.passed"), str(check.get("says", "")), **found))
        return checks, figure(home, file, "reason")
    except (KeyError, TypeError, AttributeError):
        raise TenfoldError(f"{home / file} is damaged: judge {name} again by `tenfold learn gate`.") from None


VIEW = View("generations", "Generations", names, document)
