"""The report: one screen, a document that is plain JSON, plots that show the plan's own figures."""

import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tenfold.cli.commands import run as tenfold
from tenfold.plan import plots, report
from tenfold.plan.costs.consequences import computing_of, consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.document import document
from tenfold.plan.request import Limits
from tenfold.plan.validation.calibrate import Calibration, write
from tenfold.plan.workload.machine import machine
from tenfold.plan.workload.workload import Memory, StepTime, Workload
from tenfold.spec.accelerator import accelerator
from tenfold.spec.forecasts import read_forecasts
from tenfold.spec.layout import Layout
from tenfold.spec.model import published_model

STEP = StepTime(
    matmul_s=2.6, attention_s=0.4, pointwise_s=0.4, tensor_parallel_s=0.5, bubble_s=0.3, data_parallel_s=0.1, optimizer_s=0.05
)
LLAMA = Workload(
    spec=published_model("llama-3.1-405b"),
    tokens=15.6e12,
    accelerator=accelerator("h100"),
    gpus=16384,
    layout=Layout(tp=8, pp=16, dp_shard=128, global_batch=2048, micro_batch=1),
    memory=Memory(6, 12, 5, 30, 4, 74.5),
    step_time=STEP,
    step_s=STEP.total_s,
    days=54.0,
    mfu=0.41,
)
SHARDED = replace(LLAMA, gpus=64, layout=Layout(dp_shard=64, global_batch=64), days=20.0)
EXPERTS = replace(
    LLAMA,
    spec=published_model("llama-4-maverick"),
    gpus=65536,
    layout=Layout(tp=8, pp=32, cp=2, ep=8, dp_shard=128, global_batch=2048, schedule="interleaved"),
)


def made(workload=LLAMA, limits=Limits(), **changes):
    rows = [{"layout": f"TP {tp}, PP 16", "step_s": 5.0, "reason": "memory short by 11 GiB"} for tp in (1, 2, 4)]
    after = consequences(workload, SiteOptions("TX", **changes))
    plan = document(workload, after, alternatives=rows, notes=["Tokens <repeat>."], limits=limits, assumed=["PUE 1.2 (--pue)"])
    return json.loads(json.dumps(plan, allow_nan=False))


@pytest.mark.parametrize("workload", [LLAMA, SHARDED, EXPERTS], ids=["pipeline", "sharded", "experts"])
def test_the_terminal_shows_it_on_one_screen(workload):
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(report.terminal(made(workload)))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any("memory short by 11 GiB" in line for line in lines)


def test_the_document_agrees_with_its_parts():
    plan = made()
    assert plan["model"]["flops"] == LLAMA.flops
    assert plan["step"]["tflops_per_gpu"] == pytest.approx(
        LLAMA.spec.train_flops_per_token(8192) * 2048 * 8192 / STEP.total_s / 16384 / 1e12
    )
    time, power = plan["time"], plan["power"]
    assert time["wall_days"]["low"] < time["wall_days"]["mid"] < time["wall_days"]["high"]
    beside = time["step_error"]["mid"] * time["beside_steps"]["mid"]
    assert time["wall_days"]["mid"] == pytest.approx(54 * beside / plan["failures"]["effective_share"]["mid"])
    assert time["wall_days_quantiles"] == sorted(time["wall_days_quantiles"])
    assert power["energy_mwh"]["mid"] == pytest.approx(power["mean_mw"]["mid"] * 24 * time["wall_days"]["mid"])
    assert power["share_of_year_pct"]["mid"] == pytest.approx(100 * power["energy_mwh"]["mid"] / 14_975_435)
    simulated = plan["failures"]["simulated_share"]
    assert simulated["mid"] == pytest.approx(plan["failures"]["effective_share"]["mid"], abs=5e-3)
    assert 0 < computing_of(STEP) < 1
    assert computing_of(STEP) == pytest.approx(1 - 0.9 / STEP.total_s)


def test_every_quantity_is_a_range_that_rises():
    plan = made()
    seen = 0
    for part in ("time", "power", "cost", "outlay", "footprint"):
        for name, value in plan[part].items():
            if isinstance(value, dict) and set(value) == {"low", "mid", "high"}:
                assert value["low"] <= value["mid"] <= value["high"], name
                seen += 1
    assert seen >= 24


def test_every_field_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "plan.md").read_text()
    plan = made()
    assert all(f"`{key}`" in text for key in plan)
    for part in ("memory", "step", "time", "power", "cost", "outlay", "footprint", "layout"):
        short = {"rent_usd_per_gpu_hour", "own_usd_per_gpu_hour"}  # "per GPU-hour too"
        assert [key for key in plan[part] if f"`{key}`" not in text and key not in short] == [], part


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


def test_the_page_stands_alone():
    text = report.html(made())
    page = Page()
    page.feed(text)
    assert page.links == []
    assert text.count("<svg") == len(plots.ALL)
    assert "Tokens &lt;repeat&gt;." in text
    assert "memory short by 11 GiB" in text


def words(svg):
    return " ".join("".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}text"))


def test_the_layout_map_numbers_gpus_as_ranks_lie():
    """Tensor ranks innermost, then context, data, pipeline (Megatron's order): stage 1 of 128 replicas of 8 begins at 1,024."""
    drawn = words(plots.draw_layout(made()))
    assert "stage 15: layers 119 to 125, head" in drawn
    numbers = {int(n) for n in re.findall(r"\b\d+\b", drawn)}
    assert {7, 1024, 15 * 1024 + 7} <= numbers
    assert "First 8 of 64 GPUs, each with 1/64 of the state" in words(plots.draw_layout(made(SHARDED)))
    experts = words(plots.draw_layout(made(EXPERTS)))
    assert "32 stages x 2 context x 8 tensor ranks" in experts and "16 of 128 experts a GPU" in experts


def test_plots_show_the_figures():
    plan = made()
    assert "activations 30 GiB" in words(plots.draw_memory(plan))
    assert "tensor parallel 0.5 s" in words(plots.draw_step(plan))
    assert "this plan" in words(plots.draw_compute(plan)) and "Llama 3.1 405B" in words(plots.draw_compute(plan))
    interruptions = int(re.search(r"(\d+) interruptions", words(plots.draw_failures(plan)))[1])
    assert interruptions == pytest.approx(plan["failures"]["interruptions"]["mid"], rel=0.2)
    assert "rented, in all" in words(plots.draw_split(plan))


@pytest.mark.parametrize(("value", "said"), [(61.2e6, "$ 61.2 M"), (1.84e9, "$ 1.84 bn"), (930, "$ 930"), (1200, "$ 1.2 k")])
def test_dollars(value, said):
    assert report.usd(value) == said


def test_hourly_profiles_change_the_plan(hourly):
    by_hour = made(
        carbon_csv=hourly / "carbon_TX.csv",
        price_csv=hourly / "price_TX.csv",
        weather_epw=hourly / "weather_dallas.epw",
        cooling="outside-air",
    )
    yearly = made()
    assert by_hour["cost"]["usd_per_kwh"]["high"] > by_hour["cost"]["usd_per_kwh"]["mid"] > by_hour["cost"]["usd_per_kwh"]["low"]
    assert by_hour["footprint"]["water_on_site_m3"]["mid"] < yearly["footprint"]["water_on_site_m3"]["mid"]
    assert by_hour["footprint"]["location_tco2e"]["mid"] == pytest.approx(yearly["footprint"]["location_tco2e"]["mid"], rel=0.02)


def test_a_plan_that_is_kept_is_a_forecast_of_its_time(tmp_path):
    asked = ["plan", "--after", "llama-3.1-8b", "--gpus", "1024", "--home", str(tmp_path), "--out"]
    for out in ("plan", "again"):
        tenfold([*asked, str(tmp_path / out)])
    (kept,) = read_forecasts(tmp_path)
    days = json.loads((tmp_path / "plan" / "plan.json").read_text())["time"]["wall_days"]["mid"]
    assert kept.forecast.median == pytest.approx(days * 86400, rel=0.02) and kept.measured is None
    assert kept.forecast.data == {}


def test_the_forecast_of_a_plan_names_the_calibration_that_it_used(tmp_path):
    part, hashes = machine("h100"), []
    for measured_s, key in ((1.1, "h100"), (1.1, "b200"), (1.1, "h100"), (1.2, "h100")):  # b200 is not calibrated
        found = Calibration(part.accelerator, part.constants, part.constants, 0.9, 1.0, measured_s, measured_s, 1.0, 0.4, "run")
        hashes.append(hashlib.sha256(write(found, tmp_path).read_bytes()).hexdigest())
        asked = ["plan", "--after", "llama-3.1-8b", "--gpus", "1024", "--accelerator", key, "--home", str(tmp_path)]
        tenfold([*asked, "--out", str(tmp_path / key)])
    first, unused, other = (one.forecast.data for one in read_forecasts(tmp_path))  # the third plan is the first one again
    assert (first, unused, other) == ({"calibration.json": hashes[0]}, {}, {"calibration.json": hashes[3]})
    assert hashes[0] == hashes[2] != hashes[3]


def test_the_chance_of_a_limit_is_that_of_the_range():
    """A limit at the 90 % quantile is held nine times in ten; looser ones are held more often."""
    free = made()
    days, rent = free["time"]["wall_days"]["high"], free["cost"]["rent_usd"]["low"]
    plan = made(limits=Limits(days=days, budget_usd=rent))
    assert plan["chances"]["done_by_the_deadline"] == {"limit": days, "probability": pytest.approx(0.9, abs=0.01)}
    assert plan["chances"]["rented_under_the_budget"]["probability"] == pytest.approx(0.1, abs=0.01)
    assert free["chances"] == {}
    looser = made(limits=Limits(days=2 * days))
    assert looser["chances"]["done_by_the_deadline"]["probability"] > 0.9
    assert f"Done within {days:g} days: 90 %." in report.html(plan)


def test_every_part_of_a_step_has_a_colour_of_its_own():
    assert len(set(plots.COLOURS)) == len(plots.COLOURS) >= len(STEP.parts())
