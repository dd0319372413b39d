"""Records why the processes of an elastic job failed, so that a failure that repeats ends the job instead of restarting it forever.

A process that fails writes `failures/RANK.json` in the job's directory. `launch.elastic` reads these files before it restarts the
processes; under a plain `torchrun`, each process reads them when it starts, and ends torchrun if a restart is hopeless.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import write_json

SAME_FAILURES = "TENFOLD_SAME_FAILURES"  # environment variable: the run ends when the same failure comes this many times
STARTS = Path("failures", "starts.json")
LOST_STARTS = 5  # starts in a row without progress that end a run: a process that is killed records no failure to compare


class ProcessLost(TenfoldError):
    """Another process of the job has died or cannot be reached. A restart resumes the job from its last checkpoint."""


@contextmanager
def noted(directory: Path) -> Iterator[None]:
    """A context around the work of one process that records why it fails, unless it fails because another process was lost.

    Without an elastic agent nothing is recorded.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        yield
        return
    again = int(os.environ.get(SAME_FAILURES, "2"))
    if sentence := hopeless(directory, run, again):
        # Print before ending torchrun, which would restart this process: torchrun kills this process when it ends.
        print(f"tenfold: {sentence} (delete {directory / 'failures'} to try once more)", file=sys.stderr, flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
        raise SystemExit(1)
    try:
        yield
    except ProcessLost:
        raise
    except Exception as error:
        _note(directory / "failures" / f"{os.environ.get('RANK', '0')}.json", run, error)
        raise
    if os.environ.get("RANK", "0") == "0":
        (directory / STARTS).unlink(missing_ok=True)  # the work is done: reset the count of lost starts


def hopeless(directory: Path, run: str, times: int = 2) -> str | None:
    """The sentence of a failure recorded in `directory` that a restart of the elastic run `run` would not mend; None without one.

    Such a failure is any TenfoldError, and any other exception that came `times` times: with the same type, the same notes (they
    name the step) and the same first line, in which numbers (addresses, bytes) may differ.
    """
    notes = [_read(path) for path in sorted((directory / "failures").glob("[0-9]*.json"))]
    return next((note["sentence"] for note in notes if note["run"] == run and (note["final"] or note["times"] >= times)), None)


def require_progress(directory: Path, step: int) -> None:
    """Record that this start of an elastic run goes on from `step`. One process of the run calls it.

    Raises TenfoldError if the last `LOST_STARTS` starts went on from the same step and were all lost without recording a failure,
    for example because the system killed them when memory ran out, or because of a broken driver.
    """
    run, path = os.environ.get("TORCHELASTIC_RUN_ID"), directory / STARTS
    if run is None:
        return
    before = _read(path) if path.exists() else {}
    lost = before["lost"] + 1 if (before.get("run"), before.get("step")) == (run, step) else 0
    if lost >= max(LOST_STARTS, int(os.environ.get(SAME_FAILURES, "2"))):
        raise TenfoldError(
            f"The run was lost {lost} times after step {step} and saved nothing in between: see whether memory is short or a "
            "device is broken, or save more often (every_s in [checkpoint])."
        )
    write_json(path, {"run": run, "step": step, "lost": lost})


def _note(path: Path, run: str, error: Exception) -> None:
    kind, line = type(error).__name__, (str(error).splitlines() or [""])[0]
    notes = getattr(error, "__notes__", [])
    failure = [kind, re.sub(r"\d+", "0", line), *notes]
    before = _read(path) if path.exists() else {}
    again = before.get("run") == run and before.get("failure") == failure
    final = isinstance(error, TenfoldError)
    said = ": ".join(filter(None, (kind, line)))
    times = before["times"] + 1 if again else 1
    often = "twice" if times == 2 else f"{times} times"
    sentence = line if final else f"The run failed {often} in the same way{''.join(f', {note}' for note in notes)}: {said}"
    note = {"run": run, "failure": failure, "times": times, "final": final, "sentence": sentence}
    write_json(path, note)


def _read(path: Path) -> dict:
    return json.loads(path.read_text())
