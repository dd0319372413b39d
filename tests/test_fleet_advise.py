"""Advice for a fleet that is run by hand is what the policy itself says, within what there is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.fleet.fleet_file import fleet_of
from tenfold.fleet.operate.advise import advise
from tenfold.fleet.policies.lend import Lending
from tenfold.fleet.policies.static import Static
from tenfold.fleet.traces import read_demand
from tenfold.spec.errors import TenfoldError

TRACE = Path(__file__).parent / "data" / "traces" / "m-small.csv"
CHAT = {"pool": "a", "own": 30, "requests_per_s": 100.0, "demand_csv": "not-there.csv"}
FLEET = {
    "sites": {"tx": {"region": "TX"}},
    "pools": {"a": {"site": "tx", "accelerator": "h100", "nodes": 60, "accelerators_per_node": 1}},
    "services": {"chat": CHAT},
}


def test_the_moves_are_those_that_the_demand_needs():
    found = advise(fleet_of(FLEET, "fleet.toml"), TRACE, Lending(), holds=3, hours=6)
    first = found["moves"][0]
    assert found["rate"] == read_demand(TRACE)[-1] and found["needs_at_most"] >= found["rate"] / 100
    assert first["from"] == 3 and first["in_s"] <= 600 and first["to"] * 100 >= found["forecast"][0]["p50"] and first["why"]
    assert all(b["from"] == a["to"] for a, b in zip(found["moves"], found["moves"][1:], strict=False))
    assert all(row["p50"] <= row["p90"] for row in found["forecast"])
    many = advise(fleet_of(FLEET, "fleet.toml"), TRACE, Lending(), holds=55, hours=2)
    assert many["moves"][0]["to"] < 55 and many["moves"][0]["lent_for_s"] is None
    fixed = advise(fleet_of(FLEET, "fleet.toml"), TRACE, Static(), holds=30, hours=2)
    assert fixed["moves"] == []


def test_what_cannot_be_advised_on_says_why(tmp_path):
    two = {**FLEET, "services": {"chat": {**CHAT, "own": 10}, "rank": {**CHAT, "own": 10}}}
    with pytest.raises(TenfoldError, match="--service"):
        advise(fleet_of(two, "fleet.toml"), TRACE, Lending())
    short = tmp_path / "short.csv"
    short.write_text("".join(TRACE.read_text().splitlines(keepends=True)[:100]))
    with pytest.raises(TenfoldError, match="two and a half days"):
        advise(fleet_of(FLEET, "fleet.toml"), short, Lending())


def test_the_command_prints_moves_and_forecast(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text(
        '[sites.tx]\n[pools.a]\nsite = "tx"\naccelerator = "h100"\nnodes = 60\n'
        '[services.chat]\npool = "a"\nown = 3\nrequests_per_s = 100\ndemand_csv = "x.csv"\n'
    )
    command = [sys.executable, "-m", "tenfold", "fleet", "advise", file, "--demand", TRACE]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "3 -> " in text and "(p90)" in text
    assert json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)["service"] == "chat"
