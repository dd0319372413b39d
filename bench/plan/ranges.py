"""Test a plan's ranges on published runs, each with the range from the other sources; compute the factors that plans use.

    python -m bench.plan.ranges --write

`--write` writes the two factors of a plan's time into `plan/data/beside.toml`: the measured step over the planned one, from
`bench/results/plan_by_source.json` (`python -m bench.plan.fit --by-source`), and the time of a run over its steps and failures.
"""

import math
import re
from dataclasses import asdict
from pathlib import Path

import tenfold.plan
from bench.harness import Headline, Row, options, rows_of, write_results
from tenfold.plan.ranges import Z90
from tenfold.plan.validation.hours import coverage, factor, held_out, one_factor, published_hours

FILE = Path(tenfold.plan.__file__).parent / "data/beside.toml"
FAILURES_SD = 0.03  # standard deviation of the log effective share, from simulated runs


def step_sd() -> float:
    """The standard deviation of log(measured step / planned step) for a source that no constant was fitted to.

    It is the root mean square over the sources' standard deviations, each with the same weight. The mean absolute error of a normal
    distribution is 0.8 of its standard deviation.
    """
    left = [row for row in rows_of("plan_by_source") if row["rows"] == "left out"]
    return math.sqrt(sum((0.01 * row["mean_abs_pct"] / 0.8) ** 2 for row in left) / len(left))


def write(step: float, median: float, beside: float) -> None:
    text = FILE.read_text()
    parts = re.split(r"(?=\[beside_steps\])", text)
    parts[0] = re.sub(r"log_sd = .*", f"log_sd = {step:.3f}", parts[0])
    parts[1] = re.sub(r"log_sd = .*", f"log_sd = {beside:.3f}", re.sub(r"median = .*", f"median = {median:.3f}", parts[1]))
    FILE.write_text("".join(parts))


def headline(rows: list[Row]) -> Headline:
    ours, one = (next(r for r in rows if r["what"] == name) for name in ("plan", "one factor for all"))
    what = "published runs in the plan's 80 % range, their source left out; high over low; interval score, of one factor for all"
    yield what, f"{ours['inside']} of {ours['runs']}; {ours['median_ratio']:.2f}; {ours['score']:.2f}, {one['score']:.2f}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--write", action="store_true", help="write the factors into beside.toml")
    asked = parser.parse_args()
    runs, _ = published_hours()
    rows: list[Row] = [
        {"what": name, **asdict(coverage(runs, make))} for name, make in (("plan", factor), ("one factor for all", one_factor))
    ]
    errors = dict(held_out(runs))
    rows += [{"what": "run", **asdict(run), "factor": run.told / run.planned, "error_pct": errors[run.model]} for run in runs]
    known = factor(runs, "all")
    whole = known.interval(1.0)[1] / math.exp(known.log_mean)  # with the width of Student's t
    total, step = math.log(whole) / Z90, step_sd()
    beside = math.sqrt(max(0.01, total**2 - step**2 - FAILURES_SD**2))
    rows.append({"what": "factors", "step_log_sd": step, "beside_median": math.exp(known.log_mean), "beside_log_sd": beside})
    if asked.write:
        write(step, math.exp(known.log_mean), beside)
    print(write_results("plan_ranges", rows, headline(rows)))


if __name__ == "__main__":
    main()
