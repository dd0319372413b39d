"""The limit test on ladders of known laws, with and without a bend, and on the public ladders.

    python -m bench.scale.limit --ladders 400

`--ladders` ladders of each of five laws follow the law, and as many bend by 3 % of the loss per decade of compute, from a tenth
of the largest compute on. Counted are alarms at 5 %, compared with the power that the test states for that bend on the ladders
without one, and how often the 80 % interval of the bend holds it. No two ladders have the same noise.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from bench.harness import Headline, Row, options, write_results
from bench.scale.ladders import TRUTHS, known_ladder, ladders
from tenfold.learn.statistics import share_interval
from tenfold.scale.limit import ALARM, Limit, limit_test
from tenfold.scale.points import Point

BEND = 0.03


def bent(points: Sequence[Point], bend: float) -> list[Point]:
    """The points with a bend that begins a decade below the largest compute."""
    start = max(p.flops for p in points) / 10
    return [replace(p, loss=p.loss * (1 + bend) ** max(0.0, float(np.log10(p.flops / start)))) for p in points]


def tests(truth: str, bend: float, seeds: Iterable[int]) -> list[Limit]:
    return [limit_test(bent(known_ladder(TRUTHS[truth], seed)[0], bend), asked=BEND) for seed in seeds]


def row(case: str, truth: str, bend: float, found: Sequence[Limit]) -> Row:
    """The share of alarms, and how often the interval of the bend held."""
    alarms = sum(one.alarm for one in found)
    held = sum(low <= bend <= high for low, high in (one.bend.intervals[80] for one in found))
    made = {
        "case": case, "truth": truth, "ladders": len(found), "alarms": alarms / len(found),
        "alarms_95": share_interval(alarms, len(found)), "stated_power": float(np.mean([one.power for one in found])),
        "alarms_beyond_misfit": float(np.mean([one.p_misfit <= ALARM for one in found])), "bend_inside_80": held / len(found),
    }  # fmt: skip
    print(made, flush=True)
    return made


def public() -> list[Row]:
    """The result of the test on each public ladder."""
    rows = []
    for name, points in ladders(None).items():
        found = limit_test(points, asked=BEND)
        rows.append({"case": "public", "ladder": name, **found.to_dict()})
        print(name, found.p, found.p_misfit, found.bend, flush=True)
    return rows


def headline(rows: list[Row]) -> Headline:
    law, bend = ({r["case"]: r for r in rows if r.get("truth") == "all"}[case] for case in ("law", "bend"))
    yield f"limit test at 5 %, {law['ladders']} ladders of known laws: false alarms", f"{law['alarms']:.1%}"
    yield (
        f"the same on {bend['ladders']} that bend by 3 % of the loss over their last decade: alarms",
        f"{bend['alarms']:.0%}, power stated {law['stated_power']:.0%}",
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--ladders", type=int, default=400, help="ladders of each law")
    count = parser.parse_args().ladders
    rows = []
    seeds = itertools.count()
    for case, bend in (("law", 0.0), ("bend", BEND)):
        every: list[Limit] = []
        for truth in TRUTHS:
            found = tests(truth, bend, itertools.islice(seeds, count))
            rows.append(row(case, truth, bend, found))
            every += found
        rows.append(row(case, "all", bend, every))
    rows += public()
    write_results("limit", rows, headline(rows))


if __name__ == "__main__":
    main()
