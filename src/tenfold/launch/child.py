"""What a launcher's child process does first: end itself when its parent dies, and set the number of threads."""

import multiprocessing
import os
import signal
import sys
import threading
import time

# Linux's prctl(PR_SET_PDEATHSIG, SIGTERM), which stays in force after exec.
_FOLLOW = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"


def follow_parent(grace_s: float) -> int:
    """Send this process SIGTERM when its parent has died, and SIGKILL `grace_s` seconds later. Returns the parent's process id."""
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
    """The command, wrapped so that it gets SIGTERM when the thread that started it ends (Linux only; else unchanged)."""
    return [sys.executable, "-c", _FOLLOW, *command] if sys.platform == "linux" else command


def set_threads(threads: int) -> None:
    """Set the number of threads that PyTorch uses; 0 leaves it as it is."""
    if threads:
        import torch

        torch.set_num_threads(threads)
