"""Probe: train a throw-away copy of a run for a short time, to measure its speed before it is forecast."""

import time

import torch

from tenfold.spec.threads import watch_others
from tenfold.train.activation_checkpointing import checkpoint_activations
from tenfold.train.checkpoint import copy_state
from tenfold.train.config import RunConfig
from tenfold.train.energy import EnergyMeter
from tenfold.train.initial_weights import build
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.precision import autocast
from tenfold.train.resolve import resolve
from tenfold.train.skipper import HostStepSkipper
from tenfold.train.start import layout_of, use_threads
from tenfold.train.state import RunState
from tenfold.train.step import Step
from tenfold.train.task import Task

FIRST = 5  # warm-up steps, in which memory is allocated
LEAST = 12  # fewest measured steps


def probe(
    task: Task, config: RunConfig, seconds: float, *, first: int = FIRST, least: int = LEAST
) -> tuple[list[float], int, float, str, float]:
    """Train a copy of the run on one process for at least `seconds`.

    Returns: the seconds of each step, tokens per step, mean watts, the source of the watts, and the share of the machine's cores
    that other processes used meanwhile. The `first` steps are not counted; at least `least` steps are.
    """
    r = resolve(config, task.vocab_size)
    use_threads(config, r.spec.dim)
    torch.manual_seed(config.seed)
    model = build(r.spec, config.init_from, r.device)
    task.prepare(model)
    layout = layout_of(config)
    checkpoint_activations(model, layout.activation_checkpointing)
    optimizers = make_optimizers(model, r.spec, r.h, config.optimizer.name)
    state = RunState()
    skipper = HostStepSkipper(state, config.optimizer.max_skipped)
    step = Step(task, model, optimizers, skipper, r.h, config.optimizer, r.device, micro_batch=layout.micro_batch)
    taken: list[float] = []
    meter, others = EnergyMeter(), watch_others()
    with autocast(r.device, r.dtype):
        while len(taken) < first + least or sum(taken) < seconds:
            if len(taken) == first:
                meter.start()
            began = time.perf_counter()
            rows = task.rows(state.step, slice(0, r.h.batch_size))
            step(rows, state.step, rows.weight())
            state.step += 1
            taken.append(time.perf_counter() - began)
    if r.device.type == "cpu":  # where the copy that a checkpoint is written from is in the same memory
        copy_state(model, optimizers)
    return taken[first:], r.h.batch_size * config.data.seq_len, meter.read().watts, meter.source, others()
