"""Ranges, power and money against measured systems and by property."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.plan.costs import cost, power
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Z90, Range, total
from tenfold.plan.sites.site import site
from tenfold.spec.accelerator import accelerator, accelerators
from tenfold.spec.errors import TenfoldError

ends = st.lists(st.floats(0.01, 1e3), min_size=3, max_size=3).map(sorted)
factors = st.floats(1, 3)  # of heavier tails, the sum has heavier ones than its parts
usual_ends = st.builds(lambda mid, down, up: [mid / down, mid, mid * up], st.floats(0.01, 1e3), factors, factors)
names = st.sampled_from(["one", "two", "three"])


@settings(deadline=None, max_examples=50)
@given(ends, names)
def test_a_range_has_its_ends_as_quantiles(values, name):
    low, mid, high = values
    found = Range(low, mid, high, name)
    assert np.quantile(found.draws, (0.1, 0.5, 0.9)) == pytest.approx([low, mid, high], rel=0.02)
    assert found.chance_within(mid) == pytest.approx(0.5, abs=0.01) or low == mid or mid == high
    assert found.draws.min() > 0


@settings(deadline=None, max_examples=50)
@given(usual_ends, usual_ends)
def test_sums_and_products_of_unknowns_are_narrower_than_those_of_their_ends(a, b):
    x, y = Range(*a, name="one"), Range(*b, name="two")
    for found, extremes in (
        (x + y, (a[0] + b[0], a[2] + b[2])),
        (x * y, (a[0] * b[0], a[2] * b[2])),
        (x / y, (a[0] / b[2], a[2] / b[0])),
    ):
        assert extremes[0] * 0.98 <= found.low <= found.mid <= found.high <= extremes[1] * 1.02


@settings(deadline=None, max_examples=50)
@given(ends)
def test_what_depends_on_one_unknown_moves_together(values):
    x = Range(*values, name="one")
    assert (x - x) == Range.of(0.0) and (x / x) == Range.of(1.0)
    assert (x + x).high == pytest.approx(2 * x.high, rel=0.02)


def test_a_product_of_log_normals_is_as_wide_as_the_textbook_says():
    """Independent log-normal factors: the logarithm's variances add."""
    factor = math.exp(0.3 * Z90)
    found = Range(1 / factor, 1, factor, "one") * Range(1 / factor, 1, factor, "two")
    assert found.high == pytest.approx(math.exp(0.3 * 2**0.5 * Z90), rel=0.05)
    assert found.low == pytest.approx(1 / found.high, rel=0.05)


def test_ranges_refuse_what_makes_no_sense():
    with pytest.raises(TenfoldError, match="holds zero"):
        1 / Range(-1, 1, 2)
    with pytest.raises(TenfoldError, match="rise"):
        Range(3, 2, 1)
    assert total([]) == Range(0, 0, 0)
    assert (10 - Range(1, 2, 4)).ends() == pytest.approx({"low": 6, "mid": 8, "high": 9}, rel=0.01)


def test_gpt_3s_measured_system_power():
    """Patterson et al. (arXiv 2104.10350): 330 W per V100 with its share of the system, at 19.7 % of peak."""
    v100 = accelerator("v100")
    run = power.run_power(power.Held(v100, 10_000, 355.2), 1.1, power.computing_share(0.197, v100))
    assert run.it_w.mid == pytest.approx(330, rel=0.15)
    assert run.energy_mwh.low < 1287 < run.energy_mwh.high


def test_dgx_h100_in_training():
    """8.4 kW of 10.2 kW for a node in training (arXiv 2412.08602), network aside; 10.2 kW is its data sheet's most."""
    run = power.run_power(power.Held(accelerator("h100"), 8, 1.0), 1.0, 0.9)
    assert 8e-3 * (run.board_w.mid + run.host_w.mid) == pytest.approx(8.4, rel=0.1)
    table = facts("power")
    assert 8 * 0.7 * (table["board"]["peak"][1] + table["host"]["peak"][2]) == pytest.approx(10.2, rel=0.01)


def test_a_hundred_thousand_h100s_take_150_megawatts():
    run = power.run_power(power.Held(accelerator("h100"), 100_000, 1.0), site("TX").pue, 0.8)
    assert run.peak_mw.mid == pytest.approx(150, rel=0.1)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(8, 100_000))
def test_power_rises_with_work_and_adds_up(low, high, n):
    low, high = sorted((low, high))
    part = accelerator("h100")
    idle, busy = (power.run_power(power.Held(part, n, 100.0, 8), Range(1.1, 1.2, 1.3), c) for c in (low, high))
    assert idle.energy_mwh.mid <= busy.energy_mwh.mid
    assert sum(p.mid for p in busy.parts_mwh.values()) == pytest.approx(busy.energy_mwh.mid)
    assert busy.board_w.high <= 1.0001 * part.tdp_w
    assert busy.mean_mw.mid <= busy.peak_mw.mid


def test_utilisation_is_told_apart_from_tdp():
    part = accelerator("h100")
    assert power.board_w(part, 0.6).mid < 0.75 * part.tdp_w
    assert power.computing_share(0.99, part) == 1.0
    with pytest.raises(TenfoldError, match="no published board power"):
        power.board_w(replace(accelerator("trainium2"), tdp_w=None), 0.5)
    with pytest.raises(TenfoldError, match="between 0 and 1"):
        power.board_w(part, 1.2)


def run(part, gpus=1024, hours=1000.0, region="TX", **changes):
    place = site(region)
    held = power.Held(part, gpus, hours)
    return cost.run_cost(held, power.run_power(held, place.pue, 0.8), place, SiteOptions(**changes))


def test_published_bills():
    """DeepSeek-V3's report reckons 2.788 M H800 hours at 2 dollars as 5.576 M; MPT-7B's blog 100,320 A100 hours as about 200 k."""
    assert run(accelerator("h800"), 2048, 2.788e6 / 2048).rent_usd.mid == pytest.approx(5.576e6)
    bill = run(accelerator("a100"), 440, 228.0).rent_usd
    assert bill.low < 200_000 < bill.high


def test_owning_is_the_sum_of_its_parts_and_follows_the_region():
    h100 = accelerator("h100")
    texas, california = run(h100), run(h100, region="CA")
    assert sum(part.mid for part in texas.own_parts_usd.values()) == pytest.approx(texas.own_usd.mid)
    assert texas.rent_usd == california.rent_usd
    assert texas.own_usd.mid < california.own_usd.mid
    place = site("TX")
    kwh = 1e3 * power.run_power(power.Held(h100, 1024, 1000.0), place.pue, 0.8).energy_mwh.mid
    assert texas.own_parts_usd["electricity"].mid == pytest.approx(0.066 * kwh)
    assert run(h100, rent_usd_per_h=2.5).rent_usd == Range.of(2.5 * 1024 * 1000)


def test_every_accelerator_has_a_price_or_says_that_it_is_assumed():
    for part in accelerators().values():
        found = cost.price(part)
        assert 0 < found.rent_usd_per_h.low < found.rent_usd_per_h.high
        assert found.assumed == ("none published" in found.source)
    guessed = {part.key for part in accelerators().values() if part.guessed}
    assert {"tpu-v5e", "tpu-v7x", "trainium1", "rubin"} <= guessed and not accelerator("h100").guessed
    assert not cost.price(accelerator("h100")).assumed
    assert cost.price(accelerator("mtia-v2")).assumed


def test_a_price_of_ones_own_goes_before_the_markets():
    chip = replace(accelerator("h100"), key="own", rent_usd_per_h=1.5, purchase_usd=(8e3, 1e4, 1.3e4), source="a quotation")
    found = cost.price(chip)
    assert (found.rent_usd_per_h, found.purchase_usd) == (Range.of(1.5), Range(8e3, 1e4, 1.3e4))
    assert not found.assumed and "a quotation" in found.source
    assert run(chip).rent_usd == Range.of(1.5 * 1024 * 1000)


def test_outlay_is_what_is_bought_and_the_run_has_its_share():
    """A thousand H100s at 27,500 dollars with servers and network, and a building for a megawatt and a half."""
    place, held = site("TX"), power.Held(accelerator("h100"), 1000, 8766.0)
    used = power.run_power(held, place.pue, 0.8)
    bill = cost.run_cost(held, used, place)
    bought = cost.outlay(held, used, bill)
    assert bought.parts_usd["accelerators"].mid == 27.5e6
    assert bought.total_usd.mid == pytest.approx(27.5e6 * 1.3 * 1.15 + 11.5e6 * used.peak_mw.mid)
    assert sum(part.mid for part in bought.paid_usd.values()) == pytest.approx(bought.total_usd.mid)
    assert 1 / 6 < bought.run_share.mid < 1 / 2  # a year of five, with interest, people and electricity
