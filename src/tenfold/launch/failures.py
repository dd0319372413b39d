"""Why the processes of an elastic job failed, so that a failure that comes again ends the job instead of another start.

A process that fails leaves `failures/RANK.json` in the job's directory. The agent of this machine reads it between two starts;
under a `torchrun` of its own, each process reads it when it starts, and ends its agent.
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


class ProcessLost(TenfoldError):
    """Another process of the job is gone or cannot be reached: started anew, the job goes on from its last checkpoint."""


@contextmanager
def noted(directory: Path) -> Iterator[None]:
    """Around the work of one process: note why it fails, unless it only lost another one.

    A process that is not under an elastic agent notes nothing.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        yield
        return
    if sentence := hopeless(directory, run):
        # Said before torchrun, which would start this process again, is ended: it ends this process in turn.
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


def hopeless(directory: Path, run: str) -> str | None:
    """The sentence of a failure that no other start of the elastic run `run` would mend, if one was noted in `directory`.

    That is any TenfoldError, and any other failure that came twice alike: type, first line and notes (the step) are the same,
    but for numbers in the line, such as addresses and bytes.
    """
    notes = [_read(path) for path in sorted((directory / "failures").glob("*.json"))]
    return next((note["sentence"] for note in notes if note["run"] == run and (note["final"] or note["times"] > 1)), None)


def _note(path: Path, run: str, error: Exception) -> None:
    kind, line = type(error).__name__, (str(error).splitlines() or [""])[0]
    notes = getattr(error, "__notes__", [])
    failure = [kind, re.sub(r"\d+", "0", line), *notes]
    before = _read(path) if path.exists() else {}
    again = before.get("run") == run and before.get("failure") == failure
    final = isinstance(error, TenfoldError)
    said = ": ".join(filter(None, (kind, line)))
    sentence = line if final else f"The run failed twice in the same way{''.join(f', {note}' for note in notes)}: {said}"
    note = {"run": run, "failure": failure, "times": before["times"] + 1 if again else 1, "final": final, "sentence": sentence}
    write_json(path, note)


def _read(path: Path) -> dict:
    return json.loads(path.read_text())
