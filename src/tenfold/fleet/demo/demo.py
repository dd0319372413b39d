"""The fleet's demonstration: a chat model answers a day of requests beside a training run, first with a fixed split of the slots,
then with slots that are lent.

Files: HOME/fleet-demo/  known.json  static/  lend/  demo.json  demo.png  demo.html

The run of the static day is never interrupted; the losses of the other day's run are compared with it.
"""

import json
import math
import time
from contextlib import closing
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.fleet.demo.day import OWNERS, Day, Known, live_day, simulated_day
from tenfold.fleet.demo.page import write_page
from tenfold.fleet.demo.rehearsal import body_of, measured, roles_of
from tenfold.fleet.demo.wave import Wave, demand_at, draw_arrivals
from tenfold.fleet.operate.operate import CONTROLLER
from tenfold.fleet.slots.live import Say, live, play, settle
from tenfold.learn.walk import smollm2, unpacked
from tenfold.model.path import model_path
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import atomic_folder, make_folder, one_at_a_time, write_json
from tenfold.spec.plugins import load
from tenfold.train.metrics import read_metrics

POLICIES = ("static", "lend")
BOUND_S = 2.0  # bound of the time to the first token
OUTLASTS = 3  # the training run has so many times the steps of one day, so that it does not finish
Steps = dict[int, tuple[float, float]]  # step -> (second of the day, loss)


def demo(home: Path, model: Path | None, minutes: float, say: Say) -> dict[str, Any]:
    """Measure this machine, play both days and write the results. Parts that are finished are not repeated.

    `model` is a generation, a Hugging Face directory or a GGUF file; without one, SmolLM2-135M-Instruct from its package.

    Raises TenfoldError for too few minutes, and where a promise was broken: a differing loss, a lost accepted request, or a loan
    that was returned late.
    """
    if not (find_spec("uvicorn") and find_spec("fastapi")):
        raise NotInstalled("A fleet serves chat: pip install 'tenfold[serve]'.")
    folder = make_folder(home / "fleet-demo")
    with one_at_a_time(folder / CONTROLLER, f"running the demo in {folder}"):
        served = _served(model, folder)
        known = measured(folder, served, minutes, len(POLICIES), say)
        days = {policy: _day(folder, policy, served, known, say) for policy in POLICIES}
    simulated = {name: simulated_day(known, _arrivals(known), load("policies", name)()) for name in POLICIES}
    runs = {name: _losses(folder / name) for name in POLICIES}
    found = _found(known, days, simulated, runs)
    write_json(folder / "demo.json", found)
    write_page(folder, known, days, simulated, runs, found)
    broken = [name for name in ("no_accepted_request_lost", "same_losses", "returned_in_time") if not found["held"][name]]
    if broken:
        raise TenfoldError(f"The demo broke a promise ({', '.join(broken)}): see {folder / 'demo.json'}.")
    return found


def _served(model: Path | None, folder: Path) -> Path:
    """The model's path; a GGUF file is unpacked first, so that servers load it fast. Raises TenfoldError where there is no model,
    or it has no chat template."""
    path = model_path(model or smollm2())
    path = unpacked(path, folder / path.stem.lower()) if path.is_file() else path
    ChatEncoder.of(path)
    return path


def _day(folder: Path, policy: str, model: Path, known: Known, say: Say) -> Day:
    """Play the day under a policy, unless that is done. A day that was interrupted begins again."""
    out = folder / policy
    if not out.exists():
        with atomic_folder(out) as scratch:
            _play(scratch, folder, policy, model, known, say)
    return live_day(out, json.loads((out / "day.json").read_text())["began"], known.day_s)


def _play(folder: Path, data: Path, policy: str, model: Path, known: Known, say: Say) -> None:
    """Send the day's requests while the policy decides, until all are answered and no slot is lent."""
    arrivals, chosen = _arrivals(known), load("policies", policy)()
    roles = roles_of(folder, data, model, steps=math.ceil(OUTLASTS * known.day_s / known.step_s))
    with live(folder, OWNERS, roles) as (world, ledger, fronts):
        world.limits = known.limits
        for slot in ledger.owners:
            world.open(slot)
        settle(world)
        say(f"{policy}: {len(arrivals)} requests come in {known.day_s:.0f} s.")
        body = body_of(model, known.tokens)
        with closing(Wave(folder / "answers.jsonl", arrivals, body, fronts["chat"], world.clock)) as wave:
            now = world.clock()
            began = now - wave.passed(now)
            write_json(folder / "day.json", {"began": began, "wall": time.time() - wave.passed(now)})
            yesterday = known.days[-2]
            world.demands = {"chat": lambda now: demand_at(now - began, arrivals, yesterday, known.hour_s, known.per_slot)}

            def going() -> bool:
                lent = any(lease.until for lease in ledger.leases(current=True))
                return world.clock() < began + known.day_s or lent or not wave.over

            play(world, chosen, going, say)


def _arrivals(known: Known) -> list[float]:
    """The times of the requests, which are the same for every policy."""
    return draw_arrivals(known.days[-1], known.hour_s, seed=1)


def _losses(folder: Path) -> Steps:
    """For each step of the day's training run, the second of the day and the loss."""
    wall = json.loads((folder / "day.json").read_text())["wall"]
    return {
        row["step"]: (row["time"] - wall, row["loss"])
        for row in read_metrics(folder / "trained" / "run.jsonl") if row["event"] == "step"
    }  # fmt: skip


def _found(known: Known, days: dict[str, Day], simulated: dict[str, Day], runs: dict[str, Steps]) -> dict[str, Any]:
    """The figures of both days, live and simulated, and which promises were kept (`held`)."""
    static, lend = ({step: loss for step, (_, loss) in runs[name].items()} for name in POLICIES)
    common = sorted(static.keys() & lend.keys())
    live_, sim = ({name: day.figures(BOUND_S) for name, day in of.items()} for of in (days, simulated))
    peak, first = max(known.days[-1]) / known.per_slot, live_["lend"]["first_token_s"]["p95"]
    beside = {name: _beside(live_[name], sim[name]) for name in POLICIES}
    return {
        "known": asdict(known) | {"per_slot": known.per_slot}, "bound_s": BOUND_S, "peak_in_slots": peak,
        "live": live_, "simulated": sim, "live_over_simulated": beside,
        "steps": {"static": max(static), "lend": max(lend), "compared": len(common)},
        "loss": {name: of[common[-1]] for name, of in (("static", static), ("lend", lend))},
        "held": {
            "peak_at_least_1.5_slots": peak >= 1.5,
            "moved_both_ways": {"slot-2 to chat", "slot-2 to train"} <= set(live_["lend"]["moves"]),
            "no_accepted_request_lost": not any(day["accepted_lost"] for day in live_.values()),
            "same_losses": bool(common) and all(static[step] == lend[step] for step in common),
            "returned_in_time": all(day["returned_in_time"] for day in live_.values()),
            "first_token_p95_in_bound": first <= BOUND_S, "bound_met_in_99_percent": live_["lend"]["within_bound"] >= 0.99,
            "static_misses_over_10_percent": live_["static"]["within_bound"] < 0.9,
            "simulation_within_10_percent": all(0.9 <= x <= 1.1 for of in beside.values() for x in of.values() if x is not None),
        },
    }  # fmt: skip


def _beside(measured: dict[str, Any], simulated: dict[str, Any]) -> dict[str, float | None]:
    """Ratios of live to simulated figures: usage of the slots, mean time to the first token, waiting time of the run; None for x /
    0."""
    pairs = {
        "usage": (measured["usage"], simulated["usage"]),
        "requests_wait": (measured["first_token_s"]["mean"], simulated["first_token_s"]["mean"]),
        "run_waits": (measured["run_waits_s"], simulated["run_waits_s"]),
    }
    return {name: live_ / sim if sim else None for name, (live_, sim) in pairs.items()}
