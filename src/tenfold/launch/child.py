"""The first steps of a process that a launcher started for a function: follow its parent, and set its threads."""

import multiprocessing
import os
import signal
import sys
import threading
import time

# Linux's prctl(PR_SET_PDEATHSIG, SIGTERM), which holds on after exec.
_FOLLOW = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"


def follow_parent(grace_s: float) -> int:
    """Let this process save and leave, within `grace_s`, when its parent is gone. Returns the parent's process id."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    return parent.pid


def following(command: list[str]) -> list[str]:
    """The same command, but where the system can do that, it gets SIGTERM when the thread that started it is gone."""
    return [sys.executable, "-c", _FOLLOW, *command] if sys.platform == "linux" else command


def set_threads(threads: int) -> None:
    """Let PyTorch use so many threads; 0 leaves it as it is."""
    if threads:
        import torch

        torch.set_num_threads(threads)
