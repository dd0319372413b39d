"""The circle: every room (`ROOMS`) does its part of the loop in one home, in order, and the next room uses its results.

`circle.json` holds the results of each room, or a sentence that says why it was skipped or failed. The circle can be run again in
the same home: each one climbs on to ten times the compute of the one before, and its forecasts are calibrated by the outcomes of
earlier ones.
"""

import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct, ValidationError, convert, structs, to_builtins

from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.files import file_sha256, make_folder, write_json
from tenfold.spec.ranges import Count, Seed, Text
from tenfold.spec.versions import read_document

if TYPE_CHECKING:
    from tenfold.scale.options import ClimbSettings

VERSION = 1  # of circle.json
AGAIN = "walk the circle again"  # what error messages tell the user to do
ROOMS = ("climb", "plan", "sites", "learn", "rank", "fleet")
TOP_FLOPS = 5e11  # of the first circle's climb
FILES = ("model", "feedback", "interactions", "fleet", "sites", "demand")  # settings that name a file, or a database by its URL
Say = Callable[[str], None]
Walk = Callable[[Path, Say], dict[str, Any]]


class CircleSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The settings that all circles of a home share. Whatever is not given is simulated, or an example."""

    corpus: Annotated[Text, Meta(description="Text of the climb, as `tenfold climb --corpus` takes it.")] = "stdlib"
    seed: Annotated[Seed, Meta(description="Seed of the initial weights, the order of the data, and the fleet's demand.")] = 0
    model: Annotated[Text | None, Meta(description="The chat model that is tuned first; by default SmolLM2-135M.")] = None
    feedback: Annotated[
        Text | None, Meta(description="A feedback database or chats of your users; by default users are simulated.")
    ] = None
    steps: Annotated[Count, Meta(description="Steps of tuning in each circle.")] = 20
    interactions: Annotated[
        Text | None, Meta(description="A table of user, item and time, for the ranker; by default made ones and MovieLens.")
    ] = None
    fleet: Annotated[Text | None, Meta(description="A fleet file, which is simulated in addition to the live slots.")] = None
    sites: Annotated[Text | None, Meta(description="A sites file, as `tenfold plan sites` takes it.")] = None
    demand: Annotated[Text | None, Meta(description="A demand file, as `tenfold plan sites` takes it.")] = None

    def from_anywhere(self) -> "CircleSettings":
        """The same settings with absolute paths. Raises TenfoldError for a file that does not exist."""
        from tenfold.data.text.sources import NAMED

        given = {name: getattr(self, name) for name in FILES if "://" not in (getattr(self, name) or "://")}
        if missing := next((name for name in given if not Path(given[name]).exists()), None):
            raise TenfoldError(f"{given[missing]} does not exist: give --{missing} a file that does.")
        corpus = str(Path(self.corpus).resolve()) if Path(self.corpus).exists() and self.corpus not in NAMED else self.corpus
        return structs.replace(self, corpus=corpus, **{name: str(Path(given[name]).resolve()) for name in given})


class Circle(Struct, frozen=True):
    """The `number`th circle of a home. `after` names the newest generation when the circle began: its climb starts from there."""

    number: int = 1
    settings: CircleSettings = CircleSettings()
    after: str | None = None

    @property
    def seed(self) -> int:
        """The seed of users and demand, which differ in each circle."""
        return self.settings.seed + self.number - 1


def walk(home: Path, say: Say, asked: CircleSettings = CircleSettings(), again: bool = False) -> dict[str, Any]:
    """Run the circle in `home`, going on from where an earlier call was stopped. Returns the content of `circle.json`.

    With `again`, the next circle begins if the last one is done. A room whose optional packages are not installed is skipped, with
    a sentence that says so. Raises TenfoldError if a room fails; the results of the rooms before it are kept.
    """
    circle = _begun(home, asked.from_anywhere(), again)
    make_folder(home)
    found: dict[str, Any] = {}
    whole = {"version": VERSION, **to_builtins(circle), "rooms": found}
    write_json(home / "circle.json", whole)
    for name, room in parts(circle):
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
            write_json(home / "circle.json", whole)
    return read_document(home / "circle.json", VERSION, AGAIN)


def _begun(home: Path, asked: CircleSettings, again: bool) -> Circle:
    """The circle to run: the one that was begun in `home`, or, with `again`, the next one if that is done.

    Raises TenfoldError if `again` is asked for and no circle was begun, or if the settings differ from those of the home's first
    circle.
    """
    file = home / "circle.json"
    if not file.exists():
        if again:
            raise TenfoldError(f"No circle was walked in {home} yet: leave --again out.")
        return Circle(settings=asked)
    last = read_document(file, VERSION, AGAIN)
    try:
        circle, rooms = convert(last, Circle), convert(last.get("rooms"), dict[str, dict[str, Any]])
    except ValidationError:
        raise TenfoldError(f"{file} is damaged: remove it, and {AGAIN}.") from None
    if asked not in (circle.settings, CircleSettings()):
        fields, of = structs.asdict(asked), structs.asdict(circle.settings)
        other = ", ".join(f"--{name} {of[name]}" for name in fields if fields[name] != of[name])
        raise TenfoldError(f"The circle in {home} is walked with {other}: say the same, no such option at all, or another --home.")
    if not again or tuple(rooms) != ROOMS or any("failed" in room for room in rooms.values()):
        return circle
    return structs.replace(circle, number=circle.number + 1, after=_newest_finished(home))


def parts(circle: Circle) -> Iterator[tuple[str, Walk]]:
    """The rooms in order, each with the function that does its part; a room's code is loaded when its turn comes."""
    asked, number, seed = circle.settings, circle.number, circle.seed
    yield "climb", partial(_climb, circle=circle)
    yield "plan", partial(_plan, number=number)
    yield "sites", partial(_of("plan.sites").walk, sites_file=asked.sites, demand_file=asked.demand)
    yield "learn", partial(_of("learn").walk, part=_of("learn").Part(asked.model, asked.feedback, asked.steps, number, seed))
    yield "rank", partial(_of("rank").walk, part=_of("rank").Part(asked.interactions, number, asked.seed))
    yield "fleet", partial(_of("fleet").walk, part=_of("fleet").Part(number=number, seed=seed, file=asked.fleet))


def _of(room: str) -> ModuleType:
    return import_module(f"tenfold.{room}.walk")


def _newest_finished(home: Path) -> str | None:
    from tenfold.scale.generations import generations, is_finished

    return next((generation.name for generation in reversed(generations(home)) if is_finished(generation)), None)


def _climb(home: Path, say: Say, circle: Circle) -> dict[str, Any]:
    """Climb and score: a tiny climb in the first circle, ten times the last one in every other. A finished climb is kept."""
    from tenfold.scale import climb as climbing
    from tenfold.scale.documents import read
    from tenfold.scale.generations import is_finished, newest, prompt_of
    from tenfold.scale.report import write_report
    from tenfold.serve.complete import complete

    generation, finished = newest(home), _newest_finished(home)
    if finished is None:
        generation = climbing.climb(_first_climb(circle.settings), home, say=say, quiet=True)
    elif generation is None or not is_finished(generation) or finished == circle.after:
        generation = climbing.again(home, say=say, quiet=True)
    report = generation / "report.html"
    if not report.exists():
        text = complete(generation / "model", prompt_of(generation), max_new_tokens=64, temperature=0.7, top_p=0.95, seed=0).text
        report = write_report(generation, sample=text)
    scores = read(generation / "score.json")["scores"]
    numbers = {f"{name}_error_pct": round(row["error_pct"], 2) for name, row in scores.items()}
    return {**numbers, "files": [f"{generation.name}/{name}" for name in ("score.json", "run.jsonl", report.name)]}


def _first_climb(settings: CircleSettings) -> "ClimbSettings":
    from tenfold.scale.options import ClimbSettings

    asked = ClimbSettings(settings.corpus, TOP_FLOPS, seed=settings.seed)
    if os.environ.get("TENFOLD_CIRCLE") != "small":
        return asked
    a_part = str(Path(sysconfig.get_path("stdlib")) / "email") if asked.corpus == "stdlib" else asked.corpus
    return replace(asked, corpus=a_part, top_flops=6e10, vocab_size=300, seq_len=16)


def _plan(home: Path, say: Say, number: int) -> dict[str, Any]:
    """Score the last circle's plan by the climb's run, calibrate the planner by that run, and plan ten times its compute here."""
    from tenfold.plan.commands import MachineOptions
    from tenfold.plan.costs.consequences import consequences
    from tenfold.plan.costs.site_options import SiteOptions
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
    around_it = consequences(plan.workload, SiteOptions())
    whole = document(plan.workload, around_it, alternatives=plan.alternatives, notes=[said, *plan.notes])
    write_json(home / "plan" / "plan.json", whole)
    made_from = (calibrated, generation / "score.json")
    record(home, whole, {str(file.relative_to(home)): file_sha256(file) for file in made_from})
    days = around_it.wall_days.mid
    say(f"plan: {said} Ten times its compute would take {days * 24:.2f} hours here.")
    return {"factor": calibration.factor, "next_hours": days * 24, "files": ["plan/plan.json", str(calibrated.relative_to(home))]}
