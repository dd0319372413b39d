"""What a process does first that a launcher started for a function."""

import multiprocessing
import os
import signal
import threading
import time


def follow_parent(grace_s: float) -> int:
    """Let this process save and leave, in `grace_s` at most, when the one that started it is gone. Returns the latter's id."""
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    return parent.pid


def set_threads(threads: int) -> None:
    """Let PyTorch use so many threads; 0 leaves it as it is."""
    if threads:
        import torch

        torch.set_num_threads(threads)
