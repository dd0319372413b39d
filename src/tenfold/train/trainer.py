"""The training loop: one for a CPU, a GPU, and many processes in any layout. A run is a directory that goes on from where it was.

The batches are a pure function of (seed, step), the weights of the seed; so two runs are equal to the bit on one
machine, and so is a run that was killed and resumed.
"""

import json
import math
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.data.images.corpus import ImageCorpus, build_images, mixed_batch
from tenfold.data.text.batches import Batch, train_batch
from tenfold.data.text.corpus import Corpus, require_tokens
from tenfold.data.text.mixture import Mixture
from tenfold.data.text.prefetch import AHEAD, Prefetch
from tenfold.model.attention import fastest_attention
from tenfold.model.io.huggingface import write_model
from tenfold.model.llama import Llama
from tenfold.model.moe import balance_bias, expert_layers, router_statistics
from tenfold.model.mtp import ahead_weights
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.train import checkpoint
from tenfold.train.config import RunConfig, resolve_model, write_config
from tenfold.train.export import export_model
from tenfold.train.hooks.energy import EnergyMeter
from tenfold.train.hooks.evaluate import evaluate, evaluate_images, tensors
from tenfold.train.hooks.goodput import GoodputTimer, read_goodput
from tenfold.train.hooks.health import (
    LOOK_EVERY,
    MOST_RETURNS,
    LossSpike,
    LossSpikeDetector,
    check_arithmetic,
    skip,
    skips,
    stragglers,
)
from tenfold.train.hooks.metrics import MetricsWriter
from tenfold.train.hooks.progress import TrainingProgress
from tenfold.train.hooks.signals import stop_on_signals
from tenfold.train.hooks.watchdog import Watchdog
from tenfold.train.initial_weights import build, give_shares
from tenfold.train.memory import peak_memory_bytes
from tenfold.train.one_gpu import StepSkipper, compile_blocks, recompute, use_document_blocks
from tenfold.train.optim.fp8 import use_fp8
from tenfold.train.optim.hyperparameters import Hyperparameters, derive
from tenfold.train.optim.optimizer import make_optimizers, set_learning_rate
from tenfold.train.optim.schedule import schedule
from tenfold.train.parallel.parallelize import (
    ParallelDims,
    ProcessLost,
    add_across_copies,
    clip_gradient,
    padded,
    parallelize,
    start_processes,
)
from tenfold.train.parallel.pipeline import micro_batch
from tenfold.train.precision import autocast, choose_dtype, peak_flops

EXPLODING = 30.0  # a gradient this many times the usual norm is skipped
PROBE_FIRST = 5
COMPILE_SECONDS = 40.0  # what compiling a model costs on two cores
COMPILE_GAIN = 0.2  # the share of a step that it saves on a CPU


@dataclass(frozen=True)
class RunResult:
    """What a run came to. `loss` is in nats per token of the validation text, `seconds` is training alone."""

    directory: Path
    finished: bool
    step: int
    loss: float
    bits_per_byte: float
    parameters: int
    tokens: int
    flops: float
    seconds: float
    tokens_per_s: float
    mfu: float
    energy_kwh: float
    energy_source: str
    peak_memory_gib: float
    skipped_steps: int


@dataclass
class _State:
    """What, beside weights and optimizer, a run carries from step to step (and through its checkpoints)."""

    step: int = 0
    seconds: float = 0.0
    energy_j: float = 0.0
    flops: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    usual_norm: float = 0.0
    usual_loss: float = 0.0
    losses_seen: int = 0


def train(
    config: RunConfig,
    corpus: Corpus | Mixture,
    directory: Path,
    *,
    title: str = "train",
    quiet: bool = False,
    keep_model: bool = True,
    notes: dict[str, Any] | None = None,
) -> RunResult:
    """`run_steps`, on as many processes as were started; one that is lost ends the others, with ProcessLost.

    `torchrun` then starts all again, and the run goes on from its last checkpoint, with fewer processes if it has to. A run
    whose loss leaves its course goes back by itself.
    """
    try:
        with Watchdog(config.hang_after_s) as watchdog:
            start_processes(config.hang_after_s)
            while True:
                try:
                    return run_steps(
                        config, corpus, directory, watchdog, title=title, quiet=quiet, keep_model=keep_model, notes=notes
                    )
                except LossSpike as left:
                    checkpoint.on_first_process(partial(_go_back, directory, config.upload_to, left))
    except RuntimeError as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if not dist.is_initialized() or not any(word in said.lower() for word in ("connection", "gloo", "nccl", "timed out")):
            raise
        raise ProcessLost(f"Another process of the run was lost ({said}): it goes on from its last checkpoint.") from None


def _go_back(directory: Path, uploaded_to: str | None, left: LossSpike) -> None:
    """Let the run begin again before its loss left its course, behind the batches that it had since."""
    if len(skips(directory)) >= MOST_RETURNS:
        raise TenfoldError(f"The loss left its course again (step {left.step}), after {MOST_RETURNS} returns: lower learning_rate.")
    step = checkpoint.go_back(directory / "checkpoint", left.before, uploaded_to)
    if step is None:
        raise TenfoldError(
            f"The loss left its course before step {left.step}, and there is no checkpoint of step {left.before} or earlier to go "
            "back to: lower learning_rate, look at the data there, or raise rollback_above."
        )
    skip(directory, step, left.step - step)


def run_steps(
    config: RunConfig,
    corpus: Corpus | Mixture,
    directory: Path,
    watchdog: Watchdog,
    *,
    title: str,
    quiet: bool,
    keep_model: bool,
    notes: dict[str, Any] | None,
) -> RunResult:
    """Train what `config` says in `directory`, going on from its newest good checkpoint if there is one.

    Writes `run.toml`, `run.jsonl`, `checkpoint/` and, when finished, `model/` in Hugging Face layout. Returns with
    `finished` False after SIGTERM or Ctrl-C, with a checkpoint saved. Raises TenfoldError for a corpus too small,
    a loss that is not a number, or a disk that is full. Without
    `keep_model` only the metrics stay when the run has finished. `notes` go into the first event of `run.jsonl`.
    """
    device, dtype, spec, tokens, h = _resolve(config, corpus)
    text_share = 1 - config.image_share if config.images else 1.0
    rows: dict[str, Any] = {"batch_size": h.batch_size, "seq_len": config.seq_len, "seed": config.seed}
    images = None
    if isinstance(corpus, Mixture):
        corpus.require_rows(h.steps, **rows, max_epochs=config.max_epochs)
    else:
        require_tokens(corpus, text_share * h.steps * h.batch_size * config.seq_len, config.max_epochs)
        if config.images is not None:
            checkpoint.on_first_process(lambda: _images(config, corpus, spec, directory.parent) and None)
        images = _images(config, corpus, spec, directory.parent)
    left_out = skips(directory)
    watchdog.beat()
    torch.manual_seed(config.seed)
    # On several processes a model is spread before it has weights; further heads and image encoders know no shares yet.
    in_shares = dist.is_initialized() and dist.get_world_size() > 1 and not config.ahead and spec.vision is None
    model = build(spec, config, corpus, torch.device("meta") if in_shares else device)
    recompute(model, config.recompute)
    watchdog.beat()
    place = parallelize(model, config.layout, device, config.seq_len, h.batch_size, dtype, config.micro_batch)
    if in_shares:
        give_shares(model, config.init_from, device)
    if device.type == "cuda" and place.alone:
        use_document_blocks(model, config.seq_len)
    # Every process keeps a record of its own; the first one's is the run's.
    record = directory if place.rank == 0 else directory / "ranks" / str(place.rank)
    record.mkdir(parents=True, exist_ok=True)
    write_config(config, record / "run.toml")
    fp8 = use_fp8(model, device, dtype) if config.fp8 else ""
    optimizers = make_optimizers(model, spec, h, config.optimizer)
    state = _State()
    watchdog.beat()
    saved = checkpoint.restore_latest(directory / "checkpoint", model, optimizers, config.upload_to)
    if saved is not None:
        state = _State(**saved["state"])
    watchdog.beat(state.step)
    course = LossSpikeDetector(config.rollback_above, state.usual_loss, state.losses_seen)
    flops_per_token = spec.train_flops_per_token(config.seq_len) + 6.0 * ahead_weights(spec, config.ahead)
    peak, peak_source = peak_flops(device, dtype)
    compiled = _compile(model, config, device, place, h.steps * h.batch_size * config.seq_len * flops_per_token / peak)
    late = device.type == "cuda" and config.optimizer == "adamw" and place.alone
    guard = StepSkipper(device, EXPLODING, state) if late else None
    meter = EnergyMeter()
    meter.start()

    with (
        MetricsWriter(
            record,
            tensorboard=config.tensorboard and place.rank == 0,
            wandb_project=config.wandb if place.rank == 0 else None,
            resume_step=None if saved is None else state.step,
        ) as metrics,
        TrainingProgress(h.steps, title, enabled=False if quiet or place.rank else None) as progress,
        stop_on_signals() as stop,
        GoodputTimer(directory / "time.jsonl" if place.rank == 0 else None, state.step) as clock,
        checkpoint.Saver(directory / "checkpoint", config.keep, config.upload_to) as saver,
        Prefetch(
            lambda step: _batch(config, corpus, images, step + sum(n for first, n in left_out if first <= step), rows),
            h.steps,
            ahead=AHEAD if corpus.is_remote else 0,
        ) as batches,
        autocast(device, dtype),
        fastest_attention(device),
    ):
        if saved is None:
            facts = _facts(config, corpus, spec, h, tokens, device, dtype, compiled, peak_source)
            facts |= {"fp8": fp8} if fp8 else {}
            metrics.write("start", **facts, **(notes or {}))
        else:
            metrics.write("resume", step=state.step, batches_left_out=sum(n for _, n in left_out))
        loads = [torch.zeros_like(layer.load) for layer in expert_layers(model)]
        last_save = last_log = time.monotonic()
        logged_step, energy_before = state.step, state.energy_j
        logged_flops, waited = state.flops, 0.0
        save_now = stopped = False
        while state.step < h.steps and not stopped:
            began = time.perf_counter()
            with clock.time("stepping"):
                batch = batches(state.step)
                waited += time.perf_counter() - began
                loss, norm = _step(model, optimizers, batch, config, h, state, device, place, guard)
                if guard is not None and ((state.step + 1) % config.log_every == 0 or state.step + 1 == h.steps):
                    loss, norm = float(loss), float(norm)
                    guard.read_into(state)
                    _stop_where_skipped(state, config, h, loss)
            state.seconds += time.perf_counter() - began
            state.step += 1
            watchdog.beat(state.step)
            state.flops += batch.tokens.size * flops_per_token + _tile_flops(spec, batch)
            if isinstance(loss, float) and config.rollback_above and course.left(loss):
                saver.finish()
                raise LossSpike(state.step)
            state.usual_loss, state.losses_seen = course.usual, course.seen
            _balance(model, config, state.step, h.steps, loads, place.stage_group)
            if not place.alone and state.step % LOOK_EVERY == 0:
                for slow in stragglers(waited / LOOK_EVERY, time.perf_counter() - began, device):
                    metrics.write("straggler", step=state.step, **slow)
                waited = 0.0
            if config.replay_every and state.step % config.replay_every == 0:
                check_arithmetic(partial(_loss_again, model, batch, h.batch_size, place, device), state.step)
            if state.step % config.log_every == 0 or state.step == h.steps:
                now = time.monotonic()
                rate = (state.step - logged_step) * h.batch_size * config.seq_len / (now - last_log)
                energy = meter.read()
                state.energy_j = energy_before + energy.joules
                mfu = (state.flops - logged_flops) / (now - last_log) / peak
                metrics.write(
                    "step", step=state.step, loss=loss, grad_norm=norm, tokens_per_s=rate, mfu=mfu, watts=energy.watts,
                    learning_rate=optimizers[0].param_groups[0]["lr"], tokens=state.step * h.batch_size * config.seq_len,
                    **router_statistics(loads), **_drawn(corpus, state.step, rows),
                )  # fmt: skip
                for load in loads:
                    load.zero_()
                progress.update(state.step, float(loss), rate, mfu, energy.watts)
                clock.write(state.step)
                last_log, logged_step, logged_flops = now, state.step, state.flops
            if config.evaluate_every and state.step % config.evaluate_every == 0 and state.step < h.steps:
                with clock.time("evaluating"):
                    nats, bits = evaluate(model, corpus, config, device, place, watchdog.beat)
                metrics.write("evaluation", step=state.step, loss=nats, bits_per_byte=bits)
                if images:
                    metrics.write("images", step=state.step, **evaluate_images(model, images, config, device, place))
                last_log, logged_step, logged_flops = time.monotonic(), state.step, state.flops
            due = time.monotonic() - last_save > config.checkpoint_every_s
            save_now, stopped = place.agree(due, stop.requested)
            if save_now:
                if guard is not None:
                    guard.read_into(state)
                clock.write(state.step)  # where a failure would come back to
                with clock.time("saving"):
                    saver.save(state.step, model, optimizers, {"state": asdict(state)})
                last_save = time.monotonic()
        finished = state.step >= h.steps
        if guard is not None:
            guard.read_into(state)
        if keep_model or not finished:
            clock.write(state.step)
            with clock.time("saving"):
                saver.save(state.step, model, optimizers, {"state": asdict(state)})
                saver.finish()
        if not finished:
            metrics.write("stopped", step=state.step)
            loss_nats, bits = math.nan, math.nan
        else:
            with clock.time("evaluating"):
                loss_nats, bits = evaluate(model, corpus, config, device, place, watchdog.beat)
            if images:
                metrics.write("images", step=state.step, **evaluate_images(model, images, config, device, place))
        watchdog.end()
        clock.write(state.step, finished)
        if place.rank == 0:
            metrics.write("goodput", step=state.step, **read_goodput(directory / "time.jsonl"))
        seen = state.step * h.batch_size * config.seq_len
        tokens_per_s = seen / state.seconds if state.seconds else 0.0
        result = RunResult(
            directory=directory,
            finished=finished,
            step=state.step,
            loss=loss_nats,
            bits_per_byte=bits,
            parameters=spec.parameters().matrix_active,
            tokens=seen,
            flops=state.flops,
            seconds=state.seconds,
            tokens_per_s=tokens_per_s,
            mfu=state.flops / state.seconds / peak if state.seconds else 0.0,
            energy_kwh=state.energy_j / 3.6e6,
            energy_source=meter.read().source,
            peak_memory_gib=peak_memory_bytes(device) / 2**30,
            skipped_steps=state.skipped,
        )
        if finished and not keep_model and place.rank == 0:
            shutil.rmtree(directory / "checkpoint", ignore_errors=True)
        if finished:
            if keep_model:
                source = images.directory if images else corpus.directory
                if place.alone:
                    write_model(model, directory / "model", tokenizer_directory=source)
                elif place.rank == 0:
                    newest = checkpoint.latest(directory / "checkpoint")
                    assert newest is not None
                    export_model(newest, spec, directory / "model", tokenizer_directory=source)
            metrics.write("end", **{**asdict(result), "directory": str(directory)})
    return result


def probe(config: RunConfig, corpus: Corpus, seconds: float) -> tuple[list[float], int, float, str]:
    """Train a throw-away copy for `seconds`. Returns seconds of each step, tokens a step, watts, and their source.

    The first steps, in which memory is laid out, are left out; at least twelve are taken.
    """
    device, dtype, spec, _, h = _resolve(config, corpus)
    torch.manual_seed(config.seed)
    model = build(spec, config, corpus, device)
    optimizers = make_optimizers(model, spec, h, config.optimizer)
    taken: list[float] = []
    state, meter = _State(), EnergyMeter()
    with autocast(device, dtype):
        while len(taken) < PROBE_FIRST + 12 or sum(taken) < seconds:
            if len(taken) == PROBE_FIRST:
                meter.start()
            began = time.perf_counter()
            batch = train_batch(corpus, len(taken), batch_size=h.batch_size, seq_len=config.seq_len, seed=config.seed)
            _step(model, optimizers, batch, config, h, state, device)
            taken.append(time.perf_counter() - began)
    return taken[PROBE_FIRST:], h.batch_size * config.seq_len, meter.read().watts, meter.source


def _resolve(
    config: RunConfig, corpus: Corpus | Mixture
) -> tuple[torch.device, torch.dtype, ModelSpec, int, Hyperparameters]:
    device = torch.device(_device(config.device))
    spec, tokens = resolve_model(config, corpus.vocab_size)
    dtype = choose_dtype(device, spec.dim) if config.dtype == "auto" else getattr(torch, config.dtype)
    h = derive(
        spec,
        tokens,
        config.seq_len,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        beta2=config.beta2,
    )
    return device, dtype, spec, tokens, h


def _images(config: RunConfig, corpus: Corpus, spec: ModelSpec, home: Path) -> ImageCorpus | None:
    if config.images is None:
        return None
    assert spec.vision is not None
    source = Path(config.images)
    name = f"images-{source.stem}-{spec.vision.image_size}-{spec.vision.tokens_per_tile}-{corpus.directory.name}"
    return build_images(source, home / name, corpus, spec.vision)


def _batch(
    config: RunConfig, corpus: Corpus | Mixture, images: ImageCorpus | None, step: int, rows: dict[str, Any]
) -> Batch:
    if isinstance(corpus, Mixture):
        return corpus.batch(step, **rows)
    if images is None:
        return train_batch(corpus, step, **rows)
    return mixed_batch(corpus, images, step, share=config.image_share, **rows)


def _drawn(corpus: Corpus | Mixture, step: int, rows: dict[str, Any]) -> dict[str, Any]:
    """Tokens that each source of a mixture has given before `step`."""
    if isinstance(corpus, Corpus):
        return {}
    drawn = corpus.drawn(step, rows["batch_size"], rows["seed"])
    return {"sources": {name: count * rows["seq_len"] for name, count in drawn.items()}}


def _tile_flops(spec: ModelSpec, batch: Batch) -> float:
    """Training FLOPs of the image encoder for a batch."""
    if batch.tiles is None or spec.vision is None:
        return 0.0
    return 3.0 * len(batch.tiles) * spec.vision.forward_flops_per_tile(spec.dim)


def _step(
    model: Llama, optimizers: list, batch: Batch, config: RunConfig, h: Hyperparameters, state: _State, device,
    place: ParallelDims = ParallelDims(), guard: StepSkipper | None = None,
) -> tuple[float | Tensor, float | Tensor]:
    """One optimizer step. Returns the mean loss in nats per target and the norm of the gradient.

    With `guard` both stay on the device, which decides by itself whether the step counts; `state` is then behind.
    """
    set_learning_rate(optimizers, schedule(config.schedule, state.step, h.steps, config.warmup, config.decay))
    targets_total = max(1, int((batch.targets >= 0).sum()))
    first, end, most = place.rows(h.batch_size)
    nats: Any = 0.0
    if place.pipeline is not None:
        micro = micro_batch(most, place.pipeline.processes, config.micro_batch)
        parts = -(-most // (micro * place.pipeline.processes)) * place.pipeline.processes
        tokens, targets, document, _ = tensors(batch, first, end, device)
        tokens, targets, document = _filled(tokens, targets, document, parts * micro)
        nats = place.pipeline.step(tokens, place.positions(targets), document, config.z_loss, micro, targets_total)
        nats, most = float(nats), 0
    micro = config.micro_batch or most
    for offset in range(0, most, micro or 1):
        start = first + offset
        tokens, targets, document, seen = tensors(batch, start, min(start + micro, end), device)
        tokens, targets, document = _filled(tokens, targets, document, min(micro, most - offset))
        if not place.alone:
            add_across_copies(model, offset + micro >= most)
        total, extra = model.loss(tokens, place.positions(targets), document, config.z_loss, **seen)
        ((total + extra) / targets_total).backward()
        nats += total.item() if guard is None else total.detach()
    if guard is not None:
        loss = nats / targets_total
        gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        guard.take(optimizers, loss, gradient_norm)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        return loss, gradient_norm
    loss = place.total(nats)[0] / targets_total
    norm = clip_gradient(model, config.clip, place)
    usual = state.usual_norm
    if math.isfinite(norm) and math.isfinite(loss) and not (state.step > 20 and norm > EXPLODING * usual):
        for optimizer in optimizers:
            optimizer.step()
        state.usual_norm = norm if usual == 0 else 0.95 * usual + 0.05 * norm
        state.skipped_in_a_row = 0
    else:
        state.skipped += 1
        state.skipped_in_a_row += 1
        _stop_where_skipped(state, config, h, loss)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    return loss, norm


def _loss_again(model: Llama, batch: Batch, rows: int, place: ParallelDims, device: torch.device) -> Tensor | float:
    """The sum of nats of the first of this process's `rows`."""
    first, _, _ = place.rows(rows)
    tokens, targets, document, seen = tensors(batch, first, first + 1, device)
    targets = place.positions(targets)
    if place.pipeline is not None:
        return place.pipeline.loss(tokens, targets, document)
    return model.loss(tokens, targets, document, 0.0, **seen)[0]


def _filled(tokens: Tensor, targets: Tensor, document: Tensor | None, rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """So many rows, the last of which may count for nothing."""
    if len(tokens) == rows:
        return tokens, targets, document
    return padded(tokens, rows, 0), padded(targets, rows, -100), None if document is None else padded(document, rows, 0)


def _stop_where_skipped(state: _State, config: RunConfig, h: Hyperparameters, loss: float) -> None:
    if state.skipped_in_a_row >= config.max_skipped:
        raise TenfoldError(
            f"The run stopped at step {state.step}: {state.skipped_in_a_row} steps in a row had a loss or gradient "
            f"that is not finite or exploded (last loss {loss:.4g}); lower learning_rate ({h.learning_rate:.3g})."
        )


def _balance(model: Llama, config: RunConfig, step: int, steps: int, loads: list[Tensor], group: Any) -> None:
    """After the step that made it `step` of `steps`: add the experts' loads to `loads`, and move their biases.

    The bias fades to nothing over the end of the run, as the learning rate does.
    """
    left, fade = steps - step, config.decay * steps
    if config.balance == "bias":
        balance_bias(model, config.balance_rate, keep=left / (left + 1) if left < fade else 1.0, group=group)
    for total, layer in zip(loads, expert_layers(model), strict=True):
        total += layer.load
        layer.load.zero_()


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TenfoldError("This machine has no CUDA GPU that PyTorch can use: say device = \"cpu\".")
    return name


def _compile(model: Llama, config: RunConfig, device: torch.device, place: ParallelDims, ideal_seconds: float) -> str:
    """Compile the blocks where it pays; returns what was done and why, in words."""
    if config.compile == "off":
        return "eager, as asked"
    if not place.alone:
        return "eager: the model lies on several processes"
    if device.type == "cpu":
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            return "eager: no C++ compiler was found"
        if config.compile == "auto" and 2 * ideal_seconds * COMPILE_GAIN < COMPILE_SECONDS:
            return "eager: the run is too short for compiling to pay"
    if device.type == "cuda":
        compile_blocks(model)
        return "compiled block by block"
    model.hidden = torch.compile(model.hidden)  # type: ignore[method-assign]
    return "compiled"


def _facts(
    config: RunConfig,
    corpus: Corpus | Mixture,
    spec: ModelSpec,
    h: Hyperparameters,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: str,
    peak_source: str,
) -> dict[str, Any]:
    return {
        "model": asdict(spec),
        "parameters": asdict(spec.parameters()),
        "tokens_planned": tokens,
        "flops_per_token": spec.train_flops_per_token(config.seq_len),
        "hyperparameters": asdict(h),
        "corpus": str(corpus.directory),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "compile": compiled,
        "mfu_of": peak_source,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def read_result(directory: Path) -> RunResult | None:
    """The result of a finished run in `directory`, or None."""
    path = directory / "run.jsonl"
    if not path.exists():
        return None
    for line in reversed(path.read_text().splitlines()):
        if line.startswith("{") and '"event": "end"' in line:
            fields = json.loads(line)
            return RunResult(**{k: fields[k] for k in RunResult.__dataclass_fields__ if k != "directory"}, directory=directory)
    return None
