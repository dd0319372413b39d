"""The circle: every room does its part in one home, in order, and its results are passed to the next room.

`circle.json` says what each room found; that it was skipped, or failed, by a sentence.
"""

import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import file_sha256, make_folder, write_json
from tenfold.spec.versions import read_document

VERSION = 1  # of circle.json
TOP_FLOPS = 5e11
Say = Callable[[str], None]
Walk = Callable[[Path, Say], dict[str, Any]]


def walk(home: Path, say: Say) -> dict[str, Any]:
    """Walk the circle in `home`, going on from where an earlier call was stopped; returns what `circle.json` holds.

    A room whose extra is not installed is skipped by a sentence. Raises TenfoldError where one fails; those before it stay done.
    """
    make_folder(home)
    found: dict[str, Any] = {}
    for name, room in rooms():
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
            write_json(home / "circle.json", {"version": VERSION, "rooms": found})
    return read_document(home / "circle.json", VERSION, "walk the circle again")


def rooms() -> Iterator[tuple[str, Walk]]:
    """The rooms in order, each with the function that does its part; a room's code is loaded when its turn comes."""
    yield "climb", _climb
    yield "plan", _plan
    for name, module in (("sites", "plan.sites"), ("learn", "learn"), ("rank", "rank"), ("fleet", "fleet")):
        yield name, import_module(f"tenfold.{module}.walk").walk


def _climb(home: Path, say: Say) -> dict[str, Any]:
    """A tiny climb, scored; one that has been scored stays."""
    from tenfold.scale import climb as climbing
    from tenfold.scale.documents import read
    from tenfold.scale.generations import newest, prompt_of
    from tenfold.scale.options import ClimbSettings
    from tenfold.scale.report import write_report
    from tenfold.serve.complete import complete

    small = os.environ.get("TENFOLD_CIRCLE") == "small"
    generation = newest(home)
    if generation is None or not (generation / "score.json").exists():
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


def _plan(home: Path, say: Say) -> dict[str, Any]:
    """Calibrate the plan by the climb's run, and plan the next times ten on this machine."""
    from tenfold.plan.commands import MachineOptions
    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.costs.surroundings import Surroundings
    from tenfold.plan.document import document, record
    from tenfold.plan.plan import solve
    from tenfold.plan.request import GpuRequest, Request, StepRequest
    from tenfold.plan.validation.calibrate import calibrate, write
    from tenfold.scale.generations import newest, read_settings

    generation = newest(home)
    assert generation is not None
    settings, calibration = read_settings(generation), calibrate(generation)
    calibrated = write(calibration, home)
    machine, said = MachineOptions(accelerator=calibration.accelerator.key).machine(home)
    asked = Request(flops=10 * settings.top_flops, vocab_size=settings.vocab_size)
    plan = solve(asked, GpuRequest(gpus=1), machine, StepRequest(seq_len=settings.seq_len), home)
    around_it = consequences(plan.workload, Surroundings())
    whole = document(plan.workload, around_it, alternatives=plan.alternatives, notes=[said, *plan.notes])
    write_json(home / "plan" / "plan.json", whole)
    record(home, whole, {"calibration": file_sha256(calibrated)})
    days = around_it.wall_days.mid
    say(f"plan: {said} The next times ten takes {days * 24:.2f} hours here.")
    return {"factor": calibration.factor, "next_hours": days * 24, "files": ["plan/plan.json", str(calibrated.relative_to(home))]}
