"""Set up a run from a task and a run file, ready for its next step: model, optimizers, process layout, state."""

import os
import platform
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tenfold.data.text.prefetch import AHEAD, Prefetch
from tenfold.launch.failures import require_progress
from tenfold.model.attention import fastest_attention
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_folder
from tenfold.spec.layout import Layout
from tenfold.spec.threads import recommended_threads
from tenfold.train import checkpoint
from tenfold.train.activation_checkpointing import checkpoint_activations
from tenfold.train.compile import compile_model, use_document_blocks
from tenfold.train.config import RunConfig
from tenfold.train.device import this_accelerator
from tenfold.train.goodput import GoodputTimer
from tenfold.train.identity import Identity, freeze, identify
from tenfold.train.initial_weights import all_finite, build, check_tokenizer, give_shares
from tenfold.train.metrics import MetricsWriter
from tenfold.train.optim.fp8 import use_fp8
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.parallel.dims import ParallelDims
from tenfold.train.parallel.parallelize import parallelize
from tenfold.train.parallel.processes import on_first_process
from tenfold.train.precision import autocast, peak_flops
from tenfold.train.resolve import Resolved, resolve
from tenfold.train.rollback import skipped_batches
from tenfold.train.run import Run
from tenfold.train.run_file import write_config
from tenfold.train.signals import stop_on_signals
from tenfold.train.skipper import DeviceStepSkipper, HostStepSkipper, StepSkipper
from tenfold.train.state import RunState
from tenfold.train.step import Step
from tenfold.train.task import Rows, Task
from tenfold.train.watchdog import Watchdog


def start_run(task: Task, config: RunConfig, directory: Path, watchdog: Watchdog, opened: ExitStack) -> Run:
    """The run in `directory`, resumed from its newest intact checkpoint if there is one. Contexts that it needs enter `opened`.

    Raises TenfoldError if the settings do not fit each other, the machine, the checkpoint, or those that the run in `directory` was
    started with; nothing is written then.
    """
    identity = on_first_process(lambda: identify(task, config, directory))
    config = identity.config
    resolved = resolve(config, task.vocab_size)
    use_threads(config, resolved.spec.dim, directory)
    model, dims, facts = _make_model(task, config, resolved)
    watchdog.beat()
    optimizers = make_optimizers(model, resolved.spec, resolved.h, config.optimizer.name)
    saved = checkpoint.restore_latest(directory / "checkpoint", model, optimizers, config.checkpoint.upload_to, watchdog.beat)
    watchdog.beat()
    state = _restored(task, saved)
    on_first_process(lambda: require_progress(directory, state.step))
    opened.enter_context(autocast(resolved.device, resolved.dtype))
    opened.enter_context(fastest_attention(resolved.device))
    peak, peak_source = peak_flops(resolved.device, resolved.dtype, this_accelerator(config.device))
    peak *= dist.get_world_size() if dist.is_initialized() else 1
    facts["compile"] = _compiled(model, config, resolved, dims, peak)
    skipper = _skipper(config, state, resolved.device, dims)
    step = Step(
        task, model, optimizers, skipper, resolved.h, config.optimizer, resolved.device, dims, layout_of(config).micro_batch,
        read_every=config.log.every,
    )  # fmt: skip
    record = make_folder(directory if dims.rank == 0 else directory / "ranks" / str(dims.rank))
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
        train_step=step,
        rows_of=opened.enter_context(_rows(task, directory, dims, resolved)),
        watchdog=watchdog,
        metrics=opened.enter_context(_metrics(config, record, dims, None if saved is None else state.step)),
        timer=GoodputTimer(directory / "time.jsonl" if dims.rank == 0 else None, state.step),
        stop=opened.enter_context(stop_on_signals()),
        state=state,
        saved=saved,
        facts=_facts(config, resolved, task, peak_source) | facts,
    )
    _write_down(identity, run)
    return run


def _restored(task: Task, saved: dict[str, Any] | None) -> RunState:
    if saved is None:
        return RunState()
    task.load_state_dict(saved["task"])
    return RunState(**saved["state"])


def _write_down(identity: Identity, run: Run) -> None:
    """Write the settings of this start for later starts; settings that were changed are first recorded in `run.jsonl`."""
    if run.saved is not None and identity.changed:
        run.metrics.write("changed", step=run.state.step, settings=identity.changed)
    write_config(identity.config, run.record / "run.toml")
    if run.is_first:
        freeze(identity, run.directory)


def _make_model(task: Task, config: RunConfig, resolved: Resolved) -> tuple[Llama, ParallelDims, dict[str, Any]]:
    """The model with its initial weights, distributed over all processes; this process's place; and facts for the record."""
    spec, h, device = resolved.spec, resolved.h, resolved.device
    layout = layout_of(config).replace(global_batch=h.batch_size, seq_len=config.data.seq_len)
    if config.init_from is not None:
        check_tokenizer(Path(config.init_from), task.directory)
    torch.manual_seed(config.seed)
    # On several processes a model is distributed before it has weights, except where `give_shares` cannot fill it: models with an
    # image encoder or with modules that a task adds.
    in_shares = dist.is_initialized() and dist.get_world_size() > 1 and spec.vision is None and not task.adds_modules
    model = build(spec, config.init_from, torch.device("meta") if in_shares else device)
    task.prepare(model)
    # Before the model is distributed: fp8 replaces modules, and FSDP and tensor parallelism are applied to module objects.
    facts = {"fp8": use_fp8(model, device, resolved.dtype)} if config.fp8 else {}
    checkpoint_activations(model, layout.activation_checkpointing)
    dims = parallelize(model, task, layout, device, resolved.dtype)
    if in_shares:
        give_shares(model, config.init_from, device)
    if config.init_from is not None and any(dims.agree(not all_finite(model))):
        raise TenfoldError(f"The model in {config.init_from} has weights that are not finite numbers: give another init_from.")
    if device.type == "cuda" and dims.alone:
        use_document_blocks(model, config.data.seq_len)
    return model, dims, facts


def use_threads(config: RunConfig, width: int, directory: Path | None = None) -> None:
    """Set PyTorch's number of threads: the run file's, or one that suits the width and the machine.

    With several processes and no number in the run file, the launcher has already set it.
    """
    if config.threads is not None or os.environ.get("WORLD_SIZE", "1") == "1":
        torch.set_num_threads(config.threads or recommended_threads(width, directory))


def layout_of(config: RunConfig) -> Layout:
    """The table `[parallel]`. Raises TenfoldError if it is "auto": only the command `tenfold train` asks the planner."""
    if config.parallel == "auto":
        raise TenfoldError('parallel = "auto" needs the planner: start the run with `tenfold train`, or write a layout.')
    return config.parallel


def _compiled(model: Llama, config: RunConfig, resolved: Resolved, dims: ParallelDims, peak: float) -> str:
    if not dims.alone and config.compile != "off":
        return "eager: the model is distributed over several processes"
    flops = resolved.tokens * resolved.spec.train_flops_per_token(config.data.seq_len)
    return compile_model(model, config.compile, resolved.device, flops / peak)


def _skipper(config: RunConfig, state: RunState, device: torch.device, dims: ParallelDims) -> StepSkipper:
    if device.type == "cuda" and config.optimizer.name == "adamw" and dims.alone:
        return DeviceStepSkipper(state, config.optimizer.max_skipped, device)
    return HostStepSkipper(state, config.optimizer.max_skipped)


def _rows(task: Task, directory: Path, dims: ParallelDims, resolved: Resolved) -> Prefetch[Rows]:
    """The rows of each step, without the batches that rollbacks skip; prefetched if they come from an object store."""
    left_out = skipped_batches(directory)
    own = dims.rows(resolved.h.batch_size)
    return Prefetch(
        lambda step: task.rows(step + sum(n for first, n in left_out if first <= step), own),
        resolved.h.steps,
        ahead=AHEAD if task.is_remote else 0,
    )


def _metrics(config: RunConfig, record: Path, dims: ParallelDims, resume_step: int | None) -> MetricsWriter:
    first = dims.rank == 0
    wandb = config.log.wandb if first else None
    return MetricsWriter(record, tensorboard=config.log.tensorboard and first, wandb_project=wandb, resume_step=resume_step)


def _facts(config: RunConfig, resolved: Resolved, task: Task, peak_source: str) -> dict[str, Any]:
    """The fields of the event "start" in `run.jsonl`."""
    spec = resolved.spec
    return {
        "version": config.version,
        "model": asdict(spec),
        "parameters": asdict(spec.parameters()),
        "tokens_planned": resolved.tokens,
        "flops_per_token": spec.train_flops_per_token(config.data.seq_len),
        "hyperparameters": asdict(resolved.h),
        "corpus": str(task.directory),
        "device": str(resolved.device),
        "dtype": str(resolved.dtype).removeprefix("torch."),
        "mfu_of": peak_source,
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
