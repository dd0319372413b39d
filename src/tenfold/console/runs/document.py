"""The console's documents of a run, and of the list of runs."""

import math
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from tenfold.console.document import Computed, Figure, stamp
from tenfold.console.runs.band import Band, band, forecast_end
from tenfold.console.runs.faults import Fault, faults
from tenfold.console.runs.find import FILE, ends, figure_of, names, state
from tenfold.console.runs.record import FIELDS, Event, Record, Records
from tenfold.console.runs.spent import read_spent
from tenfold.console.runs.thin import sample, thinned, within
from tenfold.scale.documents import TRAJECTORY
from tenfold.spec.errors import TenfoldError

FILES = (FILE, "time.jsonl", "run.toml", "identity.json", TRAJECTORY, "forecast.json", "skipped.jsonl", "resume.log")
UNITS = {
    "loss": "nats/token", "grad_norm": "", "tokens_per_s": "tokens/s", "mfu": "of the peak", "watts": "W", "learning_rate": "",
    "bits_per_byte": "bits/byte", "energy_kwh": "kWh", "seconds": "s", "tokens": "tokens", "step": "steps",
}  # fmt: skip
LATEST = ("step", "loss", "tokens_per_s", "mfu", "watts", "learning_rate", "grad_norm", "tokens")
OUTCOME = ("loss", "bits_per_byte", "seconds", "energy_kwh")
SPENT = ("counted_s", "redone_s", "starting_s", "saving_s", "evaluating_s", "down_s", "other_s")
LOG_LINES, LOG_WIDTH, LOG_BYTES = 200, 400, 1 << 16
RECORDS = Records()


class Row(Struct):
    """A run in the list, with the figures of its last step."""

    name: str
    state: str
    step: Figure | None
    loss: Figure | None
    tokens_per_s: Figure | None
    mfu: Figure | None


class Overview(Struct):
    """The runs of a home."""

    runs: list[Row]
    empty: str = ""


class Experts(Struct):
    """Each expert's share of its layer's tokens, in thousandths [layers, experts, len(x)], at the steps `x`."""

    x: list[int]
    loads: list[list[list[int]]]


class Run(Struct):
    """A run. `rows` counts all its logged steps. `x` and `fields` have the requested range of steps, thinned for a picture. `band`
    is the forecast along the run, and `spent` has seconds by use."""

    name: str
    state: str
    planned_steps: Figure | None
    latest: dict[str, Figure]
    outcome: dict[str, Figure]
    goodput: Figure | None
    rows: int
    replaced: int
    x: list[int]
    fields: dict[str, dict[str, list[float | None]]]
    band: Band | None
    forecast: Figure | None
    evaluations: dict[str, list[float]]
    spent: dict[str, Computed]
    faults: list[Fault]
    experts: Experts | None
    log: dict[str, list[str]]
    files: list[str]


def document(home: Path, name: str, start: float | None = None, end: float | None = None) -> Overview | Run:
    """The overview, or a run from step `start` to step `end`. Raises TenfoldError where a record cannot be read."""
    if not name:
        found = names(home)[1:]
        return Overview([_row(home, one) for one in found], "" if found else f"tenfold train run.toml --home {home.name}")
    return _run(home, name, start, end)


def _row(home: Path, name: str) -> Row:
    try:
        found = ends(home / name / FILE)
    except OSError:
        raise TenfoldError(f"{home / name / FILE} cannot be read.") from None
    return Row(
        name,
        state(home / name, found.last_kind),
        *(_figure(name, found.step, field) for field in ("step", "loss", "tokens_per_s", "mfu")),
    )


def _run(home: Path, name: str, start: float | None, end: float | None) -> Run:
    folder = home / name
    record = RECORDS.read(folder / FILE)
    rows = record.rows
    part = within(rows["step"], start, end)
    picture = thinned(rows[part], FIELDS)
    total = _planned_steps(record)
    return Run(
        name=name,
        state=state(folder, record.last_kind),
        planned_steps=total and Figure(total[0], f"{name}/{FILE}", total[1], "steps"),
        latest=latest(name, record),
        outcome=_figures(name, record.event("end"), OUTCOME),
        goodput=figure_of(name, record.event("goodput"), "goodput", "of the time"),
        rows=len(rows),
        replaced=record.replaced,
        x=picture["x"],
        fields=picture["fields"],
        band=band(folder, total[0] if total else 0),
        forecast=forecast_end(home, name),
        evaluations=_evaluations(record, start, end),
        spent=spent(home, name),
        faults=faults(home, name, record.events),
        experts=_experts(record, part),
        log=_log(folder),
        files=[f"{name}/{file}" for file in FILES if (folder / file).is_file()],
    )


def latest(name: str, record: Record) -> dict[str, Figure]:
    """The figures of a run's last step."""
    return _figures(name, record.last_step(), LATEST)


def _figure(name: str, found: Event | None, field: str) -> Figure | None:
    return figure_of(name, found, field, UNITS[field])


def _figures(name: str, found: Event | None, fields: tuple[str, ...]) -> dict[str, Figure]:
    made = {field: _figure(name, found, field) for field in fields}
    return {field: figure for field, figure in made.items() if figure is not None}


def _planned_steps(record: Record) -> tuple[int, str] | None:
    """The planned steps, from the run's last start, and the key of that number."""
    number, event = record.event("start") or (0, {})
    given = event.get("hyperparameters")
    steps = given.get("steps") if isinstance(given, dict) else None
    return (steps, f"{number}:hyperparameters.steps") if isinstance(steps, int) else None


def _evaluations(record: Record, start: float | None, end: float | None) -> dict[str, list[float]]:
    """The losses of evaluations between two steps, at the steps `x`."""
    found = [event for _, event in record.events if event.get("event") in ("evaluation", "end")]
    points = [(event.get("step"), event.get("loss")) for event in found]
    inside = [
        (step, loss)
        for step, loss in points
        if isinstance(step, int) and isinstance(loss, int | float) and (start or 0) <= step <= (math.inf if end is None else end)
    ]
    return {"x": [step for step, _ in inside], "loss": [loss for _, loss in inside]}


def spent(home: Path, name: str) -> dict[str, Computed]:
    """The seconds of a run by use, such as steps, saving and evaluation."""
    path = home / name / "time.jsonl"
    found = _cached_spent(path, stamp(path)) if path.is_file() else {}
    return {part: Computed(found[part], f"from {name}/time.jsonl", "s") for part in SPENT if part in found}


@lru_cache(64)
def _cached_spent(path: Path, _: tuple[int, int]) -> dict[str, float]:
    return read_spent(path)


def _experts(record: Record, part: slice) -> Experts | None:
    """Experts' loads at evenly spaced steps of the range; None for a model without experts."""
    if part.start == part.stop or np.isnan(record.rows["expert_load_max"][part.start]):
        return None
    chosen = sample(part, _load(record.row(part.start)).size)
    loads = [(i, _load(record.row(i))) for i in chosen]
    shape = loads[0][1].shape
    kept = [(i, load) for i, load in loads if load.shape == shape]
    if len(shape) != 2:
        return None
    columns = np.stack([load for _, load in kept], axis=-1)
    return Experts(record.rows["step"][[i for i, _ in kept]].tolist(), np.rint(1000 * columns).astype(int).tolist())


def _load(row: dict[str, Any]) -> np.ndarray:
    """The experts' shares [layers, experts] of a step; empty where it has none."""
    with suppress(TypeError, ValueError):
        return np.array(row.get("expert_load") or (), float)
    return np.empty(0)


def _log(folder: Path) -> dict[str, list[str]]:
    """The last lines of the record and of the run's logs, by file. Symbolic links are skipped: they may lead out of the home."""
    files = [folder / FILE, *sorted(folder.glob("*.log"))]
    return {path.name: _last_lines(path) for path in files if path.is_file() and not path.is_symlink()}


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    return [line if len(line) <= LOG_WIDTH else f"{line[:LOG_WIDTH]}…" for line in lines]
