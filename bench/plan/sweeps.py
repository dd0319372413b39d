"""Random sweeps that test whether a plan is monotone in GPUs, days, rent and PUE.

More GPUs must not take longer, fewer days must not need fewer GPUs, and a higher rent or PUE must not cost less.

    python -m bench.plan.sweeps --sweeps 2000
"""

import random
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache

from bench.harness import Headline, Row, options, write_results
from tenfold.plan.costs.consequences import Consequences, consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.plan import Plan, gpus_for_days, make_plan
from tenfold.plan.request import GpuRequest, Request, StepRequest
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.shape import resolve
from tenfold.spec.errors import TenfoldError

PARENTS = ("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
PARTS = ("h100", "b200", "mi300x")
SLACK = 1 + 1e-9


@cache
def planned(parent: str, part: str, gpus: int) -> Plan:
    return make_plan(resolve(Request(after=parent, times=1.0)), gpus, machine(part))


@cache
def least(parent: str, part: str) -> int:
    """The smallest power of two of GPUs on which the model fits, from 8 on."""
    for gpus in (2**power for power in range(3, 20)):
        with suppress(TenfoldError):
            planned(parent, part, gpus)
            return gpus
    raise SystemExit(f"{parent} fits on no number of {part}.")


def after(plan: Plan, **changes: float) -> Consequences:
    return consequences(plan.workload, SiteOptions(**changes))  # type: ignore[arg-type]


def sweep(number: int) -> list[str]:
    """One random sweep; a sentence for each quantity that is not monotone."""
    draw, found = random.Random(number), []
    parent, part = draw.choice(PARENTS), draw.choice(PARTS)
    few = round(least(parent, part) * 2 ** draw.uniform(0, 8))
    more = few + draw.choice((1, 8, 8, 64, round(few * draw.random())))
    small, large = (after(planned(parent, part, n)) for n in (few, more))
    if large.wall_days.mid > small.wall_days.mid * SLACK:
        found.append(f"{parent} on {part}: {more} GPUs take {large.wall_days.mid:.4g} days, {few} take {small.wall_days.mid:.4g}")
    used = large.failures.n_gpus / small.failures.n_gpus
    if large.gpu_hours.mid > small.gpu_hours.mid * SLACK * used:
        found.append(f"{parent} on {part}: {more} GPUs take more GPU-hours than {few} by a larger factor than train")
    low, high = sorted(draw.uniform(0.5, 9) for _ in range(2))
    cheap, dear = (after(planned(parent, part, few), rent_usd_per_h=rent).cost.rent_usd for rent in (low, high))
    if any(getattr(cheap, end) > getattr(dear, end) * SLACK for end in ("low", "mid", "high")):
        found.append(f"{parent} on {part}: rent at {low:.2f} dollars an hour costs more than at {high:.2f}")
    low, high = sorted(draw.uniform(1.02, 1.9) for _ in range(2))
    cool, warm = (after(planned(parent, part, few), pue=pue).power.energy_mwh for pue in (low, high))
    if any(getattr(cool, end) > getattr(warm, end) * SLACK for end in ("low", "mid", "high")):
        found.append(f"{parent} on {part}: a PUE of {low:.2f} takes more energy than one of {high:.2f}")
    short = small.wall_days.mid * draw.uniform(0.4, 1.2)
    needed = [for_days(parent, part, days) for days in (short, short * draw.uniform(1, 1.5))]
    if None not in needed and needed[0] < needed[1]:  # type: ignore[operator]
        found.append(f"{parent} on {part}: fewer GPUs for fewer days: {needed}")
    return found


def for_days(parent: str, part: str, days: float) -> int | None:
    shape = resolve(Request(after=parent, times=1.0))
    try:
        return gpus_for_days(shape, replace(GpuRequest(), days=days), machine(part), StepRequest(), SiteOptions())
    except TenfoldError:
        return None


def headline(rows: list[Row]) -> Headline:
    yield (
        "random sweeps of GPUs, price, PUE and days that are not monotone",
        f"{sum(bool(r['faults']) for r in rows)} of {len(rows)}",
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sweeps", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first sweep; a sweep's number is its seed")
    asked = parser.parse_args()
    numbers = range(asked.first, asked.first + asked.sweeps)
    rows: list[Row] = []
    with ProcessPoolExecutor() as pool:
        for number, faults in zip(numbers, pool.map(sweep, numbers), strict=True):
            rows.append({"sweep": number, "faults": faults})
            print(f"{number}: {'; '.join(faults) or 'monotone'}", flush=True)
    print(write_results("plan_sweeps", rows, headline(rows)))


if __name__ == "__main__":
    main()
