"""Rankers: the results of `rank evaluate` and `rank compare` for each, compared with baselines that need no model."""

from pathlib import Path
from typing import Any

from msgspec import Struct

from tenfold.console.document import Figure, View, figure, read_json
from tenfold.rank.commands import COMPARISON, EVALUATION
from tenfold.spec.errors import TenfoldError

FILES = {"Evaluation": EVALUATION, "Comparison": COMPARISON, "Evaluation by the circle": "score.json"}
UNDER = ("*", "ranking/*")  # folders of the home that may be rankers
MODEL, MAIN = "model", "hit_rate_10"


class Scores(Struct):
    """The results in one file: counts, each scorer's measures, and the model's differences to the others (95 % intervals over
    users)."""

    title: str
    counts: dict[str, Figure]
    measures: list[str]
    scores: dict[str, dict[str, Figure]]
    above: dict[str, dict[str, Figure]]


class Row(Struct):
    """A ranker in the list."""

    name: str
    hit_rate_10: Figure
    above_popularity: Figure | None


class Overview(Struct):
    """All evaluated rankers of a home."""

    rankers: list[Row]
    empty: str = ""


class Ranker(Struct):
    """One ranker."""

    found: list[Scores]
    files: list[str]


def names(home: Path) -> list[str]:
    """The overview, and every evaluated ranker."""
    files = [path for file in FILES.values() for under in UNDER for path in home.glob(f"{under}/{file}")]
    return ["", *sorted(name for name in {path.parent.relative_to(home).as_posix() for path in files} if _scored(home, name))]


def document(home: Path, name: str) -> Overview | Ranker:
    """The overview, or one ranker."""
    if name:
        found = _scored(home, name)
        return Ranker([_scores(home, file, title) for title, file in found.items()], list(found.values()))
    rows = [_row(home, one) for one in names(home)[1:]]
    return Overview(rows, "" if rows else f"tenfold rank evaluate {home.name}/rank-interactions")


def _scored(home: Path, name: str) -> dict[str, str]:
    """The files of a generation with scores of rankers, by title. A climb's score.json has none."""
    files = {title: f"{name}/{file}" for title, file in FILES.items()}
    return {title: file for title, file in files.items() if (home / file).is_file() and "model_above" in _read(home, file)}


def _read(home: Path, file: str) -> dict[str, Any]:
    try:
        found = read_json(home / file)
    except TenfoldError:
        return {}
    return found if isinstance(found, dict) else {}


def _row(home: Path, name: str) -> Row:
    file = next(iter(_scored(home, name).values()))
    known = "popularity" in read_json(home / file)["model_above"]
    return Row(name, figure(home, file, f"scores.{MODEL}.{MAIN}"), _above(home, file, "popularity", MAIN) if known else None)


def _scores(home: Path, file: str, title: str) -> Scores:
    found = read_json(home / file)
    return Scores(
        title=f"{title}, {found['split']}",
        counts={key: figure(home, file, key) for key in ("users", "queries", "items")},
        measures=list(found["scores"][MODEL]),
        scores={name: {key: figure(home, file, f"scores.{name}.{key}") for key in of} for name, of in found["scores"].items()},
        above={name: {key: _above(home, file, name, key) for key in of} for name, of in found["model_above"].items()},
    )


def _above(home: Path, file: str, name: str, measure: str) -> Figure:
    said = read_json(home / file)["model_above"][name][measure]
    return figure(home, file, f"model_above.{name}.{measure}.mean", "", (said["low"], said["high"]))


VIEW = View("rank", "Ranking", names, document)
