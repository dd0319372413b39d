"""Whole circles in clean homes: seconds by room, and forecasts whose interval held.

    python -m bench.circle                                 # one home: a circle, and the next at ten times the compute
    python -m bench.circle --seed 1 --corpus docstrings    # another home; its rows are added to the file
    TENFOLD_CIRCLE=small python -m bench.circle --dry      # a quick trial

Each circle is a row of bench/results/circle.json, with every forecast that was scored in it.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scipy.stats import binomtest

from bench.harness import RESULTS, TENFOLD, Headline, Row, options, write_results
from tenfold.spec.forecasts import LEVELS, Scored, read_forecasts
from tenfold.spec.threads import busy_share

COMPARED = ("speed", "energy", "switch_seconds")  # kinds whose intervals should be narrower in a second circle


def begun(home: Path, *more: str) -> subprocess.Popen[str]:
    """Start `tenfold circle` in its own process group."""
    command = [*TENFOLD, "circle", "--home", str(home), "--json", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def walked(home: Path, *more: str) -> dict[str, Any]:
    """Run a circle to its end; the results of its rooms. Raises SystemExit with its error if it fails."""
    child = begun(home, *more)
    said, error = child.communicate()
    if child.returncode:
        raise SystemExit(f"the circle in {home} failed: {error}")
    return json.loads(said)["rooms"]


def measured(home: Path, number: int, *more: str) -> Row:
    """Run the `number`th circle of a home: its seconds, and the forecasts that it scored."""
    others, began, known = busy_share(), time.monotonic(), {one.forecast.key for one in scored(home)}
    rooms = walked(home, *more)
    return {
        "number": number,
        "seconds": round(time.monotonic() - began, 1),
        "busy_before": others,
        "rooms": {name: round(room["seconds"], 1) if "seconds" in room else room for name, room in rooms.items()},
        "forecasts": [in_row(one) for one in scored(home) if one.forecast.key not in known],
    }


def scored(home: Path) -> list[Scored]:
    return [one for one in read_forecasts(home) if one.measured is not None]


def in_row(one: Scored) -> Row:
    """A scored forecast; its interval score (Gneiting and Raftery 2007, section 6.2) is in units of what was measured."""
    low, high = (one.forecast.quantiles[LEVELS.index(level)] for level in (0.1, 0.9))
    came = one.measured or 0.0
    missed = max(0.0, low - came, came - high)
    return {
        "key": one.forecast.key, "kind": one.forecast.kind, "held": one.inside_80, "measured": came, "low": low, "high": high,
        "factor": one.forecast.learnt.factor if one.forecast.learnt else 1.0,
        "interval_score": (high - low + 2 / 0.2 * missed) / abs(came) if came else None,
    }  # fmt: skip


def headline(rows: list[Row]) -> Headline:
    took = [[row["seconds"] for row in rows if (row["number"] > 1) is again] for again in (False, True)]
    held = [one["held"] for row in rows for one in row["forecasts"]]
    kinds = {one["kind"] for row in rows for one in row["forecasts"]}
    found = ", ".join(f"{median(of):.0f} s ({min(of):.0f} to {max(of):.0f})" for of in took if of)
    yield (
        f"the whole circle in a clean home, the next at ten times its compute, {len(took[0])} homes",
        f"{found}; 80 % ranges of {len(kinds)} kinds held in {sum(held)} of {len(held)} forecasts",
    )
    lowest = min((of_kind(rows, kind), kind) for kind in kinds)
    yield "the kind that is least calibrated, p", f"{lowest[1]}, {lowest[0]:.3f}"
    for kind in COMPARED:
        first, second = (scores(row for row in rows if (row["number"] > 1) is again) for again in (False, True))
        if kind in first and kind in second:
            yield f"interval score of {kind}, later circles over first", f"{fmean(second[kind]) / fmean(first[kind]):.2f}"


def of_kind(rows: list[Row], kind: str) -> float:
    """The p-value of a kind's intervals: how likely a share of held ones at least as far from 80 % is (two-sided binomial test)."""
    held = [one["held"] for row in rows for one in row["forecasts"] if one["kind"] == kind]
    return float(binomtest(sum(held), len(held), 0.8).pvalue)


def scores(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Interval scores by kind."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for one in row["forecasts"]:
            if one["interval_score"] is not None:
                found.setdefault(one["kind"], []).append(one["interval_score"])
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--circles", type=int, default=2, help="circles in one home, each at ten times the last one's compute")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    of = {"corpus": given.corpus, "seed": given.seed}
    flags = [f"--{name}={value}" for name, value in of.items()]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        for number in range(1, given.circles + 1):
            row = of | measured(home, number, *flags, *(["--again"] if number > 1 else []))
            rows.append(row)
            print(json.dumps(row))
    file = RESULTS / "circle.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = [*(row for row in before if "number" in row and {k: row[k] for k in of} != of), *rows]
    print(list(headline(rows)))
    if not given.dry:
        write_results("circle", rows, headline(rows))


if __name__ == "__main__":
    main()
