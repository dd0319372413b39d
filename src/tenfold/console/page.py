"""The page of a home: the circle as a picture, the numbers of each room with their files, the forecasts and what came.

It is one static file, `index.html` under the home, without scripts. All that it shows is escaped, and its links stay in the home.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct, ValidationError, convert

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_text
from tenfold.spec.forecasts import FILE as FORECASTS
from tenfold.spec.forecasts import LEVELS, Scored, read_forecasts
from tenfold.spec.versions import read_document

ROOMS = ("climb", "plan", "sites", "learn", "rank", "fleet")
CIRCLE, VERSION = "circle.json", 1
SEARCHED_BYTES = 4 << 20  # of each file, for the numbers that it holds
SIZE, RING, NODE = 400, 148, 44  # of the picture: its width, the radius of the ring and of a room on it

Value = bool | int | float | str | None


class Room(Struct, frozen=True):
    """What `circle.json` says of a room: its numbers and files, or the sentence why there are none."""

    numbers: dict[str, Any] = {}
    files: list[str] = []
    seconds: float | None = None
    skipped: str | None = None
    failed: str | None = None


def write_page(home: Path) -> Path:
    """Write `index.html` under `home` from `circle.json` and the record of forecasts, where there are any; returns its path.

    Raises TenfoldError where the home does not exist, or `circle.json` is damaged.
    """
    import jinja2

    if not home.is_dir():
        raise TenfoldError(f"There is no directory {home}: name the home of the generations by --home.")
    rooms, forecasts = _rooms(home), read_forecasts(home)
    came = [one for one in forecasts if one.measured is not None]
    template = resources.files("tenfold.console").joinpath("page.html.jinja").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        size=SIZE,
        node=NODE,
        rooms=[_shown(home, name, room) | place for (name, room), place in zip(rooms.items(), _places(len(rooms)), strict=True)],
        walked=(home / CIRCLE).exists(),
        forecasts=[_row(one) for one in forecasts],
        record=_href(home, FORECASTS),
        came=len(came),
        held=sum(bool(one.inside_80) for one in came),
    )
    path = home / "index.html"
    write_text(path, text)
    return path


def _rooms(home: Path) -> dict[str, Room | None]:
    """The rooms in the order of the circle, then others; None for one that the circle has not reached yet."""
    rooms: dict[str, Room | None] = dict.fromkeys(ROOMS)
    if (home / CIRCLE).exists():
        try:
            rooms |= convert(read_document(home / CIRCLE, VERSION, "walk the circle again").get("rooms"), dict[str, Room])
        except ValidationError as error:
            raise TenfoldError(f"{home / CIRCLE} is damaged ({error}): walk the circle again.") from None
    return rooms


def _places(rooms: int) -> Iterator[dict[str, str]]:
    """The place of each room on the ring, clockwise from the top, and the arrow from it to the next where there is space."""
    turn, gap = 2 * math.pi / rooms, (NODE + 6) / RING  # in radians: an arrow begins and ends beside a room

    def point(angle: float) -> str:
        return f"{SIZE / 2 + RING * math.sin(angle):.1f} {SIZE / 2 - RING * math.cos(angle):.1f}"

    for at in (turn * i for i in range(rooms)):
        arrow = f"M {point(at + gap)} A {RING} {RING} 0 0 1 {point(at + turn - gap)}" if turn > 2 * gap else ""
        yield {"at": point(at), "arrow": arrow}


def _shown(home: Path, name: str, room: Room | None) -> dict[str, Any]:
    """A room as the page shows it. A number links to the first of the room's files that holds it, else to `circle.json`."""
    if room is None:
        return {"name": name, "state": "waiting", "why": "The circle has not come here yet."}
    hrefs = {file: _href(home, file) for file in room.files}
    texts = {href: _text(home / file) for file, href in hrefs.items() if href}
    numbers = []
    for key, value in _flat(room.numbers):
        href = next((href for href, text in texts.items() if _holds(text, key, value)), f"./{CIRCLE}")
        numbers.append({"key": key.replace("_", " "), "value": _words(value), "exact": json.dumps(value), "href": href})
    state = next((state for state in ("failed", "skipped") if getattr(room, state) is not None), "done")
    why = getattr(room, state, None)
    return {"name": name, "state": state, "why": why, "seconds": room.seconds, "numbers": numbers, "files": hrefs}


def _flat(numbers: dict[str, Any], before: str = "") -> Iterator[tuple[str, Value]]:
    """Numbers within numbers under dotted keys; of a list its length."""
    for key, value in numbers.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", len(value) if isinstance(value, list) else value


def _text(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and path.stat().st_size <= SEARCHED_BYTES else b""


def _holds(text: bytes, key: str, value: Value) -> bool:
    """Whether JSON text has this value under this key; of a dotted key the last part counts."""
    last = key.rpartition(".")[2]
    pair = re.escape(json.dumps(last).encode()) + rb"\s*:\s*" + re.escape(json.dumps(value).encode()) + rb"(?![\w.])"
    return re.search(pair, text) is not None


def _href(home: Path, file: str) -> str | None:
    """A relative link to a file of the home; None where there is no such file, or it lies elsewhere."""
    try:
        path = (home / file).resolve(strict=True).relative_to(home.resolve())
    except (OSError, ValueError):
        return None
    return "./" + quote(os.fsencode(path))


def _row(one: Scored) -> dict[str, Any]:
    """A forecast as a row of the table."""
    q = dict(zip(LEVELS, one.forecast.quantiles, strict=True))
    row = {"forecast": one.forecast, "median": _words(q[0.5]), "interval": f"{_words(q[0.1])} to {_words(q[0.9])}"}
    if one.measured is None or one.crps is None:
        return row
    return row | {"came": _words(one.measured), "inside": "inside" if one.inside_80 else "outside", "crps": _words(one.crps)}


def _words(value: Value) -> str:
    """A value to read: four digits of a fraction, all digits of a whole number."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
