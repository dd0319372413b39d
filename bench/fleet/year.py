"""Simulate a year of 600,000 accelerators of three kinds at three sites: events, seconds, memory.

    python -m bench.fleet.year --traces FOLDER [--policy lend]

FOLDER is that of `bench.fleet.policies`. Philly's jobs take 100 nodes per GPU, so that some 400,000 jobs in the year load 85 % of
training's nodes. Demand is ServeGen's m-small and m-mid, with days resampled to a year.
"""

import resource
import time
from pathlib import Path
from typing import Any

from bench.harness import options, write_results
from tenfold.fleet.fleet_file import fleet_of
from tenfold.fleet.setup import Setup, prepare
from tenfold.fleet.simulation.results import figures
from tenfold.fleet.simulation.simulator import Simulation
from tenfold.fleet.traces import read_demand
from tenfold.spec.plugins import load

POOLS = {"tx-h100": ("TX", "h100", 35_000), "va-b200": ("VA", "b200", 25_000), "oh-mi300x": ("OH", "mi300x", 15_000)}
DEMANDS = {"tx-h100": "m-small", "va-b200": "m-mid"}


def fleet(traces: Path, days: float) -> Setup:
    """75,000 nodes of eight accelerators; chat owns half of two pools."""
    sites: dict[str, Any] = {region: {"region": region} for region, _, _ in POOLS.values()}
    sites["TX"]["price_csv"] = str(traces / "power_price" / "US-TEX-ERCO_electricity_prices_2023.csv")
    sites["TX"]["carbon_csv"] = str(traces / "carbon" / "TX_NG_avgCI.csv")
    pools = {name: {"site": region, "accelerator": part, "nodes": nodes} for name, (region, part, nodes) in POOLS.items()}
    services = {}
    for pool, demand in DEMANDS.items():
        path, own = traces / "servegen" / f"{demand}_total_rate_10min.csv", POOLS[pool][2] // 2
        peak = float(read_demand(path).max())
        table = {"pool": pool, "own": own, "requests_per_s": 1.4 * peak / own, "demand_csv": str(path)}
        services[f"chat-{pool}"] = table
    jobs = {"trace_csv": str(traces / "philly" / "philly.csv"), "pools": list(POOLS), "nodes_per_gpu": 100.0, "elastic_from": 200}
    tables = {
        "simulation": {"days": days, "tick_s": 600.0},
        "sites": sites,
        "pools": pools,
        "services": services,
        "jobs": {"philly": jobs},
    }
    return prepare(fleet_of(tables, "the benchmark's fleet"))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--policy", default="lend")
    parser.add_argument("--days", type=float, default=365.0)
    given = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    setup = fleet(given.traces, given.days)
    prepared, prepared_cpu = time.perf_counter() - began, time.process_time() - cpu
    out = Simulation(setup, load("policies", given.policy)(), 0, sample_s=3600.0).run()
    row = {
        "policy": given.policy,
        "days": given.days,
        "accelerators": sum(pool.nodes * pool.gpus for pool in setup.pools.values()),
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "forecast_s": prepared,
        "forecast_cpu_s": prepared_cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **figures(out, given.days),
    }
    print(row)
    figure = f"{row['events']:,.0f} events in {row['seconds']:.0f} s ({row['cpu_s']:.0f} s of a core), {row['peak_gib']:.1f} GiB"
    write_results("fleet_year", [row], [("a year of 600,000 accelerators simulated", figure)])


if __name__ == "__main__":
    main()
