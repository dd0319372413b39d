"""Plans of sites: solving times of large programmes, policies on simulated futures and on history, inputs changed by one percent.

    python -m bench.plan.sites --parts size,policies,percent,history --futures 1000

The programmes of part `size` have sites like the example's, each with other costs, limits and prices; demand grows with their
number. Futures are drawn outside the plan's tree and split over the cores.
"""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
from msgspec.structs import replace as with_fields

from bench.harness import Headline, Row, options, write_results
from tenfold.plan.sites.answer import Question
from tenfold.plan.sites.backtest import Result, backtest
from tenfold.plan.sites.changes import changed, compared
from tenfold.plan.sites.demand import read_demand, today
from tenfold.plan.sites.history import history
from tenfold.plan.sites.inputs import Futures, read_sites
from tenfold.plan.sites.policies import NAIVE, Policy, View, policies
from tenfold.plan.sites.portfolio import Portfolio, portfolio
from tenfold.plan.sites.staging import Aim, solve
from tenfold.plan.sites.tree import forecast_tree

SIZES = ((31, 4, (2, 2, 2, 2, 1), 5), (127, 8, (2, 2, 2, 2, 2, 2), 7))  # nodes, sites, branches by stage, stages
GAP = 0.01
SAMPLES = 65_536  # enough for every node to branch
WORLDS = {
    "as planned": {},
    "lead times +50 %": {"lead_factor": 1.5},
    "demand x0.5": {"demand_factor": 0.5},
    "demand x2": {"demand_factor": 2.0},
}
INPUTS = (
    "demand",
    "demand.training",
    "demand.chat",
    "demand.ranking",
    "rent",
    "clouds",
    "lead",
    "price.h100",
    "price.b200",
    "grid.LA-1",
)
PART = 10  # futures per task of the process pool


def of_sites(number: int) -> Portfolio:
    """The example's portfolio with `number` sites, all different."""
    p = portfolio(read_sites(), read_demand())
    sites = []
    for i in range(number):
        like = p.sites[i % len(p.sites)]
        first = i == 0
        steps = tuple(replace(step, usd_m=step.usd_m * (1 + 0.05 * i)) for step in like.steps)
        grid = tuple((quarter, mw * (1 + 0.07 * i)) for quarter, mw in like.grid_mw)
        yearly = like.usd_m_per_mw_year * (1 + 0.03 * i)
        sites.append(
            replace(
                like, name=f"{like.name} {i}", steps=steps, grid_mw=grid, usd_m_per_mw_year=yearly, halls_mw=like.halls_mw * first
            )
        )
    name = sites[0].name
    standing, halls = (
        tuple(replace(one, site=name) for one in p.standing),
        tuple((name, mw, ready) for _, mw, ready in p.halls_begun),
    )
    return replace(p, sites=tuple(sites), standing=standing, halls_begun=halls)


def size(nodes: int, sites: int, branches: tuple[int, ...], stages: int) -> Row:
    demand = with_fields(read_demand(), quarters=tuple(4.0 * i for i in range(stages)), end_quarter=4.0 * stages + 4)
    demand = changed(Question(of_sites(sites), demand, Aim()), f"demand x{sites / 4}").demand
    tree, p = forecast_tree(demand, today(demand), branches, samples=SAMPLES).tree, of_sites(sites)
    began = time.perf_counter()
    plan = solve(p, tree, Aim(gap=GAP))
    seconds = time.perf_counter() - began
    gap = (plan.mean_usd_m - plan.bound) / plan.mean_usd_m
    return {"part": "size", "nodes": len(tree.nodes), "sites": sites, "chips": len(p.machines), "seconds": seconds, "gap": gap}


def some(number: int, count: int, factors: dict[str, float]) -> dict[str, Result]:
    """The `number`th part of the futures, `count` of them, for all policies."""
    return backtest(read_sites(), read_demand(), chosen(), Futures(count, number, **factors))


@cache
def chosen() -> dict[str, Policy]:
    """All policies; cached, since they keep their decision of the first stage."""
    sites, demand = read_sites(), read_demand()
    first = View(portfolio(sites, demand), today(demand), demand)
    return policies([*NAIVE, "published"], first, sites.cvar_share)


def policy_rows(futures: int) -> list[Row]:
    rows: list[Row] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for world, factors in WORLDS.items():
            parts = list(pool.map(some, range(futures // PART), [PART] * (futures // PART), [factors] * (futures // PART)))
            found = {name: np.concatenate([part[name].usd_m for part in parts]) for name in parts[0]}
            for name, usd in found.items():
                over, short = usd - found["staged"], np.concatenate([part[name].short_share for part in parts])
                row = {"part": "policies", "world": world, "policy": name, "futures": len(usd), "mean_usd": 1e6 * float(usd.mean())}
                row |= {"cvar95_usd": 1e6 * Result(usd, short).cvar_usd_m, "short_share": float(short.mean())}
                row |= {
                    "over_staged_usd": 1e6 * float(over.mean()),
                    "standard_error_usd": 1e6 * float(over.std()) / len(over) ** 0.5,
                }
                rows.append(row)
                print(row, flush=True)
    return rows


def percent_rows() -> list[Row]:
    """Change every input by one percent up and down: do this quarter's phases change, and what does keeping the old ones cost?"""
    demand = read_demand()
    asked = Question(portfolio(read_sites(), demand), demand, Aim())
    before = solve(asked.portfolio, asked.grown().tree, asked.aim)
    rows = []
    for name in INPUTS:
        for factor in (0.99, 1.01):
            found = compared(asked, f"{name} x{factor}", before)
            share = None if found.keeping_usd_m is None else found.keeping_usd_m / found.usd_m
            rows.append({"part": "percent", "change": f"{name} x{factor}", "unchanged": found.unchanged, "keeping_share": share})
            print(rows[-1], flush=True)
    return rows


def history_rows() -> list[Row]:
    """Policies that decide at the ends of 2021, 2022 and 2023, compared with what was built."""
    found = history(read_sites())
    return [{"part": "history", "what": what, **row} for what in ("decided", "built") for row in found[what]]


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        if row["part"] == "size":
            yield f"Sites: {row['nodes']} nodes, {row['sites']} sites, {row['chips']} chips, to 1 %", f"{row['seconds']:.1f} s"
    policy = {(row["world"], row["policy"]): row for row in rows if row["part"] == "policies"}
    for world in dict.fromkeys(world for world, _ in policy):
        staged, naive = policy[world, "staged"], [policy[world, name] for name in NAIVE]
        means, tails = (" and ".join(f"{n[key] / staged[key]:.2f}" for n in naive) for key in ("mean_usd", "cvar95_usd"))
        yield f"Sites, {world}: mean and CVaR 95 of just in time and all now over staged", f"{means}; {tails}"
    percent = [row for row in rows if row["part"] == "percent"]
    if percent:
        yield "Sites: decisions unchanged by 1 % of an input", f"{sum(row['unchanged'] for row in percent)} of {len(percent)}"
    decided = [row for row in rows if row["part"] == "history" and row["what"] == "decided"]
    for year in dict.fromkeys(row["decided"] for row in decided):
        figures = ", ".join(
            f"{row['policy']} {row['usd'] / 1e9:.1f} ({100 * row['short_share']:.1f} %)"
            for row in decided
            if row["decided"] == year
        )
        yield f"Sites, decided at the end of {year}: billion USD until {decided[0]['until']} (hours short)", figures


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--parts", default="size,policies,percent,history")
    parser.add_argument("--futures", type=int, default=1000)
    asked = parser.parse_args()
    parts, rows = asked.parts.split(","), []
    if "size" in parts:
        rows += [size(*one) for one in SIZES]
    if "policies" in parts:
        rows += policy_rows(asked.futures)
    if "percent" in parts:
        rows += percent_rows()
    if "history" in parts:
        rows += history_rows()
    print(write_results("sites", rows, headline(rows)))


if __name__ == "__main__":
    main()
