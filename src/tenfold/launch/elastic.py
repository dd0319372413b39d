"""A run on several processes of this machine that are started again when one is lost, by PyTorch's elastic agent.

It is what `torchrun` does on a node, but for the start: PyTorch is imported once and each process is forked from there, so
that a new set of them is up in a second or two.
"""

import multiprocessing
import os
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import SignalException
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.parallel.parallelize import ProcessLost
from tenfold.train.text import open_text
from tenfold.train.trainer import RunResult, train

RESTARTS = 100


def train_here(
    config: RunConfig, directory: Path, home: Path, processes: int, *, quiet: bool = False, save_s: int = 30, work: Any = None
) -> RunResult:
    """Train with `processes` processes, going on from the last checkpoint whenever some are lost.

    After SIGTERM or Ctrl-C they have `save_s` seconds to save. `work` takes the place of `worker` (to inject faults).
    Raises TenfoldError for what another start would not mend.
    """
    open_text(config, home, quiet=quiet)  # made once, before there are several
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a start may read where the processes before it were
    multiprocessing.set_forkserver_preload(["tenfold.train.trainer", "torch._dynamo"])  # FSDP imports the latter when first used
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=RESTARTS, monitor_interval=0.1, start_method="forkserver",
        shutdown_timeout=save_s, logs_specs=DefaultLogsSpecs(), signals_to_handle="SIGTERM,SIGINT,SIGUSR1",
    )  # fmt: skip
    try:
        outcome = elastic_launch(launch, work or worker)(config, directory, home, quiet)[0]
    except SignalException as signal:
        raise TenfoldError(f"Stopped by {signal.sigval.name}: `tenfold resume {directory}` goes on from the last save.") from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        raise TenfoldError(
            f"The run was started {RESTARTS} times and failed each time; process {rank} said: {failure.message}"
        ) from None
    if isinstance(outcome, str):
        raise TenfoldError(outcome)
    return outcome


def worker(config: RunConfig, directory: Path, home: Path, quiet: bool) -> RunResult | str:
    """What each process does; returns the sentence of an error that another start would not mend."""
    try:
        return train(config, open_text(config, home, quiet=True), directory, title=directory.name, quiet=quiet)
    except ProcessLost:
        raise
    except TenfoldError as error:
        return str(error)
