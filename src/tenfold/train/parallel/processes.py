"""The processes of a run: form the process group, and do work on the first process for all."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tenfold.launch.failures import ProcessLost

T = TypeVar("T")


def start_processes(patience_s: float = 900.0) -> None:
    """Form a process group if `torchrun` or a launcher started several processes, waiting for them for at most `patience_s`.

    Raises ProcessLost if they cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=patience_s)))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # A single node's agent keeps one store over all restarts, with the addresses of processes that are gone.
            store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ProcessLost(
            f"The other processes cannot be reached at {where} ({str(error).splitlines()[0][:200]}): see that all were started, "
            "and that this address can be reached from this machine."
        ) from None
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def on_first_process(work: Callable[[], T], group: Any = None) -> T:
    """Do `work` in the first process; its result is returned, or its error raised, in all of them."""
    if not dist.is_initialized():
        return work()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except Exception as error:  # of any kind: the other processes must not wait forever
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def on_first_process_then_all(work: Callable[[], T]) -> T:
    """Do `work` in the first process, then in all of them, which find what it made; returns its result in each."""
    if dist.is_initialized():
        on_first_process(lambda: (work(), None)[1])
    return work()


def local_rank() -> int:
    """The number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))
