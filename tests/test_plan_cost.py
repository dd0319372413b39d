"""Ranges, power and money against measured systems and by property."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.plan.costs import cost, power
from tenfold.plan.costs.surroundings import Surroundings
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range, total
from tenfold.plan.sites.site import site
from tenfold.spec.accelerator import accelerator, accelerators
from tenfold.spec.errors import TenfoldError

numbers = st.floats(-1e6, 1e6)
ranges = st.lists(numbers, min_size=3, max_size=3).map(lambda v: Range(*sorted(v)))
inside = st.floats(0, 1)


def within(r, share):
    return min(r.high, max(r.low, r.low + share * (r.high - r.low)))


@settings(deadline=None)
@given(ranges, ranges, inside, inside)
def test_arithmetic_holds_for_every_value_inside(a, b, s, t):
    x, y = within(a, s), within(b, t)
    slack = 1e-9 * (1 + max(map(abs, (a.low, a.high))) * (1 + max(map(abs, (b.low, b.high)))))
    for found, value, mid in ((a + b, x + y, a.mid + b.mid), (a - b, x - y, a.mid - b.mid), (a * b, x * y, a.mid * b.mid)):
        assert found.low - slack <= value <= found.high + slack
        assert found.mid == pytest.approx(mid)


@settings(deadline=None)
@given(ranges, st.lists(st.floats(0.01, 1e3), min_size=3, max_size=3), inside, inside, st.booleans())
def test_division_holds_for_every_value_inside(a, ends, s, t, negative):
    b = Range(*sorted(-v if negative else v for v in ends))
    found, value = a / b, within(a, s) / within(b, t)
    slack = 1e-9 * (1 + abs(value))
    assert found.low - slack <= value <= found.high + slack
    assert found.mid == pytest.approx(a.mid / b.mid)


def test_ranges_refuse_what_makes_no_sense():
    with pytest.raises(TenfoldError, match="holds zero"):
        1 / Range(-1, 1, 2)
    with pytest.raises(TenfoldError, match="rise"):
        Range(3, 2, 1)
    assert total([]) == Range(0, 0, 0)
    assert 10 - Range(1, 2, 4) == Range(6, 8, 9)


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
        power.board_w(accelerator("trainium2"), 0.5)
    with pytest.raises(TenfoldError, match="between 0 and 1"):
        power.board_w(part, 1.2)


def run(part, gpus=1024, hours=1000.0, region="TX", **changes):
    place = site(region)
    held = power.Held(part, gpus, hours)
    return cost.run_cost(held, power.run_power(held, place.pue, 0.8), place, Surroundings(**changes))


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
    assert not cost.price(accelerator("h100")).assumed
    assert cost.price(accelerator("mtia-v2")).assumed


def test_a_price_of_ones_own_goes_before_the_markets():
    chip = replace(accelerator("h100"), key="own", rent_usd_per_h=1.5, purchase_usd=(8e3, 1e4, 1.3e4), source="a quotation")
    found = cost.price(chip)
    assert (found.rent_usd_per_h, found.purchase_usd) == (Range.of(1.5), Range(8e3, 1e4, 1.3e4))
    assert not found.assumed and "a quotation" in found.source
    assert run(chip).rent_usd == Range.of(1.5 * 1024 * 1000)
