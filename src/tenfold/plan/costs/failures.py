"""Interruptions of a job by failures, the time that they cost, the best checkpoint interval, and spare nodes.

Failures have a constant rate per node-day. At each checkpoint the job stalls while its state is copied to host memory, and
continues while the copy is written to storage. After a failure is detected, the job restarts on a spare node from the last
checkpoint that reached storage, and repeats the work since then.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import poisson

from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range, apply
from tenfold.spec.errors import TenfoldError

DAY_S, HOUR_S = 86_400.0, 3_600.0
SPARES_SUFFICE = 0.99  # the probability that the spare nodes replace all nodes in repair


@dataclass(frozen=True)
class Failures:
    """Interruptions of one job and the time that they take. `shares` are those of wall-clock time and sum to 1."""

    n_gpus: int
    n_nodes: int
    gpus_per_node: int
    per_1000_node_days: Range
    by_component_per_day: dict[str, float]
    mean_time_to_interruption_h: Range
    interruptions: Range
    checkpoint_bytes: float
    checkpoint_stall_s: float
    checkpoint_write_s: float
    checkpoint_interval_s: float
    young_interval_s: float
    daly_interval_s: float
    detection_s: float
    restart_s: float
    spare_nodes: int
    effective_share: Range
    shares: dict[str, float] = field(default_factory=dict)
    source: str = ""

    @property
    def spare_gpus(self) -> int:
        return self.spare_nodes * self.gpus_per_node


def component_rates(gpus_per_node: int = 8) -> dict[str, float]:
    """Interruptions per node-day by component (Llama 3's table), for nodes of `gpus_per_node` accelerators."""
    table = facts("reliability")["components"]
    node_days = table["nodes"] * table["days"]
    per_gpu = gpus_per_node / table["gpus_per_node"]
    return {
        name: row["count"] / node_days * (per_gpu if row["scales_with"] == "gpu" else 1.0) for name, row in table["counts"].items()
    }


def rate_per_node_day(gpus_per_node: int = 8) -> Range:
    """Interruptions per node-day: Llama 3's table as mid, Meta's clusters RSC-2 and RSC-1 as low and high."""
    mid = sum(component_rates(gpus_per_node).values())
    bounds = {row["bound"]: row["per_1000_node_days"] for row in facts("reliability")["fleets"].values() if "bound" in row}
    scale = mid / (1e-3 * facts("reliability")["fleets"]["Llama 3 405B"]["per_1000_node_days"])
    return Range(1e-3 * bounds["low"] * scale, mid, 1e-3 * bounds["high"] * scale, "failure rate")


def young_interval(stall_s: float, mtti_s: float) -> float:
    """Seconds of work between checkpoints by Young (1974): sqrt(2 x stall x mean time to interruption)."""
    return math.sqrt(2 * stall_s * mtti_s)


def daly_interval(stall_s: float, mtti_s: float) -> float:
    """Seconds of work between checkpoints by Daly (2006, eq. 37), a higher-order form of Young's."""
    if stall_s >= 2 * mtti_s:
        return mtti_s
    x = stall_s / (2 * mtti_s)
    return math.sqrt(2 * stall_s * mtti_s) * (1 + math.sqrt(x) / 3 + x / 9) - stall_s


def segment_s(work_s: Any, stall_s: Any, write_s: Any, recovery_s: Any, mtti_s: Any) -> Any:
    """Expected wall-clock seconds (exact) from one durable checkpoint to the next, with `work_s` of work between them.

    Interruptions are Poisson and may also hit a recovery. A checkpoint is durable `write_s` after its stall; until then
    a failure goes back to the one before. So the first attempt needs `work + stall` seconds without interruption, each
    further one `recovery + work + stall + write`. With `write_s = 0` this is Daly's
    exp(R / M) M (exp((work + stall) / M) - 1). The arguments are numbers or arrays of draws; infinite where it overflows.
    """
    length = work_s + stall_s
    again = (recovery_s + length + write_s) / mtti_s
    with np.errstate(over="ignore"):
        return mtti_s * -np.expm1(-length / mtti_s) * np.exp(again)


def effective_share(work_s: Any, stall_s: Any, write_s: Any, recovery_s: Any, mtti_s: Any) -> Any:
    """Expected useful work over wall-clock time (see `segment_s`)."""
    return work_s / segment_s(work_s, stall_s, write_s, recovery_s, mtti_s)


def best_interval(stall_s: float, write_s: float, recovery_s: float, mtti_s: float) -> float:
    """Seconds of work between checkpoints that maximise `effective_share`; never shorter than a write."""
    low = max(write_s, 0.01 * stall_s, 1e-3)
    high = max(10 * low, 10 * mtti_s)
    found = minimize_scalar(
        lambda x: -effective_share(math.exp(x), stall_s, write_s, recovery_s, mtti_s),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def checkpoint_times(state_bytes: float, n_gpus: int, n_nodes: int, storage_gb_per_s: float | None = None) -> tuple[Range, Range]:
    """(seconds that the job stalls, seconds until the checkpoint is safe in storage).

    Every accelerator copies its share to host memory. The nodes then write at `storage_gb_per_s` in all, the file system's
    bandwidth, or without it at the rate per node of `reliability.toml`.
    """
    table = facts("reliability")["checkpoint"]
    copy = state_bytes / (1e9 * n_gpus * Range.of(table["host_copy_gb_per_s_per_gpu"], "copies to the host"))
    rate = Range.of(storage_gb_per_s) if storage_gb_per_s else n_nodes * _storage()
    return copy + Range.of(table["coordination_s"], "coordination"), state_bytes / (1e9 * rate)


def _storage() -> Range:
    """GB/s at which a node writes to storage and reads from it."""
    return Range.of(facts("reliability")["checkpoint"]["storage_gb_per_s_per_node"], "storage")


def spare_nodes(repairs_per_day: float, repair_h: float, suffice: float = SPARES_SUFFICE) -> int:
    """Spare nodes that replace all nodes in repair (Poisson) with probability `suffice`."""
    return int(poisson.ppf(suffice, repairs_per_day * repair_h / 24))


def effective_time(n_gpus: int, work_s: float, state_bytes: float, around: SiteOptions = SiteOptions()) -> Failures:
    """The effect of failures on `work_s` seconds of training on `n_gpus`, with a checkpoint of `state_bytes`.

    Options of `around` on storage, checkpoints, failures and recovery replace the planner's own figures. The wall-clock time is
    `work_s` over `effective_share`. Raises TenfoldError where a checkpoint takes longer to write than the interval between two,
    and where failures come so fast that the job makes no progress.
    """
    n_nodes = math.ceil(n_gpus / around.gpus_per_node)
    rates, per_node_day = _rates(around)
    mtti_s = DAY_S / (n_nodes * per_node_day)
    stall, write = checkpoint_times(state_bytes, n_gpus, n_nodes, around.storage_gb_per_s)
    detection, recovery = _recovery(state_bytes, n_nodes, around)
    interval = around.checkpoint_interval_s or best_interval(stall.mid, write.mid, recovery.mid, mtti_s.mid)
    if interval < write.mid:
        raise TenfoldError(
            f"A checkpoint takes {write.mid:.0f} s to write, longer than the {interval:.0f} s between two: raise "
            "--checkpoint-interval-s or the storage bandwidth (--storage-gb-per-s)."
        )
    mid = float(effective_share(interval, stall.mid, write.mid, recovery.mid, mtti_s.mid))
    if mid < 0.01:
        raise TenfoldError(
            f"{n_gpus:,} accelerators are interrupted every {mtti_s.mid / 60:.1f} min and need {recovery.mid / 60:.1f} min to "
            "recover: use fewer, or restart faster."
        )
    share = apply(lambda *drawn: np.maximum(0.01 * mid, effective_share(interval, *drawn)), stall, write, recovery, mtti_s)
    table = facts("reliability")["components"]["counts"]
    repairs_per_day = n_nodes * sum(rate for name, rate in rates.items() if table[name]["needs_repair"])
    return Failures(
        n_gpus=n_gpus,
        n_nodes=n_nodes,
        gpus_per_node=around.gpus_per_node,
        per_1000_node_days=1e3 * per_node_day,
        by_component_per_day={name: n_nodes * rate for name, rate in rates.items()},
        mean_time_to_interruption_h=mtti_s / HOUR_S,
        interruptions=work_s / (share * mtti_s),
        checkpoint_bytes=state_bytes,
        checkpoint_stall_s=stall.mid,
        checkpoint_write_s=write.mid,
        checkpoint_interval_s=interval,
        young_interval_s=young_interval(stall.mid, mtti_s.mid),
        daly_interval_s=daly_interval(stall.mid, mtti_s.mid),
        detection_s=min(detection.mid, recovery.mid),
        restart_s=max(0.0, recovery.mid - detection.mid),
        spare_nodes=spare_nodes(repairs_per_day, facts("reliability")["recovery"]["repair_h"][1]),
        effective_share=share,
        shares=_shares(share.mid, interval, stall.mid, recovery.mid, mtti_s.mid),
        source=facts("reliability")["components"]["source"],
    )


def _rates(around: SiteOptions) -> tuple[dict[str, float], Range]:
    """(interruptions per node-day by component, their sum)."""
    rates, per_node_day = component_rates(around.gpus_per_node), rate_per_node_day(around.gpus_per_node)
    if around.per_1000_node_days is None:
        return rates, per_node_day
    known = 1e-3 * around.per_1000_node_days
    return {name: rate * known / per_node_day.mid for name, rate in rates.items()}, Range.of(known)


def _recovery(state_bytes: float, n_nodes: int, around: SiteOptions) -> tuple[Range, Range]:
    """(seconds until a failure is detected, seconds until the job computes again, with the restart and reading the checkpoint)."""
    table = facts("reliability")
    detection, restart = (Range.of(table["recovery"][key], key) for key in ("detection_s", "restart_s"))
    if around.recovery_s is not None:
        return detection, Range.of(around.recovery_s)
    rate = Range.of(around.storage_gb_per_s) if around.storage_gb_per_s else n_nodes * _storage()
    reload = state_bytes / (1e9 * rate)
    return detection, detection + restart + reload


def _shares(effective: float, interval_s: float, stall_s: float, recovery_s: float, mtti_s: float) -> dict[str, float]:
    """The shares of wall-clock time. An interruption may end a recovery, so that recoveries take 1 - exp(-R / M)."""
    checkpoints = effective * stall_s / interval_s
    recovery = -math.expm1(-recovery_s / mtti_s)
    return {
        "training": effective,
        "checkpoints": checkpoints,
        "recovery": recovery,
        "work done again": max(0.0, 1 - effective - checkpoints - recovery),
    }


@dataclass(frozen=True)
class Simulated:
    """One simulated run: its wall-clock time, effective share, and interruptions as (hours since the start, component)."""

    wall_s: float
    effective_share: float
    interruptions: list[tuple[float, str]]


def simulate(failures: Failures, work_s: float, seed: int = 0) -> Simulated:
    """Simulate one run with random interruptions, as a check of the expectation in `effective_time`.

    Between two interruptions the job recovers, then alternates work and stalls; a checkpoint counts once it is written.
    """
    random = np.random.default_rng(seed)
    names = list(failures.by_component_per_day)
    rates = np.array(list(failures.by_component_per_day.values()))
    interval, stall, write = failures.checkpoint_interval_s, failures.checkpoint_stall_s, failures.checkpoint_write_s
    recovery = failures.detection_s + failures.restart_s
    saved = now = starts = 0.0  # seconds of work in storage; current time; time at which the job computes again
    times: list[float] = []
    while True:
        for gap in random.exponential(DAY_S / rates.sum(), 1000).tolist():
            left = work_s - saved
            finish = starts + left + stall * (left // interval)
            now += gap
            if finish <= now:
                causes = random.choice(names, len(times), p=rates / rates.sum())
                return Simulated(finish, work_s / finish, [(t / HOUR_S, str(c)) for t, c in zip(times, causes, strict=True)])
            times.append(now)
            durable = max(0.0, (now - starts - write) // (interval + stall))
            saved = min(work_s, saved + durable * interval)
            starts = now + recovery


def monte_carlo(failures: Failures, work_s: float, runs: int = 200, seed: int = 0) -> Range:
    """The 5th percentile, mean and 95th percentile of the effective share over `runs` simulated runs."""
    shares = np.array([simulate(failures, work_s, seed + i).effective_share for i in range(runs)])
    low, high = np.quantile(shares, [0.05, 0.95])
    mean = float(shares.mean())
    return Range(min(float(low), mean), mean, max(float(high), mean))
