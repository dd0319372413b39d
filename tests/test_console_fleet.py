"""Fleets in the console: the ledger's leases and wishes, simulated days played, and changes by hand with an operator's key."""

import itertools
import json
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest
from console_home import console, needs_chromium, opened
from fastapi.testclient import TestClient
from test_console_documents import parsed

from tenfold.console.app import make_app
from tenfold.console.document import figures_in, value_at
from tenfold.console.options import ConsoleOptions
from tenfold.console.site import all_views, document
from tenfold.console.views.demand import pools
from tenfold.fleet.commands import simulate as simulate_command
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.commands import cap, drain, lend
from tenfold.fleet.operate.operate import status
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.policies.static import Static
from tenfold.fleet.pools import Pool, Service
from tenfold.fleet.seen import FILE as FILE_SEEN
from tenfold.fleet.seen import Recorded, read_seen
from tenfold.fleet.slots.simulated import SimulatedWorld, simulate
from tenfold.fleet.slots.slots import Demand, Limits
from tenfold.serve.api.keys import make_key
from tenfold.spec.errors import TenfoldError

pytest_plugins = ["chat_page", "console_home"]
TRACES = Path(__file__).parent / "data" / "traces"
OWNERS = {"slot-1": "chat", "slot-2": "train", "slot-3": "train"}
RATES = [0.0, 25.0, 25.0, 0.0, 0.0]  # requests/s, in bins of 50 s
FILE = f"""
[simulation]
days = 1.0
history_days = 4.0
tick_s = 300.0
[sites.tx]
region = "TX"
power_cap_mw = 0.09
[pools.a]
site = "tx"
accelerator = "h100"
nodes = 60
accelerators_per_node = 1
[services.chat]
pool = "a"
own = 30
requests_per_s = 100.0
demand_csv = "{TRACES / "m-small.csv"}"
[jobs.philly]
trace_csv = "{TRACES / "philly.csv"}"
pools = ["a"]
load = 1.0
state_gb_per_node = 14.0
"""


def run_fleet(home):
    """A fleet whose demand comes for a while and goes: slots are lent and come back."""
    (home / "fleet").mkdir(parents=True)
    ledger = Ledger(home / "fleet" / "ledger.db", OWNERS, now=0.0)
    for lease in ledger.leases():
        ledger.note(lease.id, ready=1.0)
    limits = Limits(leave_s=10, start_s=30, tick_s=1, switch_s=8)
    rates = RATES
    world = SimulatedWorld(
        ledger, {"chat": lambda now: Demand(rates[min(4, int(now / 50))], tuple(rates[int(now / 50) :]), 50, now % 50, 10)}, limits,
        itertools.repeat((3.0, 4.0)),
    )  # fmt: skip
    simulate(world, Recorded(Lending(), home / "fleet"), 250, 1.0)
    ledger.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A home with a fleet's ledger and a simulated day, as the command writes it."""
    home = tmp_path_factory.mktemp("fleets") / "generations"
    run_fleet(home)
    (home / "fleet.toml").write_text(FILE)
    simulate_command(home / "fleet.toml", against="static", seeds=2, out=home / "fleet" / "monday.html")
    return home


def test_figures_of_the_ledger_and_of_simulations_are_theirs(fleet):
    view = all_views()["fleet"]
    leases = {lease.id: lease for lease in Ledger(fleet / "fleet" / "ledger.db").leases()}
    found = list(figures_in(document(view, fleet, "")))
    for one in found:
        table, number, column = one.key.split(".")
        assert table == "leases" and one.value == getattr(leases[int(number)], column) == value_at(fleet / one.file, one.key)
    assert len(found) >= len(leases) + len(OWNERS) and any(lease.until for lease in leases.values())
    means = list(figures_in(document(view, fleet, "monday")))
    for one in means:
        ends = parsed(fleet / one.file, one.key.removesuffix(".mean"))
        assert one.value == ends["mean"] and (one.low is None or (one.low, one.high) == (ends["low"], ends["high"]))
    assert len(means) > 30


def test_demand_stands_beside_what_was_forecast_a_bin_before(fleet):
    (pool,) = document(all_views()["fleet"], fleet, "")["fleet"]["pools"]
    chat, at = pool["services"]["chat"], pool["at"]
    assert pool["name"] == "slots" and at == sorted(at) and set(pool["busy"]) == {3}
    for i, now in enumerate(at):
        assert chat["rate"][i] == RATES[min(4, int(now / 50))]
        assert chat["answers"][i] in (10, 20, 30)  # of one slot to three
    known = [(now, one) for now, one in zip(at, chat["middle"], strict=True) if one is not None]
    assert 50 <= known[0][0] < 60  # a bin after the first look
    begins = {int(now / 50): one for now, one in known if now % 50 == 0}
    assert begins == {number: RATES[number] for number in begins} and len(begins) >= 3
    kept = [json.loads(line) for line in (fleet / "fleet" / FILE_SEEN).read_text().splitlines()]
    assert [row["at"] for row in kept] == at and kept[0]["services"]["chat"]["high"] == pytest.approx(RATES[1] / 0.9)


def test_the_day_before_the_last_look_is_shown(tmp_path):
    recorded, service = Recorded(Static(), tmp_path), Service("rank", 2, 5.0, nodes=2, bin_s=36_000)
    for hour in range(48):
        recorded.decide(3600.0 * hour, Pool("a", 4, [service], serving=2))
    (pool,) = pools(tmp_path)
    assert pool["at"] == [3600.0 * hour for hour in range(23, 48)] and pool["allowed"] == [None] * 25


def test_the_record_of_demand_is_bounded_and_torn_lines_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("tenfold.fleet.seen.LARGEST", 1000)
    pool = Pool("a", 4, [Service("rank", 2, 5.0, nodes=2, rate=3.0, bin_s=10)], training=1, serving=2, allowed=3)
    recorded = Recorded(Static(), tmp_path)
    for now in range(40):
        recorded.decide(float(now), pool)
    assert (tmp_path / FILE_SEEN).stat().st_size < 1200 and (tmp_path / f"{FILE_SEEN}.1").exists()
    with (tmp_path / FILE_SEEN).open("a") as stream:
        stream.write('{"at": 50, "pool"')
    rows = read_seen(tmp_path, 1 << 20)
    assert rows[-1].at == 39 and rows[-1].allowed == 3 and rows[-1].services["rank"].middle is None
    (tmp_path / FILE_SEEN).unlink()
    (tmp_path / FILE_SEEN).mkdir()
    assert recorded.decide(60.0, pool) == Static().decide(60.0, pool)  # a record that cannot be written hinders nothing


@pytest.mark.parametrize(
    "key", ["leases.99.since", "leases.1.nothing", "leases.1", "sqlite_master.1.sql--", "leases;.1.since", "leases.x.since"]
)
def test_of_a_ledger_nothing_else_is_read(fleet, key):
    with pytest.raises(TenfoldError, match="There is no"):
        value_at(fleet / "fleet" / "ledger.db", key)


def test_the_slots_are_those_of_the_status_command(fleet):
    shown = document(all_views()["fleet"], fleet, "")["fleet"]
    for ours, theirs in zip(shown["slots"], status(fleet)["slots"], strict=True):
        assert {name: ours[name] for name in ("slot", "owner", "role", "why")} == {
            name: theirs[name] for name in ("slot", "owner", "role", "why")
        }
        assert ours["since"].value == theirs["since"] and (ours["price"] and ours["price"].value) == theirs["price_s"]
    counts = shown["roles"]["roles"].values()
    assert all(sum(column) == len(OWNERS) for column in zip(*counts, strict=True))
    assert shown["roles"]["at"] == sorted(set(shown["roles"]["at"]))
    assert all(move["why"] for move in shown["moves"])


def test_the_moves_of_a_day_make_its_machines_and_each_has_its_reason(fleet):
    """Played from the day's begin, the moves give the nodes of training and of the service at every sample."""
    for policy, day in document(all_views()["fleet"], fleet, "monday")["days"].items():
        columns, moves = day["columns"], day["moves"]
        held = {"chat": next((move["had"] for move in moves if move["holder"] == "chat"), 30)}
        at = 0
        for i, hour in enumerate(columns["at_h"]):
            while at < len(moves) and moves[at]["at_s"] <= 3600 * hour + 1e-3:
                move = moves[at]
                assert held.get(move["holder"], 0) == move["had"] != move["nodes"] and move["why"]
                held[move["holder"]] = move["nodes"]
                at += 1
            assert columns["answering"][i] + columns["starting"][i] == held["chat"], policy
            assert columns["training"][i] == sum(nodes for holder, nodes in held.items() if holder != "chat"), policy
        assert at > 20
        assert all(watts <= cap for watts, cap in zip(columns["watts"], columns["cap_w"], strict=True))


@pytest.fixture
def keyed(tmp_path):
    """A console with keys over a fleet of its own; the headers of an operator and of a user."""
    home, keys = tmp_path / "generations", tmp_path / "keys.json"
    run_fleet(home)
    headers = [{"Authorization": f"Bearer {make_key(keys, name, operator=name == 'olga')}"} for name in ("olga", "una")]
    options = ConsoleOptions(home=home, keys=keys)
    return home, TestClient(make_app(options), base_url="http://127.0.0.1:8765", raise_server_exceptions=False), *headers


WISHES = [
    ({"kind": "lend", "target": "slot-2", "role": "chat", "until": "2999-01-01T18:00", "why": "a launch"},
     lambda home: lend("slot-2", to="chat", until="2999-01-01T18:00", why="a launch", home=home, json=True)),
    ({"kind": "drain", "target": "train", "until": "2999-01-01T18:00"},
     lambda home: drain("train", until="2999-01-01T18:00", home=home, json=True)),
    ({"kind": "cap", "target": "local", "mw": 0.0001, "until": "2999-01-01T18:00"},
     lambda home: cap("local", mw=0.0001, until="2999-01-01T18:00", home=home, json=True)),
]  # fmt: skip


@pytest.mark.parametrize("body, command", WISHES, ids=["lend", "drain", "cap"])
def test_a_wish_by_hand_is_the_commands_and_is_taken_back(keyed, capsys, body, command):
    home, client, operator, _ = keyed
    assert client.post("/act/fleet/wish", json=body, headers=operator).status_code == 200
    command(home)
    ours, theirs = status(home)["wishes"]
    changing = {"id", "who", "at"}
    assert {k: v for k, v in ours.items() if k not in changing} == {k: v for k, v in theirs.items() if k not in changing}
    assert ours["who"] == "olga"
    (wish, _) = document(all_views()["fleet"], home, "")["fleet"]["wishes"]
    assert value_at(home / wish["until"].file, wish["until"].key) == ours["until"] and wish["state"] == "waits"
    assert client.post(f"/act/fleet/withdraw/{ours['id']}", json={}, headers=operator).status_code == 200
    assert [one["id"] for one in status(home)["wishes"]] == [theirs["id"]]


def test_nobody_else_wishes_anything_or_has_the_ledger_itself(keyed):
    home, client, operator, user = keyed
    assert [client.get("/files/fleet/ledger.db", headers=headers).status_code for headers in ({}, user)] == [404, 404]
    body = WISHES[1][0]
    elsewhere = operator | {"Origin": "https://evil.example"}
    rebound = operator | {"Host": "evil.example"}
    for headers in ({}, user, elsewhere, rebound):
        assert client.post("/act/fleet/wish", json=body, headers=headers).status_code in (401, 403)
        assert client.post("/act/fleet/withdraw/1", json={}, headers=headers).status_code in (401, 403)
    assert client.get("/act/fleet/wish", headers=operator).status_code in (404, 405)
    assert status(home)["wishes"] == []


@pytest.mark.parametrize(
    "body, said",
    [
        ({"kind": "lend", "target": "slot-2"}, "a loan needs a role"),
        ({"kind": "cap", "target": "local"}, "a cap needs its megawatts"),
        ({"kind": "cap", "target": "local", "mw": -1}, "mw"),
        ({"kind": "drain", "target": "slot-9"}, "no slot, owner or pool 'slot-9'"),
        ({"kind": "drain", "target": "slot-2", "until": "2001-01-01T00:00"}, "is in the past"),
        ({"kind": "drain", "target": "slot-2", "until": "soon"}, "is not a time"),
        ({"kind": "stop", "target": "slot-2"}, "stop"),
        ({"kind": "drain", "target": "slot-2", "who": "root"}, "who"),
        ({"kind": "drain", "target": ""}, "length"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_in_a_sentence(keyed, body, said):
    home, client, operator, _ = keyed
    reply = client.post("/act/fleet/wish", json=body, headers=operator)
    assert reply.status_code == 400 and said in reply.json()["error"]["message"]
    assert status(home)["wishes"] == []


def test_a_fleet_of_another_home_is_shown_and_changed_in_place_of_the_homes_own(fleet, tmp_path):
    other = tmp_path / "other"
    run_fleet(other)
    client = TestClient(make_app(ConsoleOptions(home=tmp_path, fleet=other)), base_url="http://127.0.0.1:8765")
    assert len(client.get("/data/fleet.json").json()["fleet"]["slots"]) == len(OWNERS)
    assert client.post("/act/fleet/wish", json=WISHES[1][0]).status_code == 200
    assert len(status(other)["wishes"]) == 1 and not (tmp_path / "fleet").exists()


def test_simulations_of_one_file_name_are_all_shown_and_their_links_stay(fleet, tmp_path):
    places = {"day": "fleet/", "day.simulation.json": "", "fleet-1/day": "fleet-1/", "fleet-12/day": "fleet-12/"}
    view = all_views()["fleet"]
    found = json.loads((fleet / "fleet" / "monday.simulation.json").read_text())
    for count, (name, folder) in enumerate(places.items(), 1):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "day.simulation.json").write_text(json.dumps({**found, "title": folder}))
        (tmp_path / folder / "day.html").write_text(folder)
        assert sorted(view.names(tmp_path)) == sorted(["", *list(places)[:count]]), name  # those that were there keep their names
    assert sorted(document(view, tmp_path, "")["simulations"]) == sorted(places)
    client = TestClient(make_app(ConsoleOptions(home=tmp_path)), base_url="http://127.0.0.1:8765")
    for name, folder in places.items():
        shown = client.get(f"/data/fleet/{name}.json").json()
        assert shown["title"] == folder and shown["files"] == [f"{folder}day.simulation.json", f"{folder}day.html"]
        assert client.get(f"/files/{folder}day.html").text == folder


def test_a_damaged_simulation_is_said_to_be_so(tmp_path):
    (tmp_path / "fleet").mkdir()
    for text in ('{"version": 1}', '{"version": 9}', "{", '{"version": 1, "means": {"lend": 3}}'):
        (tmp_path / "fleet" / "day.simulation.json").write_text(text)
        with pytest.raises(TenfoldError, match="write it again|later one"):
            document(all_views()["fleet"], tmp_path, "day")


def test_an_empty_home_says_what_to_run(tmp_path):
    assert document(all_views()["fleet"], tmp_path, "")["empty"] == f"tenfold fleet run --home {tmp_path.name}"


@pytest.fixture(scope="module")
def shown(fleet):
    with console(fleet) as url:
        yield url


@needs_chromium[0]
@needs_chromium[1]
def test_a_person_plays_a_day_and_reads_the_reason_of_the_last_move(shown, fleet, browser):
    with opened(browser, f"{shown}#/fleet/monday?policy=lend&hour=6") as page:
        day = json.loads((fleet / "fleet" / "monday.simulation.json").read_text())["days"]["lend"]
        assert page.locator("dl > div", has=page.locator("dt:text-is('hour')")).locator("dd").inner_text() == "06:00"
        nodes = page.locator("dl > div", has=page.locator("dt:text-is('answering')")).locator("dd").inner_text()
        assert nodes == f"{day['columns']['answering'][day['columns']['at_h'].index(6.0)]} nodes"
        page.locator(".play input[type=number]").fill("24")
        page.get_by_role("button", name="Play").click()
        page.wait_for_selector("button:text-is('Pause')")
        page.wait_for_selector("button:text-is('Play')")  # the day is over
        last = page.locator("table", has=page.locator("caption:has-text('newest of')")).locator("tbody tr").first
        assert last.locator("td").last.inner_text() == day["moves"][-1]["why"]
        has = last.locator(".figure").last
        assert parsed(fleet / has.get_attribute("data-file"), has.get_attribute("data-key")) == day["moves"][-1]["nodes"]
        assert "hour=24.00" in page.url


@needs_chromium[0]
@needs_chromium[1]
def test_an_operator_wishes_and_withdraws_on_the_page(browser, tmp_path):
    home = tmp_path / "generations"
    run_fleet(home)
    with console(home) as url, opened(browser, f"{url}#/fleet") as page:
        page.locator("select[name=kind]").select_option("drain")
        page.get_by_label("Slot, owner or site").fill("slot-2")
        page.get_by_label("Why").fill("<img src=x onerror=alert(1)>")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Withdraw wish 1").wait_for()
        assert [(one["kind"], one["target"]) for one in status(home)["wishes"]] == [("drain", "slot-2")]
        assert page.locator("td:text-is('<img src=x onerror=alert(1)>')").count() == 1
        page.get_by_role("button", name="Withdraw wish 1").click()
        page.get_by_role("button", name="Withdraw wish 1").wait_for(state="detached")
        assert status(home)["wishes"] == []


@needs_chromium[0]
@needs_chromium[1]
@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="the package axe-playwright-python is not installed")
@pytest.mark.parametrize(
    "place, width, scheme", [("fleet", 360, "dark"), ("fleet/monday", 360, "light"), ("fleet/monday", 3840, "dark")]
)
def test_axe_finds_no_violation(shown, browser, place, width, scheme):
    with opened(browser, f"{shown}#/{place}", width=width, scheme=scheme) as page:
        page.wait_for_selector(".uplot canvas")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())
        found = page.evaluate("axe.run().then(result => result.violations.map(v => [v.id, v.nodes.map(n => n.html).slice(0, 3)]))")
        assert found == []
