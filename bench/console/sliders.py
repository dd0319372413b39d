"""Response time of the console's what-if sliders for a plan: GPUs, days, rent and region, in a fresh process.

    python -m bench.console.sliders [--after llama-3.1-405b] [--gpus 65536]

A plan for ten times the parent's compute is made and stored. Then the requests are sent that moving one slider after the other
would send. Seconds are those of the whole request. The first request includes the search for the plan itself; requests that
change only rent or region search nothing.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from fastapi.testclient import TestClient

from bench.harness import Row, options, tenfold, write_results
from tenfold.console.app import make_app
from tenfold.console.options import ConsoleOptions
from tenfold.spec.files import write_json

STEPS = (-10, -20, -30, 10, 20, 30, 15, -15)  # positions of a slider; 100 steps are a factor of eight
ASKED: dict[str, tuple[dict[str, Any], ...]] = {
    "rent and place": tuple({"rent_usd_per_h": 1.5 + i / 2, "region": region} for i, region in enumerate(("TX", "CA", "OH", "VA"))),
    "GPUs": tuple({"gpus": 8 ** (step / 100)} for step in STEPS),  # GPUs and days as factors of the plan's
    "days": tuple({"days": 8 ** (step / 100)} for step in STEPS),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--after", default="llama-3.1-405b")
    parser.add_argument("--gpus", type=int, default=65_536)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plan = tenfold("plan", "--after", given.after, "--gpus", given.gpus, "--home", home)
        write_json(home / "next" / "plan.json", plan)
        rows = list(measured(home, plan))
    longest = max(row["longest_s"] for row in rows[1:])
    write_results("console_sliders", rows, [("console: the planner answers a slider, longest", f"{longest:.2g} s")])


def measured(home: Path, plan: dict[str, Any]) -> Iterator[Row]:
    """A row for each slider: the number of requests, their wall-clock seconds and their processor seconds."""
    own = {"gpus": plan["machine"]["gpus"], "days": plan["time"]["wall_days"]["mid"]}
    with TestClient(make_app(ConsoleOptions(home=home)), base_url="http://127.0.0.1:8765") as client:
        for name, questions in (("as planned", ({},)), *ASKED.items()):
            took = [
                ask(client, {key: own[key] * value if key in own else value for key, value in one.items()}) for one in questions
            ]
            wall, busy = zip(*took, strict=True)
            yield {
                "slider": name,
                "questions": len(took),
                "median_s": median(wall),
                "longest_s": max(wall),
                "longest_cpu_s": max(busy),
            }


def ask(client: TestClient, asked: dict[str, Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds until the planner's answer, which may be that no such plan exists."""
    if "gpus" in asked:
        asked = asked | {"gpus": round(asked["gpus"])}
    began, busy = time.perf_counter(), time.process_time()
    client.get("/ask/plan/next", params=asked)
    return time.perf_counter() - began, time.process_time() - busy


if __name__ == "__main__":
    main()
