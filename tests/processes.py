"""Several processes on this machine that train together: PyTorch is imported once, and each is forked from there."""

import multiprocessing
import os
import socket
import traceback


def _enter(rank, world, port, work, arguments, said):
    import torch

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        work(*arguments)
    except BaseException:
        said.put(f"process {rank}: {traceback.format_exc()}")
        raise


def run_together(world, work, *arguments, timeout_s=500):
    """Run `work(*arguments)` in `world` processes, each with the environment that torchrun gives; fails where one does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tenfold.train.trainer", "torch._dynamo"])
    said = context.Queue()
    started = [context.Process(target=_enter, args=(r, world, port, work, arguments, said)) for r in range(world)]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(timeout_s)
            assert process.exitcode == 0, said.get(timeout=5) if process.exitcode else f"still running after {timeout_s} s"
    finally:
        for process in started:
            process.kill()
            process.join()
