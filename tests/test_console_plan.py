"""Plans and sites in the console: figures as their files have them, the planner's answers, and what may not be asked."""

import asyncio
import contextlib
import io
import json
from dataclasses import replace
from importlib import resources
from importlib.util import find_spec

import httpx2
import pytest
from console_home import console, needs_chromium, opened
from test_console_documents import parsed

from tenfold.console.app import make_app
from tenfold.console.document import Computed, Figure, figures_in
from tenfold.console.options import ConsoleOptions
from tenfold.console.site import all_views, document
from tenfold.console.views.plan import WAITING
from tenfold.plan.commands import MachineOptions, PlanOutput, PlanRequest, make
from tenfold.plan.costs.consequences import consequences
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.document import SCHEMA
from tenfold.plan.plan import solve
from tenfold.plan.request import GpuRequest, StepRequest
from tenfold.plan.sites import commands as sites_commands
from tenfold.plan.sites.answer import VERSION
from tenfold.plan.sites.inputs import example_text
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json

pytest_plugins = ["chat_page", "console_home"]
ASKED = PlanRequest(after="llama-3.2-1b", times=10)
FIXED = GpuRequest(gpus=256, days=60, budget_usd=1e6)
AROUND = SiteOptions(region="TX")
SMALL_TREE = (
    ("[2, 1, 2, 2, 2, 2, 1]", "[2, 1]"),
    ("[0, 2, 4, 7, 10, 14, 18, 22]", "[0, 3, 8, 12, 16]"),
    ("end_quarter = 30", "end_quarter = 20"),
)


def said_by(command, **options):
    """What a command prints as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        command(**options)
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A home with a plan and sites, as the commands say them."""
    home = tmp_path_factory.mktemp("planned") / "generations"
    plan = said_by(make, asked=ASKED, fixed=FIXED, around=AROUND, output=PlanOutput(home=home, json=True))
    write_json(home / "next" / "plan.json", plan)
    text = example_text("demand.toml")
    for old, new in SMALL_TREE:
        text = text.replace(old, new)
    (home / "demand.toml").write_text(text)
    asked = sites_commands.Asked(demand=home / "demand.toml", what_if="demand x2")
    write_json(
        home / "sites.json", said_by(sites_commands.sites, asked=asked, output=sites_commands.SitesOutput(home=home, json=True))
    )
    return home


def told(home, name="next", **asked):
    """What the console's planner answers: a status and the body."""

    async def get():
        transport = httpx2.ASGITransport(make_app(ConsoleOptions(home=home)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765", timeout=300) as client:
            reply = await client.get(f"/ask/plan/{name}", params=asked)
            return reply.status_code, reply.json()

    return asyncio.run(get())


def facts(body):
    return {one["name"]: one["figure"] for section in body["sections"] for one in section["facts"]}


def test_every_figure_of_plans_and_sites_is_its_files_with_its_interval(planned):
    seen = 0
    for view, name in (("plan", ""), ("plan", "next"), ("sites", ""), ("sites", "sites")):
        for one in figures_in(document(all_views()[view], planned, name)):
            assert parsed(planned / one.file, one.key) == one.value
            if one.low is not None:
                around = one.key.removesuffix(".mid")
                assert (one.low, one.high) == tuple(parsed(planned / one.file, f"{around}.{end}") for end in ("low", "high"))
            seen += 1
    assert seen > 150


def test_the_planner_gives_the_plan_itself_where_nothing_else_is_asked(planned):
    def values(one):
        return [getattr(one, name) for name in ("value", "low", "high")]

    status, body = told(planned)
    own = [one for one in figures_in(document(all_views()["plan"], planned, "next")["sections"]) if isinstance(one, Figure)]
    again = [
        figure
        for section in body["sections"]
        for rows in (section["facts"], *(one["parts"] for one in section["bars"]))
        for figure in (row["figure"] for row in rows)
    ]
    assert status == 200 and len(again) == len(own) > 50
    assert [[one["value"], one.get("low"), one.get("high")] for one in again] == [values(one) for one in own]


@pytest.mark.parametrize(
    "asked, fixed, around",
    [
        ({"gpus": 128}, replace(FIXED, gpus=128, days=None), AROUND),
        ({"days": 90.0}, GpuRequest(days=90.0), AROUND),
        ({"rent_usd_per_h": 4.5, "region": "CA"}, FIXED, SiteOptions(region="CA", rent_usd_per_h=4.5)),
    ],
)
def test_the_planner_answers_as_the_command_does(planned, asked, fixed, around):
    plan = solve(ASKED, fixed, MachineOptions().machine(planned)[0], StepRequest(), planned, around)
    after = consequences(plan.workload, around)
    status, body = told(planned, **asked)
    found = facts(body)
    assert status == 200 and found["GPUs"]["value"] == plan.workload.gpus and found["place"]["value"] == after.site.name
    for name, expected in (
        ("days by the clock", after.wall_days),
        ("rented", after.cost.rent_usd),
        ("energy", after.power.energy_mwh),
    ):
        assert (found[name]["low"], found[name]["value"], found[name]["high"]) == (expected.low, expected.mid, expected.high)
    assert all(one["computed"] for one in found.values()) and not any("file" in one for one in found.values())


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"gpus": 10**6}, "gpus must be from 32 to 2048"),
        ({"days": 1e6}, "days must be from"),
        ({"rent_usd_per_h": -1}, "rent_usd_per_h"),
        ({"region": "Texs"}, "did you mean"),
        ({"accelerator": "h1000"}, "h1000"),
        ({"law": "/etc/passwd"}, "law"),
    ],
)
def test_what_the_planner_does_not_answer_is_a_sentence(planned, asked, said):
    status, body = told(planned, **asked)
    assert status == 400 and said in body["error"]["message"]


def test_a_plan_that_names_files_elsewhere_has_them_left_out(planned):
    plan = json.loads((planned / "next" / "plan.json").read_text())
    plan["request"] |= {"carbon_csv": "/etc/passwd", "law": "/etc/passwd", "model": "/etc/passwd"}
    write_json(planned / "hostile" / "plan.json", plan)
    status, body = told(planned, "hostile")
    assert status == 200 and "carbon_csv /etc/passwd lies outside the home, and is left out." in body["notes"]
    assert facts(body)["days by the clock"]["value"] == plan["time"]["wall_days"]["mid"]
    assert told(planned, "../next")[0] in (400, 404) and told(planned, "nowhere")[0] == 400


def test_of_many_questions_some_wait_and_the_others_are_told_to_ask_again(planned):
    async def all_at_once():
        transport = httpx2.ASGITransport(make_app(ConsoleOptions(home=planned)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8765", timeout=300) as client:
            asked = [client.get("/ask/plan/next", params={"gpus": 200}) for _ in range(5 * WAITING)]
            return [reply.status_code for reply in await asyncio.gather(*asked)]

    found = asyncio.run(all_at_once())
    assert set(found) == {200, 503} and found.count(200) >= WAITING


def test_the_years_of_sites_are_the_means_of_their_futures(planned):
    found, shown = json.loads((planned / "sites.json").read_text()), document(all_views()["sites"], planned, "")
    assert shown["sentence"] == found["sentence"] and shown["what_if"] == [found["what_if"][0]["sentence"]]
    assert [one["revenue"] for one in shown["pay"]] == [one["revenue"] for one in found["pay"]["scenarios"]]
    assert [one["what"] for one in shown["begin_now"]] == [one["what"] for one in found["begin_now"]]
    for i, quarter in enumerate(shown["power"]["quarters"][:-1]):
        nodes = [node for node in found["nodes"] if node["quarter"] == quarter]
        assert sum(node["path_probability"] for node in nodes) == pytest.approx(1)
        for site in shown["power"]["sites"]:
            mean = sum(node["path_probability"] * node["running_mw"][site["name"]] for node in nodes)
            assert site["mw"][i] == pytest.approx(mean)
        expected = shown["years"][i]["figures"]
        assert all(isinstance(one, Computed) for one in expected)
        assert expected[3].value == pytest.approx(sum(site["mw"][i] for site in shown["power"]["sites"]))
    assert len(shown["tree"]) == len(found["nodes"])


def test_answers_of_one_name_are_all_shown_and_their_links_stay(planned, tmp_path):
    found, view = json.loads((planned / "sites.json").read_text()), all_views()["sites"]
    places = {
        "sites": "sites.json", "sites-2": "sites-2.json", "sites-2/sites": "sites-2/sites.json", "sites/sites": "sites/sites.json",
        "next": "next/sites.json",
    }  # fmt: skip
    for count, (name, file) in enumerate(places.items(), 1):
        write_json(tmp_path / file, {**found, "sentence": file})
        assert set(view.names(tmp_path)) == {"", *list(places)[:count]}, name  # those that were there keep their names
    assert set(document(view, tmp_path, "")["all"]) == set(places)
    for name, file in places.items():
        shown = document(view, tmp_path, name)
        assert shown["sentence"] == file and {one.file for one in figures_in(shown)} == {file}


def test_an_empty_home_says_what_to_run(tmp_path):
    assert document(all_views()["plan"], tmp_path, "")["empty"].startswith("tenfold plan --after")
    assert document(all_views()["sites"], tmp_path, "")["empty"].startswith("tenfold plan sites")


def test_plans_of_serving_and_damaged_ones_are_said_to_be_so(tmp_path):
    write_json(tmp_path / "rank" / "plan.json", {"request": {}})
    write_json(tmp_path / "old" / "plan.json", {"schema": 1})
    write_json(tmp_path / "cut" / "plan.json", {"schema": SCHEMA, "model": []})
    write_json(tmp_path / "sites.json", {"version": VERSION, "sentence": "begin nothing"})
    failed = {one["name"]: one["failed"] for one in document(all_views()["plan"], tmp_path, "")["plans"]}
    assert "no plan of training" in failed["rank"] and "make it again" in failed["old"]
    for view, name in (("plan", "cut"), ("plan", "rank"), ("sites", "")):
        with pytest.raises(TenfoldError, match="again|training|damaged"):
            document(all_views()[view], tmp_path, name)
    assert told(tmp_path, "cut")[0] == 400


@pytest.fixture(scope="module")
def shown(planned):
    with console(planned) as url:
        yield url


@needs_chromium[0]
@needs_chromium[1]
def test_a_person_asks_what_half_the_gpus_take_and_keeps_the_link(shown, planned, browser):
    with opened(browser, f"{shown}#/plan/next") as page:
        plan = json.loads((planned / "next" / "plan.json").read_text())
        days = page.locator("[data-key='time.wall_days.mid']").first
        assert json.loads(days.get_attribute("data-value")) == plan["time"]["wall_days"]["mid"]
        assert page.locator(".map rect").count() == plan["layout"]["tp"] * plan["layout"]["cp"] * plan["layout"]["pp"]
        page.locator("input[aria-label=GPUs]").fill("-33")
        page.wait_for_selector(".status:has-text('answered in')")
        row = page.locator("tr", has=page.locator("th:text-is('days by the clock')")).first
        assert json.loads(row.locator("td .computed").get_attribute("data-value")) > plan["time"]["wall_days"]["mid"]
        link, answer = page.url, row.inner_text()
    assert "gpus=1" in link
    with opened(browser, link) as page:
        page.wait_for_selector(".status:has-text('answered in')")
        assert page.locator("tr", has=page.locator("th:text-is('days by the clock')")).first.inner_text() == answer


@needs_chromium[0]
@needs_chromium[1]
@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
@pytest.mark.parametrize(
    "place, width, scheme", [("plan/next?region=CA", 360, "dark"), ("sites", 360, "light"), ("sites", 3840, "dark")]
)
def test_axe_finds_no_violation(shown, browser, place, width, scheme):
    with opened(browser, f"{shown}#/{place}", width=width, scheme=scheme) as page:
        page.wait_for_selector(".status:has-text('answered in')" if "?" in place else ".tree")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
        found = page.evaluate("axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))")
        assert found == []
