"""A fleet by its shares, and what a replica of a chat model answers, beside published records."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.cli.commands import run as tenfold
from tenfold.plan.costs.site_options import SiteOptions
from tenfold.plan.fleet.shares import FleetRequest, plan_fleet
from tenfold.plan.request import Request, StepRequest
from tenfold.plan.serving.chat import ChatRequest, best_replica
from tenfold.plan.workload.machine import machine
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import published_model

SMALL = Request(after="llama-3.2-1b", times=1.0)
TONIGHT = FleetRequest(gpus=1024, chat_model="llama-3.1-8b")


@cache
def planned(fleet=TONIGHT, part="h100", around=SiteOptions()):
    return plan_fleet(SMALL, fleet, machine(part), StepRequest(), around, Path("no home"))


# MLPerf Inference, Llama 2 70B, offline: 294 tokens in and out; tokens/s of one GPU of 8 (v4.1) or of a rack of 72 (Azure, v4.1).
RECORDS = [("h100", "fp8", 24_525 / 8), ("h200", "fp8", 34_864 / 8), ("gb200", "fp4", 865_000 / 72)]


@pytest.mark.parametrize(("part", "dtype", "record"), RECORDS)
def test_a_replica_answers_about_what_records_say_and_never_more(part, dtype, record):
    spec = replace(published_model("llama-3.1-70b"), name="llama-2-70b", vocab_size=32_000, rope_scaling=None)
    found = best_replica(spec, machine(part), dtype, ChatRequest(294, 294, token_ms=1000))
    assert 0.45 * record < 294 * found.requests_per_s / found.gpus < record


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["llama-3.1-8b", "llama-3.1-70b", "llama-4-scout"]),
    st.integers(16, 4000),
    st.integers(16, 1000),
    st.floats(20, 500),
    st.floats(1, 4),
)
def test_more_time_between_tokens_never_answers_less(model, prompt, answer, token_ms, times):
    asked, part, spec = ChatRequest(prompt, answer, token_ms), machine("b200"), published_model(model)

    def per_gpu(asked):
        try:
            found = best_replica(spec, part, "fp8", asked)
        except TenfoldError:
            return 0.0
        assert found.token_s <= 1e-3 * asked.token_ms
        assert found.memory_gib * 2**30 <= part.accelerator.memory_gb * 1e9
        return found.requests_per_s / found.gpus

    assert per_gpu(asked) <= per_gpu(replace(asked, token_ms=times * token_ms))


def test_the_shares_add_up_and_services_grow_with_the_fleet():
    one, two = planned(), planned(replace(TONIGHT, gpus=2048))
    for name in ("peak_mw", "energy_mwh", "rent_usd", "bought_usd"):
        parts = [getattr(one.costs[role.name], name).mid for role in one.roles]
        assert getattr(one.costs["all"], name).mid == pytest.approx(sum(parts))
    (train, chat, rank), (_, chat_of_two, rank_of_two) = one.roles, two.roles
    assert train.gpus + chat.gpus + rank.gpus <= 1024
    assert chat_of_two.does["requests_per_s"] == pytest.approx(2 * chat.does["requests_per_s"], rel=0.05)
    assert rank_of_two.does["lists_per_s"] == pytest.approx(2 * rank.does["lists_per_s"], rel=0.15)
    assert train.does["runs_at_a_time"] * train.does["gpus_per_run"] <= train.gpus


def test_runs_that_must_hold_a_deadline_take_no_more_gpus_than_it_needs():
    fastest = planned().roles[0].does
    patient = planned(replace(TONIGHT, run_days=20 * fastest["wall_days"]["high"])).roles[0].does
    assert patient["gpus_per_run"] < fastest["gpus_per_run"] and patient["runs_at_a_time"] > fastest["runs_at_a_time"]
    with pytest.raises(TenfoldError, match="raise --training-share or --run-days"):
        planned(replace(TONIGHT, gpus=64, run_days=fastest["wall_days"]["mid"] / 2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpus": None}, "--gpus"),
        ({"training_share": 0.9}, "add up to 130%"),
        ({"chat_dtype": "int3"}, "--chat-dtype"),
        ({"chat_model": "llama-3.1-405b", "token_ms": 1.0}, "--token-ms"),
    ],
)
def test_a_fleet_that_cannot_be_says_why(changes, says):
    with pytest.raises(TenfoldError, match=says):
        planned(replace(TONIGHT, **changes))


def test_the_command_prints_one_object_and_a_screen(tmp_path, capsys):
    command = ["plan", "fleet", "--gpus", "1024", "--accelerator", "tpu-v7x", "--home", str(tmp_path), "--after", "llama-3.2-1b"]
    tenfold([*command, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [role["name"] for role in found["roles"]] == ["training", "chat", "ranking"]
    assert found["costs"]["all"]["rent_usd"]["low"] < found["costs"]["all"]["rent_usd"]["high"]
    tenfold(command)
    shown = capsys.readouterr().out
    assert "Guessed of TPU v7x" in shown and "prices, tdp_w" in shown
    assert all(f"{name}: " in shown for name in ("Training", "Chat", "Ranking"))
