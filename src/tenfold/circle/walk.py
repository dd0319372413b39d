"""The circle: every room does its part in one home, in order, and its results are passed to the next room.

`circle.json` says what each room found; that it was skipped, or failed, by a sentence. A home is walked again and again: each
circle climbs on to ten times the compute of the one before, and its forecasts learn from what came of earlier ones.
"""

import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import file_sha256, make_folder, write_json
from tenfold.spec.versions import read_document

VERSION = 1  # of circle.json
AGAIN = "walk the circle again"
ROOMS = ("climb", "plan", "sites", "learn", "rank", "fleet")
TOP_FLOPS = 5e11
Say = Callable[[str], None]
Walk = Callable[..., dict[str, Any]]  # of a home, of what is called with each sentence, and by name of the circle's number


def walk(home: Path, say: Say, again: bool = False) -> dict[str, Any]:
    """Walk the circle in `home`, going on from where an earlier call was stopped; returns what `circle.json` holds. `again`
    begins the next circle where the last is done.

    A room whose extra is not installed is skipped by a sentence. Raises TenfoldError where one fails; those before it stay done.
    """
    number, found = _number(home, again), dict[str, Any]()
    make_folder(home)
    write_json(home / "circle.json", {"version": VERSION, "number": number, "rooms": found})
    for name, room in rooms(number):
        began = time.monotonic()
        say(f"{name} ...")
        try:
            numbers = room(home, say)
            files = numbers.pop("files", [f"{name}/{name}.json"])
            found[name] = {"numbers": numbers, "files": files, "seconds": time.monotonic() - began}
        except NotInstalled as error:
            found[name] = {"skipped": str(error)}
            say(f"{name} is skipped: {error}")
        except TenfoldError as error:
            found[name] = {"failed": str(error)}
            raise
        finally:
            write_json(home / "circle.json", {"version": VERSION, "number": number, "rooms": found})
    return read_document(home / "circle.json", VERSION, AGAIN)


def _number(home: Path, again: bool) -> int:
    """Of the circle that is to be walked: the one that was begun, or the next where that is done and `again` is asked for.

    Raises TenfoldError for `again` where none was walked.
    """
    if not (home / "circle.json").exists():
        if again:
            raise TenfoldError(f"No circle was walked in {home} yet: leave --again out.")
        return 1
    last = read_document(home / "circle.json", VERSION, AGAIN)
    done = tuple(last["rooms"]) == ROOMS and not any("failed" in room for room in last["rooms"].values())
    return int(last.get("number", 1)) + (again and done)


def rooms(number: int) -> Iterator[tuple[str, Walk]]:
    """The rooms in order, each with the function that does its part; a room's code is loaded when its turn comes.

    The ranker's part is done once in a home.
    """
    yield "climb", partial(_climb, number=number)
    yield "plan", partial(_plan, number=number)
    yield "sites", _walk_of("plan.sites")
    yield "learn", partial(_walk_of("learn"), number=number)
    yield "rank", _walk_of("rank")
    yield "fleet", partial(_walk_of("fleet"), number=number)


def _walk_of(room: str) -> Walk:
    return import_module(f"tenfold.{room}.walk").walk


def _climb(home: Path, say: Say, number: int) -> dict[str, Any]:
    """A tiny climb, or ten times the last one, scored; one that has been scored stays."""
    from tenfold.scale import climb as climbing
    from tenfold.scale.documents import read
    from tenfold.scale.generations import generations, is_finished, newest, prompt_of
    from tenfold.scale.options import ClimbSettings
    from tenfold.scale.report import write_report
    from tenfold.serve.complete import complete

    small = os.environ.get("TENFOLD_CIRCLE") == "small"
    generation, finished = newest(home), sum(map(is_finished, generations(home)))
    if 0 < finished < number:
        generation = climbing.again(home, say=say, quiet=True)
    elif generation is None or not is_finished(generation):
        texts = str(Path(sysconfig.get_path("stdlib")) / "email")
        tiny = ClimbSettings(corpus=texts, top_flops=6e10, vocab_size=300, seq_len=16)
        generation = climbing.climb(tiny if small else ClimbSettings(top_flops=TOP_FLOPS), home, say=say, quiet=True)
    report = generation / "report.html"
    if not report.exists():
        text = complete(generation / "model", prompt_of(generation), max_new_tokens=64, temperature=0.7, top_p=0.95, seed=0).text
        report = write_report(generation, sample=text)
    scores = read(generation / "score.json")["scores"]
    numbers = {f"{name}_error_pct": round(row["error_pct"], 2) for name, row in scores.items()}
    return {**numbers, "files": [f"{generation.name}/{name}" for name in ("score.json", "run.jsonl", report.name)]}


def _plan(home: Path, say: Say, number: int) -> dict[str, Any]:
    """Score the plan that was made for the climb's run, calibrate by that run, and plan the next times ten on this machine."""
    from tenfold.plan.commands import MachineOptions
    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.costs.surroundings import Surroundings
    from tenfold.plan.document import document, record
    from tenfold.plan.plan import solve
    from tenfold.plan.request import GpuRequest, Request, StepRequest
    from tenfold.plan.validation.calibrate import calibrate, write
    from tenfold.scale.documents import read
    from tenfold.scale.generations import newest, parent_of, read_settings
    from tenfold.spec.forecasts import outcome, read_forecasts

    generation = newest(home)
    assert generation is not None
    measured = read(generation / "score.json")["scores"]["seconds"]["measured"]
    for one in read_forecasts(home) if number > 1 else ():
        if one.forecast.who == "plan" and f"{parent_of(generation)}/score.json" in one.forecast.data:
            outcome(home, one.forecast.key, measured)
    settings, calibration = read_settings(generation), calibrate(generation)
    calibrated = write(calibration, home)
    machine, said = MachineOptions(accelerator=calibration.accelerator.key).machine(home)
    asked = Request(flops=10 * settings.top_flops, vocab_size=settings.vocab_size)
    plan = solve(asked, GpuRequest(gpus=1), machine, StepRequest(seq_len=settings.seq_len), home)
    around_it = consequences(plan.workload, Surroundings())
    whole = document(plan.workload, around_it, alternatives=plan.alternatives, notes=[said, *plan.notes])
    write_json(home / "plan" / "plan.json", whole)
    made_from = (calibrated, generation / "score.json")
    record(home, whole, {str(file.relative_to(home)): file_sha256(file) for file in made_from})
    days = around_it.wall_days.mid
    say(f"plan: {said} The next times ten takes {days * 24:.2f} hours here.")
    return {"factor": calibration.factor, "next_hours": days * 24, "files": ["plan/plan.json", str(calibrated.relative_to(home))]}
