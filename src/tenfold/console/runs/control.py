"""Stops and resumes a run, as Ctrl-C in its terminal and `tenfold resume` do."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from tenfold.console.runs.find import FILE, ends, state
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import readable, reason, writable
from tenfold.train.lock import LOCK, trainer

LOG = "resume.log"


def stop(folder: Path) -> str:
    """Ask a run that trains on this machine to save and to end; returns a sentence about what was done.

    Raises TenfoldError where the run does not train, or trains on another machine.
    """
    held = trainer(folder)
    if held is None:
        raise TenfoldError(f"The run in {folder} does not train now; there is nothing to stop.")
    if held.get("host") != socket.gethostname():
        raise TenfoldError(
            f"The run in {folder} trains on {held.get('host', 'another machine')}: stop it there, or by `tenfold launch cancel`."
        )
    process = held.get("process")
    if not isinstance(process, int) or not _has_open(process, folder / LOCK):
        raise TenfoldError(f"The process that trains in {folder} is not known: stop it where it was started.")
    try:
        os.kill(process, signal.SIGTERM)
    except OSError as error:
        raise TenfoldError(f"Process {process}, which trains in {folder}, could not be stopped: {reason(error)}.") from None
    return f"Process {process} was asked to save and to stop."


def resume(folder: Path) -> str:
    """Resume a run by `tenfold resume`, in a process of its own that writes to `resume.log`; returns a sentence about it.

    Raises TenfoldError where the run trains already, has finished, or has no run file.
    """
    with readable(folder / FILE):
        found = state(folder, ends(folder / FILE).last_kind)
    if found == "training":
        raise TenfoldError(f"The run in {folder} trains already.")
    if found == "finished":
        raise TenfoldError(f"The run in {folder} has finished; there is nothing to resume.")
    if not (folder / "run.toml").exists():
        raise TenfoldError(f"{folder} cannot be resumed: it has no run.toml.")
    command = [sys.executable, "-m", "tenfold", "resume", str(folder.resolve())]
    with writable(folder / LOG), (folder / LOG).open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    threading.Thread(target=process.wait, daemon=True).start()  # reaps the process when it ends
    return f"Process {process.pid} resumes the run; its output is in {LOG}."


def _has_open(process: int, file: Path) -> bool:
    """Whether a process really has the lock file open that names it: the id may have been reused."""
    with suppress(psutil.Error):
        return str(file.resolve()) in {one.path for one in psutil.Process(process).open_files()}
    return False
