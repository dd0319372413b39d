"""The whole circle in a clean home: seconds by room, forecasts that were scored, and the release after kills at random moments.

    python -m bench.circle                    # one circle, and another that is killed ten times
    python -m bench.circle --kills 0          # one circle
    TENFOLD_CIRCLE=small python -m bench.circle --dry      # a try

Both circles run with the same seeds, in processes of their own; a kill ends the whole process group with SIGKILL. "The same
release" compares the hashes of the released weights. Writes bench/results/circle.json.
"""

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import TENFOLD, Headline, Row, options, write_results
from tenfold.spec.forecasts import read_forecasts
from tenfold.spec.threads import busy_share


def begun(home: Path) -> subprocess.Popen[str]:
    """`tenfold circle`, in a process group of its own."""
    command = [*TENFOLD, "circle", "--home", str(home), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def walked(home: Path) -> dict[str, Any]:
    """What a circle found that ran to its end."""
    child = begun(home)
    said, error = child.communicate()
    if child.returncode:
        raise SystemExit(f"the circle in {home} failed: {error}")
    return json.loads(said)["rooms"]


def killed(home: Path, kills: int, longest_s: float) -> int:
    """Start the circle and kill it after a random time, so many times; how many were killed before their end."""
    draw, found = random.Random(0), 0
    for _ in range(kills):
        child = begun(home)
        try:
            child.wait(draw.uniform(3, longest_s))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            found += 1
        child.communicate()
    return found


def released(home: Path) -> str:
    return json.loads((home / "release.json").read_text())["sha256"]


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        figure = f"{r['seconds']:.0f} s; {r['scored']} of {r['forecasts']} forecasts scored, {r['in_80']} inside their 80 % range"
        yield "the whole circle in a clean home", figure
        if r["kills"]:
            yield f"the circle killed {r['kills']} times", "the same release" if r["same_release"] else "another release"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=60, help="seconds until a kill, at most")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    folder, others = Path(tempfile.mkdtemp()), busy_share()
    began = time.monotonic()
    rooms = walked(folder / "undisturbed")
    row: Row = {"seconds": round(time.monotonic() - began, 1), "busy_before": others}
    row["rooms"] = {name: round(room["seconds"], 1) if "seconds" in room else room for name, room in rooms.items()}
    forecasts = read_forecasts(folder / "undisturbed")
    scored = [one for one in forecasts if one.measured is not None]
    inside = sum(bool(one.inside_80) for one in scored)
    row |= {"forecasts": len(forecasts), "scored": len(scored), "in_80": inside, "kills": 0}
    if given.kills:
        began = time.monotonic()
        row["kills"] = killed(folder / "killed", given.kills, given.longest)
        walked(folder / "killed")
        row |= {"killed_seconds": round(time.monotonic() - began, 1)}
        row["same_release"] = released(folder / "undisturbed") == released(folder / "killed")
    print(row)
    if not given.dry:
        write_results("circle", [row], headline([row]))


if __name__ == "__main__":
    main()
