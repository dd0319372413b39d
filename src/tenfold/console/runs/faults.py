"""What went wrong in a run and what was done about it, from its files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from tenfold.console.document import Figure
from tenfold.console.runs.find import FILE, figure_of
from tenfold.console.runs.record import Event
from tenfold.spec.files import read_facts

FAILURES = "failures"  # folder of the notes that failing processes leave


class Fault(Struct):
    """What happened (`what`), after which step, what was done about it (`done`), and the file that says so."""

    what: str
    done: str
    file: str
    step: Figure | None = None


def faults(home: Path, name: str, events: Sequence[Event]) -> list[Fault]:
    """The faults in the run's record, in its order, then those that its processes noted."""
    return [*_recorded(name, events), *_noted(home, name)]


def _recorded(name: str, events: Sequence[Event]) -> Iterator[Fault]:
    left_out = 0
    for number, event in events:
        step, kind = figure_of(name, (number, event), "step"), event.get("event")
        if kind == "resume":
            before, left_out = left_out, event.get("batches_left_out") or 0
            if left_out > before:
                done = f"The run went back to a checkpoint and skipped {left_out - before} batches."
                yield _fault(name, step, "The loss spiked.", done)
            else:
                yield _fault(name, step, "The run had stopped.", "It continued from its newest checkpoint.")
        elif kind == "straggler":
            what = f"Process {event.get('rank')} on {event.get('host')} was slower than the others: {event.get('why')}."
            yield _fault(name, step, what, "It was recorded.")
        elif kind == "changed":
            yield _fault(name, step, f"Settings were changed: {_changes(event)}.", "The run continued with them.")
        elif kind == "slept":
            yield _fault(name, step, "The run slept: its machine was lent.", "It continued from memory.")
        elif kind == "stopped":
            yield _fault(name, step, "The run was asked to stop.", "It saved a checkpoint and ended.")
        elif kind == "end" and event.get("skipped_steps"):
            skipped = figure_of(name, (number, event), "skipped_steps", "steps")
            yield _fault(name, skipped, "Gradients exploded or were not finite.", "These steps left the weights as they were.")


def _noted(home: Path, name: str) -> Iterator[Fault]:
    for path in sorted((home / name / FAILURES).glob("[0-9]*.json")):
        if path.is_symlink():  # it may lead out of the home
            continue
        note = read_facts(path)
        done = "The run ended." if note.get("final") else "Its processes were started again."
        yield Fault(str(note.get("sentence", "A process failed.")), done, str(path.relative_to(home)))


def _fault(name: str, step: Figure | None, what: str, done: str) -> Fault:
    return Fault(what, done, f"{name}/{FILE}", step)


def _changes(event: dict[str, Any]) -> str:
    settings = event.get("settings")
    return ", ".join(settings) if isinstance(settings, dict) else "unknown ones"
