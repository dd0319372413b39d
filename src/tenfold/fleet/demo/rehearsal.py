"""What the fleet's demonstration measures of a machine before its days: an answer, a training step, a switch and its return."""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.fleet.demo.day import OWNERS, Known
from tenfold.fleet.demo.wave import draw_days
from tenfold.fleet.slots.live import Live, Say, live, settle, small_run
from tenfold.fleet.slots.slots import Lend, Limits, Return
from tenfold.learn.users import asked_by
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import atomic_folder, write_json
from tenfold.train.metrics import read_metrics

if TYPE_CHECKING:  # PyTorch
    from tenfold.fleet.slots.roles import Role

PEAK, SWING = 1.6, 4.9  # the busiest hour relative to a slot's throughput, and to the quietest hour (as ServeGen's DeepSeek-R1)
ANSWER_S, SHORTEST, LONGEST = 0.25, 16, 500  # target seconds of an answer, and limits of its tokens
PROMPTS = 40  # different prompts, which are asked in turn
PROBES = 40  # answers by which a slot's throughput is measured
DAYS_SHARE = 0.84  # of the minutes; the others are for this measurement and for starts
LEAST_SWITCHES = 12  # that must fit into a day
Body = Callable[[int], dict[str, Any]]


def measured(folder: Path, model: Path, minutes: float, days: int, say: Say) -> Known:
    """The measurements of this machine, made once and kept in `known.json`. The number of `days` share most of the `minutes`.

    Raises TenfoldError for too few minutes, and for a folder with a demonstration of another model or duration.
    """
    file = folder / "known.json"
    if not file.exists():
        say("Measuring: both roles start, and an answer, a training step, a switch and its return are timed.")
        with atomic_folder(folder / "rehearsal", replace=True) as scratch:
            found = _rehearse(scratch, model)
        day_s = day_seconds(minutes, days, found["train_leave_s"] + found["chat_start_s"])
        demand = {"hour_s": day_s / 24, "days": _demand(1 / found["answers_s"][0])}
        write_json(file, {**found, "model": str(model), "minutes": minutes, **demand})
    known = Known(**json.loads(file.read_text()))
    if (known.model, known.minutes) != (str(model), minutes):
        raise TenfoldError(
            f"{folder} has a demo of {known.model} in {known.minutes:g} minutes: choose another --home, or delete it."
        )
    say(f"A slot answers {known.per_slot:.2f} requests/s; chat starts in {known.chat_start_s:.1f} s; a day is {known.day_s:.0f} s.")
    return known


def day_seconds(minutes: float, days: int, switch_s: float) -> float:
    """The seconds of each day. Raises TenfoldError where too few switches fit into a day."""
    day_s, least_s = 60 * minutes * DAYS_SHARE / days, LEAST_SWITCHES * switch_s
    if day_s < least_s:
        more = math.ceil(least_s * days / DAYS_SHARE / 60)
        raise TenfoldError(f"A day of {day_s:.0f} s is too short for switches of {switch_s:.0f} s: give --minutes {more}.")
    return day_s


def _demand(per_slot: float) -> list[list[float]]:
    """Rates by hour of the days before and of the day that is played, whose busiest hour has `PEAK` times a slot's throughput."""
    drawn = draw_days(8, 1.0, seed=0, swing=SWING)
    scale = PEAK * per_slot / max(drawn[-1])
    return [[scale * rate for rate in day] for day in drawn]


def roles_of(folder: Path, data: Path, model: Path, steps: int) -> "dict[str, Role]":
    from tenfold.fleet.slots.roles import Serving, Training  # these need 'tenfold[serve]'

    config = small_run(steps, width=128, seq_len=128, corpus="asyncio")
    return {"chat": Serving("chat", model), "train": Training(config, folder / "trained", data)}


def _rehearse(folder: Path, model: Path) -> dict[str, Any]:
    """Measure the fields of `Known` on a fleet in `folder`, each while the other slot works."""
    with live(folder, OWNERS, roles_of(folder, folder.parent, model, steps=10_000)) as fleet:
        for slot in fleet.ledger.owners:
            fleet.world.open(slot)
        settle(fleet.world)
        first_s, tokens = _answer_length(fleet, model)
        answers = [_answer_s(fleet, model, tokens, servers=1)]
        fleet.world.limits = Limits(leave_s=60)
        fleet.world.apply(Lend("slot-2", "chat", fleet.world.clock() + 3600, "the rehearsal"))
        settle(fleet.world)
        answers.append(_answer_s(fleet, model, tokens, servers=2))
        fleet.world.apply(Return("slot-2", "the rehearsal"))
        settle(fleet.world)
        own, loan, back = [lease for lease in fleet.ledger.leases() if lease.slot == "slot-2"]
    times = [row["time"] for row in read_metrics(folder / "trained" / "run.jsonl") if row["event"] == "step"]
    return {
        "first_s": first_s, "tokens": tokens, **dict(zip(("answers_s", "writes_s"), zip(*answers, strict=True), strict=True)),
        "step_s": statistics.median(after - before for before, after in itertools.pairwise(times)),
        "train_leave_s": _span(own.asked, own.ended), "chat_start_s": _span(loan.since, loan.ready),
        "chat_leave_s": _span(loan.asked, loan.ended), "train_start_s": _span(back.since, back.ready),
    }  # fmt: skip


def _span(start: float | None, end: float | None) -> float:
    if start is None or end is None:
        raise TenfoldError("A role failed while it was measured: see its output, and run the same command again.")
    return end - start


def _answer_length(fleet: Live, model: Path) -> tuple[float, int]:
    """The seconds to the first token of a single request, and the number of tokens of an answer that takes `ANSWER_S`."""
    ask, body = fleet.fronts["chat"].ask, body_of(model, SHORTEST)
    alone = [ask(body(i)) for _ in ("the first time", "with prompts that the server remembers") for i in range(5)][5:]
    first_s = statistics.median(answer.first_s for answer in alone)
    token_s = statistics.median(answer.seconds - answer.first_s for answer in alone) / (SHORTEST - 1)
    return first_s, max(SHORTEST, min(LONGEST, round((ANSWER_S - first_s) / token_s)))


def _answer_s(fleet: Live, model: Path, tokens: int, servers: int) -> tuple[float, float]:
    """The seconds that each server takes for an answer under constant load, and the part of them after the first token.

    All prompts are asked once before, since the server knows most prompts of a day too.
    """
    body = body_of(model, tokens)
    with ThreadPoolExecutor(2 * servers) as clients:
        list(clients.map(lambda i: fleet.fronts["chat"].ask(body(i)), range(PROMPTS)))
        began = time.monotonic()
        answers = list(clients.map(lambda i: fleet.fronts["chat"].ask(body(i)), range(servers * PROBES)))
    return (time.monotonic() - began) / PROBES, statistics.mean(answer.seconds - answer.first_s for answer in answers)


def body_of(model: Path, tokens: int) -> Body:
    """A function from the number of a request to its body, with the model's chat template applied to the prompt."""
    encoder = ChatEncoder.of(model)
    prompts = [encoder.prompt([{"role": "user", "content": one.prompt}]) for one in asked_by(PROMPTS)]
    fixed = {"max_tokens": tokens, "ignore_eos": True, "temperature": 1.0, "stream": True}
    return lambda i: {"prompt": prompts[i % len(prompts)], "seed": i, **fixed}
