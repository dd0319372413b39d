"""The trainer: one for every task, on a CPU, a GPU, and many processes in any layout.

A run is a directory that goes on from where it was. Its batches are a pure function of (seed, step) and its weights of the seed;
so two runs are equal to the bit on one machine, and so is a run that was killed and resumed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tenfold.launch.failures import ProcessLost
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import RunConfig
from tenfold.train.hook import Hook
from tenfold.train.hooks.balance import LoadBalancing
from tenfold.train.hooks.checkpoints import Checkpoints
from tenfold.train.hooks.export import Export
from tenfold.train.hooks.health import LossSpikes, SDCCheck, Stragglers
from tenfold.train.hooks.log import Evaluation, Log
from tenfold.train.identity import only_training
from tenfold.train.initial_weights import all_finite
from tenfold.train.parallel.processes import on_first_process, start_processes
from tenfold.train.result import RunResult
from tenfold.train.rollback import LossSpike, roll_back
from tenfold.train.run import Run
from tenfold.train.start import start_run
from tenfold.train.task import Task
from tenfold.train.watchdog import Watchdog


def fit(task: Task, config: RunConfig, directory: Path, hooks: Sequence[Hook] | None = None) -> RunResult:
    """Train `task` in `directory`, going on from its newest good checkpoint if there is one; on as many processes as were started.

    Writes `identity.json`, `run.toml`, `run.jsonl`, `checkpoint/` and, when finished, `model/`. Returns with `finished` False after
    SIGTERM or Ctrl-C, with a checkpoint saved. `hooks` are `standard_hooks(config)` where not given. A run whose loss leaves its
    course goes back by itself. Raises TenfoldError for what cannot be trained, for another run than was begun in `directory` or
    one that trains there already, for a loss that is not a number or a disk that is full; and ProcessLost where another process
    is gone: started again, the run goes on from its last checkpoint.
    """
    hooks = standard_hooks(config) if hooks is None else hooks
    with _others_may_be_lost(), Watchdog(config.health.hang_after_s) as watchdog:
        start_processes(config.health.hang_after_s)
        with only_training(directory):
            while True:
                try:
                    return _fit(task, config, directory, hooks, watchdog)
                except LossSpike as spike:
                    on_first_process(partial(roll_back, directory, config.checkpoint.upload_to, spike))


def _fit(task: Task, config: RunConfig, directory: Path, hooks: Sequence[Hook], watchdog: Watchdog) -> RunResult:
    with ExitStack() as opened:
        run = start_run(task, config, directory, watchdog, opened)
        run.hooks = {type(hook).__name__: hook for hook in hooks}
        for name, hook in run.hooks.items():
            if run.saved is not None and name in run.saved["hooks"]:
                hook.load_state_dict(run.saved["hooks"][name])
            hook.start(run)
            opened.callback(hook.close)
        while not run.finished and not run.stopped:
            done = run.one_step()
            for hook in hooks:
                hook.after_step(run, done)
        for hook in hooks:
            hook.finish(run)
        result = run.result()
        _require_numbers(run, result)
        watchdog.end()
        for hook in hooks:
            hook.end(run, result)
    return result


def _require_numbers(run: Run, result: RunResult) -> None:
    """Raises TenfoldError, before a model is written, where a finished run came to weights or a loss that are not numbers."""
    if run.finished and any(run.dims.agree(not math.isfinite(result.loss), not all_finite(run.model))):
        raise TenfoldError(
            f"The run in {run.directory} has come to weights or a loss that are not finite numbers, and so to no model: train in "
            "another directory (--out) with a lower learning_rate in [optimizer]."
        )


def standard_hooks(
    config: RunConfig, *, quiet: bool = False, keep_model: bool = True, notes: dict[str, Any] | None = None
) -> list[Hook]:
    """The hooks of a run file. Without `keep_model` only the metrics stay when the run has finished; `notes` go into the first
    event of `run.jsonl`."""
    task = config.task
    free = task.get("load_balancing", "aux_loss_free") == "aux_loss_free"
    balance = LoadBalancing(task.get("load_balancing_rate", 0.01) if free else 0.0, config.optimizer.decay)
    log = Log(config.log.every, balance, quiet, notes)
    checkpoints = Checkpoints(config.checkpoint, keep_model)
    return [
        *([Export()] if keep_model else []),  # first: a run has ended when its model is there
        LossSpikes(config.health.loss_spike, before=checkpoints.wait),
        balance,
        Stragglers(),
        SDCCheck(config.health.sdc_check_every),
        log,
        Evaluation(task.get("evaluate_every", 0), log),
        checkpoints,
    ]


@contextmanager
def _others_may_be_lost() -> Iterator[None]:
    """Within it, an error of communication raises ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if not dist.is_initialized() or not any(word in said.lower() for word in ("connection", "gloo", "nccl", "timed out")):
            raise
        raise ProcessLost(f"Another process of the run was lost ({said}): it goes on from its last checkpoint.") from None
