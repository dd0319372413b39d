"""The trainer, for every task, on a CPU, a GPU, or many processes in any layout.

A run is a directory; starting it again resumes it. Its batches are a pure function of (seed, step), and its initial weights of the
seed, so two runs on one machine are equal to the bit, and so are a run that was killed and resumed and one that was not.
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
    """Train `task` in `directory`, resuming from its newest intact checkpoint if there is one. Every process of a run calls this.

    Writes `identity.json`, `run.toml`, `run.jsonl`, `time.jsonl`, `checkpoint/` and, when finished, `model/`. After SIGTERM or
    Ctrl-C it saves a checkpoint and returns a result with `finished` False. The default of `hooks` is `standard_hooks(config)`. A
    run whose loss spikes is rolled back automatically.

    Raises TenfoldError for settings that cannot be trained, for a directory in which another run was started or is training, for a
    loss that is not finite, and for a full disk. Raises ProcessLost if another process is lost; when started again, the run resumes
    from its last checkpoint.
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
        for hook in hooks:
            name = type(hook).__name__
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
    """Raises TenfoldError, before a model is written, if the weights or the loss of a finished run are not finite."""
    if run.finished and any(run.dims.agree(not math.isfinite(result.loss), not all_finite(run.model))):
        raise TenfoldError(
            f"The run in {run.directory} ended with weights or a loss that are not finite numbers, so no model is written: train "
            "in another directory (--out) with a lower learning_rate in [optimizer]."
        )


def standard_hooks(
    config: RunConfig, *, quiet: bool = False, keep_model: bool = True, notes: dict[str, Any] | None = None
) -> list[Hook]:
    """The hooks that a run file asks for. Without `keep_model`, a finished run keeps only its metrics. `notes` are added to the
    first event of `run.jsonl`."""
    task = config.task
    free = task.get("load_balancing", "aux_loss_free") == "aux_loss_free"
    balance = LoadBalancing(task.get("load_balancing_rate", 0.01) if free else 0.0, config.optimizer.decay)
    log = Log(config.log.every, balance, quiet, notes)
    checkpoints = Checkpoints(config.checkpoint, keep_model)
    return [
        *([Export()] if keep_model else []),  # first, so that the event "end" is only written once the model is
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
    """Within the context, a communication error raises ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if not dist.is_initialized() or not any(word in said.lower() for word in ("connection", "gloo", "nccl", "timed out")):
            raise
        raise ProcessLost(f"Another process of the run was lost ({said}): a restart resumes from the last checkpoint.") from None
