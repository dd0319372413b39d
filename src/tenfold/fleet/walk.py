"""The fleet's part of the circle: a run trains, its slot is lent to chat while a wave of requests comes, and is back in time.

generations/fleet/  undisturbed/  trained/  measured.json  answers.jsonl  ledger.db  fleet.json
"""

import json
import os
import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tenfold.fleet.demo.wave import PEAK, Wave, demand_at, draw_arrivals, draw_days, forecast_peak
from tenfold.fleet.front.control import Front
from tenfold.fleet.ledger import Ledger
from tenfold.fleet.operate.operate import CONTROLLER
from tenfold.fleet.slots.live import Say, live, play, settle, small_run
from tenfold.fleet.slots.local import LocalWorld
from tenfold.fleet.slots.slots import DRAINED, Limits
from tenfold.launch.job import open_launcher, run
from tenfold.learn.release import released
from tenfold.model.path import model_path
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import file_sha256, make_folder, one_at_a_time, read_lines, write_json
from tenfold.spec.forecasts import Forecast, around, forecast, outcome
from tenfold.spec.plugins import load
from tenfold.train.goodput import read_goodput
from tenfold.train.metrics import read_metrics

RUNS = ("undisturbed", "trained")
BUSIEST = 1.5  # the height of the usual day, in what one slot answers
ANSWER_S = 0.25  # what an answer is made to take
PROBE_TOKENS = 100


class Part(NamedTuple):
    """Options of the fleet in a circle.

    A busy slot draws `slot_w` watts (0: unknown). Roles that have left a slot may keep `keep_gib` of memory there, so that they
    return faster. `number` is that of the circle in its home; the demand is drawn with `seed`. If `file` is given, the fleet of
    that fleet file is simulated in addition to the live slots.
    """

    policy: str = "lend"
    slot_w: float = 0.0
    keep_gib: float = 0.0
    number: int = 1
    seed: int = 0
    file: str | None = None


def walk(home: Path, say: Say, part: Part = Part()) -> dict[str, Any]:
    """Run the fleet's part of the circle in `home`; continues where an earlier call was stopped. Returns the content of
    `fleet/fleet.json`. The folders of earlier circles are renamed to `fleet-1`, `fleet-2`, ...

    Raises TenfoldError if the losses of the lent run differ from those of the undisturbed one, an accepted request was lost, or a
    slot was returned late.
    """
    if not (find_spec("uvicorn") and find_spec("fastapi")):
        raise NotInstalled("A fleet serves chat: pip install 'tenfold[serve]'.")
    kept, done = len(list(home.glob("fleet-[0-9]*"))), home / "fleet" / "fleet.json"
    if part.number > kept + 1 and done.exists():
        kept += 1
        done.parent.replace(home / f"fleet-{kept}")
    folder, key = make_folder(done.parent), f"fleet-{kept + 1}" if kept else "fleet"
    if not done.exists():
        # The simulation first: a fleet file that cannot work is refused before the minutes of the live slots.
        simulated = {"simulated": _simulated(Path(part.file), folder, part.policy, say)} if part.file else {}
        _live(home, key, say, part)
        write_json(done, _numbers(folder) | simulated)
    numbers = json.loads(done.read_text())
    for kind in ("demand", "switch_seconds", "lost_work_s"):
        if numbers[kind] is not None:
            outcome(home, f"{key}/{kind}", numbers[kind])
    if not (numbers["same_losses"] and numbers["loans"] and not numbers["accepted_lost"] and numbers["returned_in_time"]):
        raise TenfoldError(f"The fleet broke a promise: see {done}; delete {folder} to try again.")
    return numbers


def _simulated(file: Path, folder: Path, policy: str, say: Say) -> dict[str, Any]:
    """Means of the fleet of a file under the policy and under `static`; the console shows the document that is left."""
    from tenfold.fleet.fleet_file import read_fleet
    from tenfold.fleet.setup import prepare
    from tenfold.fleet.simulation.compare import compare
    from tenfold.fleet.simulation.document import SUFFIX, document

    fleet, names = read_fleet(file), list(dict.fromkeys([policy, "static"]))
    found = compare(prepare(fleet), names, fleet.simulation.seeds, say)
    means = found.means()
    write_json(folder / f"own{SUFFIX}", document(f"{file.stem}: {policy} beside static", means, found.first))
    return means


def _live(home: Path, key: str, say: Say, part: Part) -> None:
    """Run both trainings and the wave of requests on two slots of this machine."""
    from tenfold.fleet.slots.roles import Chat, Role, Training  # these need 'tenfold[serve]'

    folder = home / "fleet"
    with ExitStack() as opened:
        opened.enter_context(one_at_a_time(folder / CONTROLLER, f"running the fleet of {folder}"))
        small = os.environ.get("TENFOLD_CIRCLE") == "small"
        undisturbed, trained = (Training(small_run(100 if small else 600), folder / name, folder) for name in RUNS)
        if not undisturbed.finished:
            say("A run trains undisturbed, to compare with.")
            run(open_launcher("local"), undisturbed.job(folder / "slot-2.lock", "", None, 30))
        served = None if small else released(home)
        model = model_path(Path(served["path"]) if served else undisturbed.directory)
        roles: dict[str, Role] = {"chat": Chat(model), "train": trained}
        world, ledger, front = opened.enter_context(live(folder, roles))
        world.slot_w, world.sleepers.keep_bytes = part.slot_w, part.keep_gib * 2**30
        world.open("slot-1")
        found = _measure(folder, world, front, part.seed, hours_s=(0.4, 1.5) if small else (1.25, 4.0))
        start_s, per_slot, hour_s = found["chat_start_s"], found["per_slot"], found["hour_s"]
        world.limits = Limits(leave_s=max(20.0, 4 * start_s), switch_s=start_s + 1)
        _forecast(home, key, found, 0.0 if part.keep_gib else found["train_start_s"])
        world.open("slot-2")
        arrivals = draw_arrivals(_days(per_slot, part.seed)[-1], hour_s, seed=part.seed + 1)
        say(f"A wave of {len(arrivals)} requests comes; a slot answers {per_slot:.1f} a second.")
        body = _body(found["tokens"])
        wave = opened.enter_context(closing(Wave(folder / "answers.jsonl", arrivals, lambda i: body, front, world.clock)))
        world.demand = lambda now: demand_at(wave.passed(now), arrivals, found["days"][-1], hour_s, per_slot)

        def going() -> bool:
            lent = any(lease.until and lease.role != DRAINED for lease in ledger.leases(current=True))
            return not wave.over or not trained.finished or lent

        play(world, load("policies", part.policy)(), going, say)


def _days(per_slot: float, seed: int) -> list[list[float]]:
    """Hourly rates of the eight days before the wave, and of the day of the wave."""
    return draw_days(8, BUSIEST * per_slot, seed)


def _body(tokens: int) -> dict[str, Any]:
    return {"prompt": "def ", "max_tokens": tokens, "ignore_eos": True, "temperature": 1.0}


def _measure(folder: Path, world: LocalWorld, front: Front, seed: int, hours_s: tuple[float, float]) -> dict[str, Any]:
    """Measure once how long the roles take to start and how many requests per second a slot answers; scale the days before the
    wave accordingly. Returns the content of `measured.json`."""
    file, began = folder / "measured.json", time.monotonic()
    settle(world)
    if not file.exists():
        start_s = time.monotonic() - began
        front.ask(_body(PROBE_TOKENS))
        token_s = statistics.median(front.ask(_body(PROBE_TOKENS)).seconds for _ in range(5)) / PROBE_TOKENS
        tokens = max(16, min(1000, round(ANSWER_S / token_s)))
        found: dict[str, Any] = {"chat_start_s": start_s, "tokens": tokens, "per_slot": 1 / (tokens * token_s)}
        found["train_start_s"] = read_goodput(folder / RUNS[0] / "time.jsonl")["starting_s"]
        found["hour_s"] = min(hours_s[1], max(hours_s[0], start_s / 6))  # a switch takes some of them
        write_json(file, {**found, "days": _days(found["per_slot"], seed)[:-1]})
    return json.loads(file.read_text())


def _forecast(home: Path, key: str, measured: dict[str, Any], back_s: float) -> None:
    """Record forecasts before the wave: the requests of its peak, the time of a switch, and the work that a loan loses, after which
    the training needs `back_s` seconds to start again."""
    data = {"fleet/measured.json": file_sha256(home / "fleet" / "measured.json")}
    said = {
        "demand": ("requests", forecast_peak(measured["days"], measured["hour_s"])),
        "switch_seconds": ("s", around(measured["chat_start_s"] + 1, 0.4)),  # the owner saves and leaves, the server starts
        "lost_work_s": ("s", around(back_s + 0.3, 0.6)),  # it leaves, and later starts again
    }
    for kind, (unit, quantiles) in said.items():
        forecast(home, Forecast(key=f"{key}/{kind}", who="fleet", kind=kind, unit=unit, quantiles=quantiles, data=data))


def _numbers(folder: Path) -> dict[str, Any]:
    """The results of the wave, from the files in `folder`."""
    hour_s, answers = json.loads((folder / "measured.json").read_text())["hour_s"], read_lines(folder / "answers.jsonl")
    leases, rows = Ledger(folder / "ledger.db").leases(), [read_metrics(folder / name / "run.jsonl") for name in RUNS]
    loans = [lease for lease in leases if lease.until is not None]
    first = loans[0] if loans else leases[0]
    asked = [lease.asked for lease in leases if lease.slot == first.slot and lease.ended == first.since]
    losses = [{row["step"]: row["loss"] for row in of_run if row["event"] == "step"} for of_run in rows]
    first_s = sorted(row["first_s"] for row in answers)
    return {
        "steps": len(losses[0]), "same_losses": losses[0] == losses[1], "loss": losses[1][max(losses[1])],
        "loans": len(loans), "returned_in_time": all(x.ended <= x.until for x in loans if x.ended and x.until),
        "leases": [asdict(lease) for lease in leases],
        "requests": len(answers), "accepted_lost": sum(row["lost"] for row in answers),
        "sent_again": sum(row["sent"] - 1 for row in answers),
        "first_token_s": {"p50": first_s[len(first_s) // 2], "p95": first_s[len(first_s) * 95 // 100]},
        "demand": sum(PEAK.start * hour_s <= row["came"] < PEAK.stop * hour_s for row in answers),
        "switch_seconds": first.ready - asked[0] if first.ready and asked and asked[0] else None, "lost_work_s": first.lost_s,
    }  # fmt: skip
