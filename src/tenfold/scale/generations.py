"""The generations of a home, g1, g2, ...: their settings and points, and which of them a climb resumes or begins."""

import csv
import time
from dataclasses import asdict, fields
from pathlib import Path

from tenfold.scale import documents
from tenfold.scale.options import ClimbSettings
from tenfold.scale.points import NAMES, Point
from tenfold.scale.rungs import Source
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_file

ASKED = "climb.json"


def generations(home: Path) -> list[Path]:
    """The generations in `home`, oldest first, without those whose `climb.json` is missing or damaged."""
    return [folder for folder in _folders(home) if _is_readable(folder)]


def newest(home: Path) -> Path | None:
    """The newest of the `generations` in `home`, or None."""
    return (generations(home) or [None])[-1]  # type: ignore[list-item]


def is_begun(generation: Path) -> bool:
    """Whether a run or a forecast was begun in it, so that another climb must not overwrite it."""
    return any(generation.glob("ladder/*/run.jsonl")) or any(
        (generation / name).exists() for name in ("forecast.json", "run.jsonl")
    )


def is_finished(generation: Path) -> bool:
    return (generation / "score.json").exists()


def read_settings(generation: Path) -> ClimbSettings:
    facts = documents.read(generation / ASKED)
    return ClimbSettings(**{f.name: facts.get(f.name, f.default) for f in fields(ClimbSettings)})


def parent_of(generation: Path) -> str | None:
    """The name of the generation that it climbs on from, or None."""
    return documents.read(generation / ASKED).get("parent")


def prompt_of(generation: Path) -> str:
    """The beginning of a text of the generation's corpus, the prompt of its sample."""
    return documents.read(generation / ASKED).get("prompt", "def ")


def unfinished(home: Path, settings: ClimbSettings) -> Path | None:
    """The generation that a climb with these settings resumes, or None. Raises TenfoldError where it was begun with others."""
    last = newest(home)
    if last is None or is_finished(last) or not is_begun(last):
        return None
    was, asked = asdict(read_settings(last)), asdict(settings)
    if other := [f"{name} {was[name]!r} and not {asked[name]!r}" for name in was if was[name] != asked[name]]:
        raise TenfoldError(
            f"{last} was begun with other settings ({', '.join(other)}): give the same settings, delete {last}, or choose another "
            "--home."
        )
    return last


def require_same_text(generation: Path, corpus: Source) -> None:
    """Raises TenfoldError where the corpus has changed since the generation was begun."""
    if documents.read(generation / ASKED).get("corpus_fingerprint", corpus.fingerprint) != corpus.fingerprint:
        raise TenfoldError(
            f"{generation} was begun before its text changed: restore the text, delete {generation}, or choose another --home."
        )


def begin(home: Path, settings: ClimbSettings, corpus: Source, parent: str | None = None) -> Path:
    """Make the directory of a new generation and write its `climb.json`; a generation in which nothing was begun is replaced."""
    generation = home / f"g{1 + max((_number(folder) for folder in _folders(home) if is_begun(folder)), default=0)}"
    about_corpus = {"corpus_fingerprint": corpus.fingerprint, "prompt": corpus.opening(min(8, settings.seq_len // 4))}
    documents.write(generation / ASKED, {**asdict(settings), **about_corpus, "parent": parent, "created": time.time()})
    for name in ("points.csv", "law.json"):  # left by a replaced generation that was to climb on from another
        (generation / name).unlink(missing_ok=True)
    return generation


def write_points(points: list[Point], generation: Path) -> None:
    with atomic_file(generation / "points.csv") as scratch, scratch.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(NAMES)
        writer.writerows([getattr(p, name) for name in NAMES] for p in points)


def read_points_file(generation: Path) -> list[Point]:
    with (generation / "points.csv").open(newline="") as stream:
        rows = ([float(row[name]) for name in NAMES] for row in csv.DictReader(stream))
        return [Point(params, tokens, flops, loss) for params, tokens, flops, loss in rows]


def _folders(home: Path) -> list[Path]:
    return sorted((path for path in home.glob("g*") if path.name[1:].isdigit() and path.is_dir()), key=_number)


def _number(generation: Path) -> int:
    return int(generation.name[1:])


def _is_readable(generation: Path) -> bool:
    try:
        read_settings(generation)
    except (TenfoldError, KeyError):
        return False
    return True
