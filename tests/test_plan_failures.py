"""Failures against published fleets, against simulation, and against the classic formulas."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from tenfold.plan.costs import failures
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.facts import facts
from tenfold.spec.errors import TenfoldError

STATE_405B = 405e9 * 14
DAY_S = 86_400.0
PUBLISHED = Path(__file__).parent / "data" / "reliability.csv"


def effective_time(gpus, work_s, state_bytes, **changes):
    return failures.effective_time(gpus, work_s, state_bytes, SiteOptions(**changes))


def llama3(**changes):
    """54 days of wall-clock time on 16,384 GPUs: the work is what is left of it."""
    once = effective_time(16384, 54 * DAY_S, STATE_405B, **changes)
    return effective_time(16384, 54 * DAY_S * once.effective_share.mid, STATE_405B, **changes)


def test_llama_3_is_reproduced():
    job = llama3()
    assert job.interruptions.mid == pytest.approx(419, rel=0.01)
    assert job.mean_time_to_interruption_h.mid == pytest.approx(3.09, rel=0.01)
    assert job.effective_share.mid > 0.90


def test_llama_3_is_foreseen_by_the_other_fleets():
    """Without Llama 3's own table: the median of the other fleets' rates, the rest as it is."""
    fleets = facts("reliability")["fleets"]
    others = np.median([row["per_1000_node_days"] for name, row in fleets.items() if not name.startswith("Llama 3")])
    job = llama3(per_1000_node_days=float(others))
    own = llama3()
    assert own.interruptions.low < job.interruptions.mid < own.interruptions.high
    assert job.effective_share.mid > 0.85


def test_byterobust_and_rsc():
    """97 % effective on 9,600 GPUs (arXiv 2509.16293); RSC-1's projections from 6.5 per 1,000 node-days."""
    assert effective_time(9600, 90 * DAY_S, STATE_405B).effective_share.mid == pytest.approx(0.97, abs=0.03)
    for gpus, hours in ((16384, 1.8), (131072, 0.225)):
        job = effective_time(gpus, DAY_S, STATE_405B, per_1000_node_days=6.5)
        assert job.mean_time_to_interruption_h.mid == pytest.approx(hours, rel=0.01)


def test_spare_nodes_of_opt_175b():
    """OPT-175B lost two machines a day of 124 and asked for 12 spares; BLOOM lost one a week of 48 and held 4."""
    repair_h = facts("reliability")["recovery"]["repair_h"]
    assert failures.spare_nodes(2.0, repair_h[1]) == pytest.approx(12, abs=2)
    assert failures.spare_nodes(1 / 7, repair_h[2]) == pytest.approx(4, abs=1)


def test_components_are_those_published():
    with PUBLISHED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"].startswith("cause:")]
    table = facts("reliability")["components"]["counts"]
    assert sorted(row["count"] for row in table.values()) == sorted(int(row["count"]) for row in rows)
    assert 1e3 * sum(failures.component_rates().values()) == pytest.approx(
        sum(float(row["failures_per_1000_node_days"]) for row in rows), rel=1e-3
    )


@pytest.mark.parametrize(
    ("gpus", "changes"), [(16384, {}), (100_000, {}), (16384, {"checkpoint_interval_s": 3600}), (4096, {"recovery_s": 7200})]
)
def test_expectation_agrees_with_simulation(gpus, changes):
    work_s = 20 * DAY_S
    job = effective_time(gpus, work_s, STATE_405B, **changes)
    shares = np.array([failures.simulate(job, work_s, seed).effective_share for seed in range(60)])
    error = shares.std(ddof=1) / math.sqrt(len(shares))
    assert abs(shares.mean() - job.effective_share.mid) < 4 * error + 2e-4  # the run's last segment is not a whole one


def test_expectation_agrees_with_simulation_where_writes_are_slow():
    """A write as long as half the interval: failures then often go back two checkpoints."""
    job = effective_time(16384, 20 * DAY_S, STATE_405B, storage_gb_per_s=6, checkpoint_interval_s=1900)
    assert 0.4 < job.checkpoint_write_s / job.checkpoint_interval_s < 0.6
    simulated = failures.monte_carlo(job, 20 * DAY_S, runs=60)
    assert simulated.mid == pytest.approx(job.effective_share.mid, abs=2e-3)
    assert simulated.low < job.effective_share.mid < simulated.high


def test_simulated_interruptions_are_as_many_as_expected():
    job = effective_time(16384, 30 * DAY_S, STATE_405B)
    runs = [failures.simulate(job, 30 * DAY_S, seed) for seed in range(40)]
    expected = sum(run.wall_s for run in runs) / 3600 / job.mean_time_to_interruption_h.mid
    seen = sum(len(run.interruptions) for run in runs)
    assert abs(seen - expected) < 4 * math.sqrt(expected)
    faulty = sum(name == "faulty GPU" for run in runs for _, name in run.interruptions)
    assert faulty / seen == pytest.approx(148 / 419, abs=0.02)


@settings(deadline=None)
@given(st.floats(1, 1e4), st.floats(0.1, 500), st.floats(0, 3000), st.floats(500, 1e6))
def test_one_segment_is_dalys_where_writes_are_at_once(work, stall, recovery, mtti):
    """Daly 2006: exp(R/M) M (exp((tau + delta)/M) - 1)."""
    expected = math.exp(recovery / mtti) * mtti * math.expm1((work + stall) / mtti)
    assert failures.segment_s(work, stall, 0.0, recovery, mtti) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(st.floats(10, 1000), st.floats(0.1, 50), st.floats(0, 500), st.floats(200, 1e5))
def test_first_attempt_by_integration(work, stall, recovery, mtti):
    """The first term, the mean length of an attempt cut short, by numerical integration."""
    length = work + stall
    mean, _ = quad(lambda t: t * math.exp(-t / mtti) / mtti, 0, length)
    mean += length * math.exp(-length / mtti)
    again = mtti * math.expm1((recovery + length + 7) / mtti)
    expected = mean + (1 - math.exp(-length / mtti)) * again
    assert failures.segment_s(work, stall, 7.0, recovery, mtti) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None)
@given(st.floats(0.5, 100), st.floats(60, 1200), st.floats(1800, 1e6))
def test_best_interval_is_best_and_near_young_and_daly(stall, recovery, mtti):
    best = failures.best_interval(stall, 0.0, recovery, mtti)
    share = failures.effective_share(best, stall, 0.0, recovery, mtti)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert failures.effective_share(factor * best, stall, 0.0, recovery, mtti) <= share + 1e-12
    assert best == pytest.approx(failures.daly_interval(stall, mtti), rel=0.02)
    assert best == pytest.approx(failures.young_interval(stall, mtti), rel=0.25)


@settings(deadline=None)
@given(st.integers(1024, 200_000), st.floats(1, 100))
def test_time_adds_up_and_more_gpus_never_help(gpus, days):
    """From 1,024 on: with fewer, the time to read the checkpoint back counts, and more nodes read faster."""
    job = effective_time(gpus, days * DAY_S, STATE_405B, storage_gb_per_s=2000)
    assert sum(job.shares.values()) == pytest.approx(1, abs=1e-9)
    assert min(job.shares.values()) >= 0
    more = effective_time(2 * gpus, days * DAY_S, STATE_405B, storage_gb_per_s=2000)
    assert more.effective_share.mid <= job.effective_share.mid
    assert more.spare_nodes >= job.spare_nodes


def test_impossible_jobs_say_what_binds():
    with pytest.raises(TenfoldError, match="storage bandwidth"):
        effective_time(16384, DAY_S, STATE_405B, storage_gb_per_s=1, checkpoint_interval_s=60)
    with pytest.raises(TenfoldError, match="use fewer, or restart faster"):
        effective_time(10_000_000, DAY_S, STATE_405B, recovery_s=7200)
