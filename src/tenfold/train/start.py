"""From a task and a run file to a run that is ready for its next step: model, optimizers, processes, state."""

import platform
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tenfold.data.text.prefetch import AHEAD, Prefetch
from tenfold.model.attention import fastest_attention
from tenfold.model.llama import Llama
from tenfold.spec.threads import use_threads
from tenfold.train import checkpoint
from tenfold.train.activation_checkpointing import checkpoint_activations
from tenfold.train.compile import compile_model, use_document_blocks
from tenfold.train.config import RunConfig, write_config
from tenfold.train.goodput import GoodputTimer
from tenfold.train.hooks.health import skipped_batches
from tenfold.train.initial_weights import build, check_tokenizer, give_shares
from tenfold.train.metrics import MetricsWriter
from tenfold.train.optim.fp8 import use_fp8
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.parallel.dims import ParallelDims
from tenfold.train.parallel.parallelize import StepShape, parallelize
from tenfold.train.precision import autocast, peak_flops
from tenfold.train.resolve import Resolved, resolve
from tenfold.train.run import Run, RunState
from tenfold.train.signals import stop_on_signals
from tenfold.train.skipper import DeviceStepSkipper, HostStepSkipper, StepSkipper
from tenfold.train.step import Step
from tenfold.train.task import Rows, Task
from tenfold.train.watchdog import Watchdog


def start_run(task: Task, config: RunConfig, directory: Path, watchdog: Watchdog, opened: ExitStack) -> Run:
    """The run in `directory`, going on from its newest good checkpoint if there is one; `opened` closes what it holds.

    Raises TenfoldError where the settings do not fit one another, the machine, or the checkpoint.
    """
    resolved = resolve(config, task.vocab_size)
    model, dims, facts = _make_model(task, config, resolved)
    watchdog.beat()
    record = directory if dims.rank == 0 else directory / "ranks" / str(dims.rank)
    record.mkdir(parents=True, exist_ok=True)
    write_config(config, record / "run.toml")
    optimizers = make_optimizers(model, resolved.spec, resolved.h, config.optimizer.name)
    saved = checkpoint.restore_latest(directory / "checkpoint", model, optimizers, config.checkpoint.upload_to)
    watchdog.beat()
    state = RunState() if saved is None else RunState(**saved["state"])
    opened.enter_context(autocast(resolved.device, resolved.dtype))
    opened.enter_context(fastest_attention(resolved.device))
    peak, peak_source = peak_flops(resolved.device, resolved.dtype)
    peak *= dist.get_world_size() if dist.is_initialized() else 1
    run = Run(
        directory=directory,
        record=record,
        task=task,
        spec=resolved.spec,
        model=model,
        optimizers=optimizers,
        dims=dims,
        device=resolved.device,
        steps=resolved.h.steps,
        batch_size=resolved.h.batch_size,
        tokens_per_step=resolved.h.batch_size * config.data.seq_len,
        peak_flops=peak,
        peak_source=peak_source,
        train_step=_step(task, config, resolved, model, optimizers, dims, state),
        rows_of=opened.enter_context(_rows(task, directory, dims, resolved)),
        watchdog=watchdog,
        metrics=opened.enter_context(_metrics(config, record, dims, None if saved is None else state.step)),
        timer=opened.enter_context(GoodputTimer(directory / "time.jsonl" if dims.rank == 0 else None, state.step)),
        stop=opened.enter_context(stop_on_signals()),
        state=state,
        saved=saved,
        facts=_facts(config, resolved, peak_source) | facts,
    )
    return run
