"""The loss that was forecast along a run."""

from pathlib import Path
from typing import Any

from msgspec import Struct

from tenfold.console.document import Figure, read_json
from tenfold.scale.documents import TRAJECTORY
from tenfold.spec.errors import TenfoldError

LEVEL = "80"  # per cent, of the interval that is shown


class Band(Struct):
    """The forecast loss after the steps `x`: its median and the ends of its interval."""

    x: list[float]
    median: list[float]
    low: list[float]
    high: list[float]


def band(folder: Path, planned_steps: int) -> Band | None:
    """The 80 % band along a run of so many steps; None where there is no forecast. Raises TenfoldError for a damaged file."""
    moments = _moments(folder)
    if not moments or not planned_steps:
        return None
    intervals = [moment["intervals"][LEVEL] for moment in moments]
    return Band(
        x=[moment["share"] * planned_steps for moment in moments],
        median=[moment["median"] for moment in moments],
        low=[low for low, _ in intervals],
        high=[high for _, high in intervals],
    )


def forecast_end(home: Path, name: str) -> Figure | None:
    """The forecast loss at the end of the run, with its interval; None where there is none."""
    moments = _moments(home / name)
    if not moments:
        return None
    place, end = len(moments) - 1, moments[-1]
    return Figure(end["median"], f"{name}/{TRAJECTORY}", f"moments.{place}.median", "nats/token", *end["intervals"][LEVEL])


def _moments(folder: Path) -> list[dict[str, Any]]:
    """The moments of the forecast trajectory. Its mean over the last tenth of the run, which has no share, is left out."""
    path = folder / TRAJECTORY
    if not path.exists():
        return []
    try:
        moments = [moment for moment in read_json(path)["moments"] if moment["share"] is not None]
        for moment in moments:
            float(moment["share"]), float(moment["median"]), *map(float, moment["intervals"][LEVEL])
    except (KeyError, TypeError, ValueError):
        raise TenfoldError(f"{path} is damaged: write it again by `tenfold law trajectory`.") from None
    return moments
