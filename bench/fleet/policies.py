"""The fleet's policies on real demand and real jobs: `lend` compared with the best fixed split in hindsight, `borrow` and `lyra`.

    python -m bench.fleet.policies --traces FOLDER

FOLDER has `servegen/NAME_total_rate_10min.csv` (alibaba/ServeGen), `philly/philly.csv` (msr-fiddle/philly-traces), and hourly
prices and carbon (`power_price/US-TEX-ERCO_electricity_prices_2023.csv`, `carbon/TX_NG_avgCI.csv`). A node is one accelerator. A
service owns half of the nodes, as many as its busiest bin needs; training owns the other half. `own` is a load of 85 % of
training's nodes, as in Lyra's paper; `fleet` is a load of 85 % of all nodes, with the service's mean demand. The best fixed split
is the one with the shortest completion time that misses at most one request in 1,000.
"""

from pathlib import Path
from typing import Any

from bench.harness import options, write_results
from tenfold.fleet.fleet_file import fleet_of
from tenfold.fleet.forecast import DAY, backtest
from tenfold.fleet.setup import Setup, prepare
from tenfold.fleet.simulation.compare import best_static, compare
from tenfold.fleet.simulation.results import over_seeds, ratios
from tenfold.fleet.traces import read_demand

NODES = 440  # of each half: Philly's 374 mean GPUs are 85 % of them
POLICIES = ("lend", "lyra", "borrow")
MISSED = 1e-3
SHARES = (0.5, 0.6, 0.7, 0.8, 1.0)
PAPER = {"queueing": 1.53, "completion": 1.48, "usage": 1.25}  # Lyra beside neither loans nor elastic jobs


def fleet(traces: Path, name: str, load: float, days: float) -> Setup:
    """880 nodes, half of them owned by one service with the demand `name`."""
    demand = traces / "servegen" / f"{name}_total_rate_10min.csv"
    peak = float(read_demand(demand).max())
    site = {
        "region": "TX",
        "price_csv": str(traces / "power_price" / "US-TEX-ERCO_electricity_prices_2023.csv"),
        "carbon_csv": str(traces / "carbon" / "TX_NG_avgCI.csv"),
    }
    jobs = {"trace_csv": str(traces / "philly" / "philly.csv"), "pools": ["h100"], "load": load, "state_gb_per_node": 14.0}
    tables = {
        "simulation": {"days": days, "drain_days": 60.0, "history_days": 4.0},
        "sites": {"tx": site},
        "pools": {"h100": {"site": "tx", "accelerator": "h100", "nodes": 2 * NODES, "accelerators_per_node": 1}},
        "services": {"chat": {"pool": "h100", "own": NODES, "requests_per_s": peak / NODES, "demand_csv": str(demand)}},
        "jobs": {"philly": jobs},
    }
    return prepare(fleet_of(tables, "the benchmark's fleet"))


def row(setup: Setup, name: str, load: str, seeds: int) -> dict[str, Any]:
    """All policies on one demand trace and load."""
    share, static = best_static(setup, seeds, MISSED, SHARES)
    found = compare(setup, POLICIES, seeds, print)
    runs = {"static": static, **found.runs}
    return {
        "demand": name,
        "load": load,
        "split": share,
        "means": {policy: over_seeds(of) for policy, of in runs.items()},
        "lend_beside": {policy: ratios(runs["lend"], runs[policy]) for policy in ("static", "lyra", "borrow")},
        "lyra_beside_static": ratios(runs["lyra"], static),
        "lyra_paper": PAPER,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--days", type=float, default=9.0)
    parser.add_argument("--demands", default="m-small,m-mid,deepseek-r1")
    given, rows = parser.parse_args(), []
    for name in given.demands.split(","):
        rates = read_demand(given.traces / "servegen" / f"{name}_total_rate_10min.csv")
        if len(rates) > 8 * DAY:
            rows.append({"demand": name, "backtest": backtest(rates)})
        mean = float(rates.mean() / rates.max())
        for load, of_own in (("own", 0.85), ("fleet", 0.85 * 2 - mean)):
            rows.append(row(fleet(given.traces, name, of_own, given.days), name, load, given.seeds))
            print(name, load, rows[-1]["lend_beside"], rows[-1]["lyra_beside_static"], flush=True)
    first = next(r for r in rows if r.get("load") == "fleet")
    gains = first["lend_beside"]["static"]
    figure = ", ".join(f"{what} {gains[what]:.2f} x" for what in ("queueing", "completion", "usage"))
    write_results("fleet_policies", rows, [(f"lend beside the best fixed split on {first['demand']}, 85 % load", figure)])


if __name__ == "__main__":
    main()
