"""Carbon and water against model cards, hourly grids, weather, and moist air solved another way."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from tenfold import plan
from tenfold.plan.costs import environment, power, water
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.facts import facts
from tenfold.plan.ranges import Range
from tenfold.plan.sites.site import site, water_of_fuels
from tenfold.plan.validation.validate import card_errors
from tenfold.plan.workload import profiles
from tenfold.spec.accelerator import accelerator
from tenfold.spec.errors import TenfoldError

DATA = Path(__file__).parent / "data"
TRAINING_RUNS = Path(plan.__file__).parent / "data" / "published" / "training_runs.csv"
FAMILIES = ("Llama 1", "Llama 2", "Llama 3", "Llama 3.1", "Llama 3.2", "BLOOM")


@pytest.mark.parametrize(
    ("family", "gpu_hours", "board_w", "published", "bar"),
    [
        ("llama-2", 184320, 400, 31.22, 0.01),
        ("llama-2", 368640, 400, 62.44, 0.01),
        ("llama-2", 1720320, 400, 291.42, 0.01),
        ("llama-2", 1038336, 350, 153.90, 0.01),
        ("llama-3", 1.3e6, 700, 390, 0.03),
        ("llama-3.1", 30.84e6, 700, 8930, 0.03),
        ("llama-4", 5.0e6, 700, 1354, 0.03),
        ("llama-4", 2.38e6, 700, 645, 0.03),
        ("gpt-3", 3.552e6, 330, 552.1, 0.03),
        ("t5", 245760, 310, 46.7, 0.03),
    ],
)
def test_model_cards(family, gpu_hours, board_w, published, bar):
    assert environment.card_tco2e(family, gpu_hours, board_w) == pytest.approx(published, rel=bar)


def test_all_model_cards_in_the_table():
    tried = 0
    with TRAINING_RUNS.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["family"] in FAMILIES and row["gpu_hours"] and row["tco2e_location"] and row["tdp_w_assumed"]:
                found = environment.card_tco2e(row["family"], float(row["gpu_hours"]), float(row["tdp_w_assumed"]))
                published = float(row["tco2e_location"])
                bar = 0.01 if row["family"] == "Llama 2" else 0.03
                # cards of Llama 1 print whole tonnes
                assert abs(found - published) <= max(bar * published, 0.5), row["model"]
                tried += 1
    assert tried >= 15


def test_model_cards_of_the_own_table():
    errors = dict(card_errors())
    assert len(errors) >= 12
    assert all(abs(e) <= (1 if "Llama 2" in name else 3) for name, e in errors.items())


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(TenfoldError, match=r"llama-3\.1"):
        environment.card_tco2e("llama-3.11", 1, 1)
    assert environment.card_tco2e("Gemma", 1e6, 400, pue=1.1, kgco2_per_kwh=0.2) == pytest.approx(88)
    with pytest.raises(TenfoldError, match="texas"):
        site("Texs")
    with pytest.raises(TenfoldError, match="PUE"):
        site("TX", pue=0.9)
    assert site("texas") == site("TX")


@pytest.mark.parametrize("state", ["TX", "VA", "CA"])
def test_hourly_carbon_lies_in_the_yearly_range(hourly, state):
    grid = profiles.read_carbon(hourly / f"carbon_{state}.csv")
    year = profiles.over_run(grid.kgco2_per_kwh, 8760)
    assert year.mid == pytest.approx(site(state).kgco2_per_kwh.mid, rel=0.01)
    for fuel, share in grid.fuels.items():
        assert share == pytest.approx(facts("grid")["fuels"][state][fuel], abs=0.002)
    week = profiles.over_run(grid.kgco2_per_kwh, 168)
    assert week.low < year.low <= year.high < week.high


def test_states_are_those_published():
    with (DATA / "grid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 49
    for row in rows:
        state = facts("grid")["states"][row["code"]]
        assert state["name"] == row["state"]
        assert 100 * state["industrial_usd_per_kwh"] == pytest.approx(float(row["industrial_cents_kwh_2023"]))
        assert 100 * state["commercial_usd_per_kwh"] == pytest.approx(float(row["commercial_cents_kwh_2023"]))
        assert state["kgco2_per_kwh_2016"] == pytest.approx(float(row["codecarbon_kg_per_kwh_2016"]))


def test_carbon_of_texas_by_emissions_over_generation():
    """EIA 2023: 212,769 kt CO2 of the power sector; 545.6 TWh generated (recalled)."""
    kg = 212_769e6 / 545.6e9
    assert site("TX").kgco2_per_kwh.low < kg < site("TX").kgco2_per_kwh.high


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=60), st.integers(1, 150), st.integers(0, 59))
def test_the_mean_over_a_run_by_adding_hours(hourly, hours, start):
    values = np.array(hourly)
    n = len(values)
    every = [np.mean([values[(s + i) % n] for i in range(hours)]) for s in range(n)]
    found = profiles.over_run(values, hours, start % n)
    assert (found.low, found.mid, found.high) == pytest.approx((min(every), every[start % n], max(every)), abs=1e-9)


def test_profiles_say_what_is_missing(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(TenfoldError, match="avg_CI"):
        profiles.read_carbon(path)
    with pytest.raises(TenfoldError, match="no hours"):
        profiles.read_weather(path)
    path.write_text("timestamp,NG,avg_CI\n0,much,200\n")
    with pytest.raises(TenfoldError, match="'much' where a number is needed"):
        profiles.read_carbon(path)
    path.write_text("timestamp,NG,avg_CI\n0,1,200\n1,1,\n2,3,400\n")
    assert profiles.read_carbon(path).kgco2_per_kwh.tolist() == [0.2, 0.2, 0.4]
    assert profiles.read_carbon(path).fuels["gas"] == 1


@settings(deadline=None)
@given(st.floats(0, 45), st.floats(0.1, 0.98))
def test_wet_bulb_by_the_psychrometric_equation(t, rh):
    """Stull's fit against e = e_s(Tw) - 6.66e-4 p (T - Tw), solved; his own error bound is -1.0 to +0.65 C."""
    saturation = lambda c: 610.94 * math.exp(17.625 * c / (c + 243.04))  # noqa: E731
    exact = brentq(lambda w: saturation(w) - 6.66e-4 * 101_325 * (t - w) - rh * saturation(t), -40, t)
    assert float(water.wet_bulb_c(np.array(t), np.array(rh))) == pytest.approx(exact, abs=1.1)


def test_wet_bulb_of_stulls_example():
    assert float(water.wet_bulb_c(np.array(20.0), np.array(0.5))) == pytest.approx(13.7, abs=0.05)


def hours_of(t, rh):
    return profiles.Weather(np.array([t]), np.array([rh]), np.array([101_325.0]))


@settings(deadline=None)
@given(st.floats(-10, 45), st.floats(0.05, 1.0))
def test_water_keeps_to_what_heat_can_evaporate(t, rh):
    """No cooling evaporates more than all heat as latent heat and blow-down; a closed loop none."""
    most = 3600 / 2400 * water.CONCENTRATION / (water.CONCENTRATION - 1)
    air_too_dry = 1.6  # a tower may cool the passing air as well as the machines
    weather = hours_of(t, rh)
    assert 0 <= water.wue(weather, "tower")[0] <= most * air_too_dry
    assert water.wue(weather, "closed")[0] == 0
    outside = water.wue(weather, "outside-air")[0]
    assert outside >= 0
    assert outside == 0 or t > water.SUPPLY_C


def test_water_of_real_weather(hourly):
    """Towers near the usual 1.8 L/kWh and outside air at or below Meta's 0.18 to 0.26, more in Texas than in Virginia."""
    texas, virginia = (profiles.read_weather(hourly / f"weather_{place}.epw") for place in ("dallas", "leesburg"))
    for cooling in ("tower", "outside-air"):
        assert water.wue(texas, cooling).mean() > water.wue(virginia, cooling).mean()
    assert water.wue(texas, "tower").mean() == pytest.approx(1.8, rel=0.25)
    assert 0.01 < water.wue(texas, "outside-air").mean() < 0.26
    summer = profiles.over_run(water.wue(texas, "tower"), 24 * 30, start_hour=24 * 190)
    winter = profiles.over_run(water.wue(texas, "tower"), 24 * 30, start_hour=0)
    assert winter.mid < summer.mid


def run_of(region="TX", hours=1000.0, **changes):
    place = site(region)
    held = power.Held(accelerator("h100"), 1000, hours)
    used = power.run_power(held, place.pue, 0.8)
    return used, environment.run_footprint(held, used, place, SiteOptions(**changes))


def test_a_footprint_is_energy_times_factors():
    used, foot = run_of()
    assert foot.location_tco2e.mid == pytest.approx(used.energy_mwh.mid * 0.3472)
    assert foot.water_on_site_m3.mid == pytest.approx(used.it_energy_mwh.mid * 0.2)
    assert foot.water_off_site_m3.mid == pytest.approx(used.energy_mwh.mid * water_of_fuels(facts("grid")["fuels"]["TX"]).mid)
    assert run_of(clean_share=1.0)[1].market_tco2e == Range(0, 0, 0)
    assert run_of(clean_share=0.0)[1].market_tco2e.mid >= foot.location_tco2e.mid
    with pytest.raises(TenfoldError, match="clean share"):
        run_of(clean_share=1.5)


def test_water_by_fuel_weighs_what_is_burnt():
    assert water_of_fuels({"wind": 1.0}).mid == 0
    assert water_of_fuels({"nuclear": 2.0, "wind": 2.0}).mid == pytest.approx(1.27)
    assert 0.5 < site("US").water_off_site_l_per_kwh.mid < 3


def test_embodied_carbon_of_blooms_machines():
    """Luccioni et al. (arXiv 2211.02001): 11.2 t for 1.083 M GPU-hours of A100."""
    held = power.Held(accelerator("a100"), 384, 1_082_990 / 384)
    embodied = environment.run_footprint(held, power.run_power(held, 1.0, 0.8), site("US")).embodied_tco2e
    assert embodied.mid == pytest.approx(11.2, rel=0.15)
    assert embodied.low < 11.2 < embodied.high
