"""A circle that is killed at random moments, beside one of the same seed that is not: the same release, and the same scores.

    python -m bench.circle_kills                           # 20 kills
    TENFOLD_CIRCLE=small python -m bench.circle_kills --kills 3 --dry

A kill ends the whole process group with SIGKILL. "The same release" compares the hashes of the released weights, and "the same
scores" the outcomes of forecasts that depend on nothing that is timed, to the bit. Writes bench/results/circle_kills.json.
"""

import json
import os
import random
import signal
import subprocess
import tempfile
from pathlib import Path

from bench.circle import begun, scored, walked
from bench.harness import Headline, Row, options, write_results

UNTIMED = ("loss", "hit_rate", "paired_difference")  # kinds of forecasts
SHORTEST_S = 3.0  # to a kill


def killed(home: Path, kills: int, longest_s: float) -> int:
    """Start the circle `kills` times and kill it after a random time; how many were killed before their end."""
    draw, found = random.Random(0), 0
    for _ in range(kills):
        child = begun(home)
        try:
            child.wait(draw.uniform(SHORTEST_S, longest_s))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            found += 1
        child.communicate()
    return found


def released(home: Path) -> str:
    """The hash of the weights in service."""
    return json.loads((home / "release.json").read_text())["sha256"]


def untimed(home: Path) -> dict[str, list[float]]:
    """The outcomes of each kind that is not timed, in order."""
    rows = [one for one in scored(home) if one.forecast.kind in UNTIMED]
    return {kind: sorted(one.measured or 0.0 for one in rows if one.forecast.kind == kind) for kind in UNTIMED}


def headline(rows: list[Row]) -> Headline:
    (row,) = rows
    same = [f"{'the same' if row[f'same_{what}'] else 'other'} {what}" for what in ("release", "scores")]
    yield f"a circle killed {row['kills']} times at random moments, beside one that was not", ", ".join(same)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=45, help="most seconds until a kill")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, other = Path(folder, "home"), Path(folder, "killed")
        walked(home)
        kills = killed(other, given.kills, given.longest)
        walked(other)
        row: Row = {"kills": kills, "same_release": released(home) == released(other)}
        undisturbed, disturbed = untimed(home), untimed(other)
    rows = [row | {"same_scores": undisturbed == disturbed, "undisturbed": undisturbed, "killed": disturbed}]
    print(json.dumps(rows, indent=1))
    if not given.dry:
        write_results("circle_kills", rows, headline(rows))


if __name__ == "__main__":
    main()
