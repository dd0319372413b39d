"""The search for the best layout: of those that can be built and fit in memory, the one with the most tokens per second."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.step_time import pass_s, step_time
from tenfold.plan.workload.workload import Memory, StepTime
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import ActivationCheckpointing, Layout, check, check_trainer
from tenfold.spec.model import ModelSpec

RECOMPUTE: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")
TENSOR = CONTEXT = (1, 2, 4, 8, 16, 32)
MICRO_BATCHES = (1, 2, 4, 8, 16)
LEAST_CONTEXT = 2048  # least tokens of a sequence per context parallel rank
BATCH_MAY_CHANGE = 0.25  # largest relative change of the global batch, so that it divides over the ranks
MOST_IDLE = 1.3  # largest ratio of the layers in a full stage to the mean over stages


@dataclass(frozen=True)
class Candidate:
    """A layout that fits, its memory and its time; for all but the best, how much slower it is and why (`loses_by`)."""

    layout: Layout
    memory: Memory
    step_time: StepTime
    tokens_per_s: float
    slower_pct: float = 0.0
    loses_by: str = ""


@dataclass(frozen=True)
class Search:
    """The best layout, up to nine of the next, a sentence on what would make the second win, and how many were tried and fit."""

    best: Candidate
    others: list[Candidate]
    second_wins_if: str
    tried: int
    fitted: int


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def layouts(spec: ModelSpec, gpus: int, machine: Machine, asked: Layout) -> Iterator[Layout]:
    """The candidate layouts that can be built, without activation checkpointing; `asked` gives batch, seq_len and dtype."""
    for base in _meshes(spec, gpus, machine, asked):
        for sharded in _shardings(spec, base, machine):
            for layout in _batches(spec, sharded, asked.global_batch):
                if not (check_trainer if machine.stack.own_trainer else check)(layout, spec):
                    yield layout


def _meshes(spec: ModelSpec, gpus: int, machine: Machine, asked: Layout) -> Iterator[Layout]:
    """Divisions of the GPUs into tensor, pipeline, context and data parallel ranks."""
    for tp in TENSOR:
        if tp > machine.constants.domain_gpus or spec.n_heads % tp or gpus % tp:
            continue
        for pp in divisors(gpus // tp):
            if pp > min(spec.n_layers, 64) or math.ceil(spec.n_layers / pp) * pp > MOST_IDLE * spec.n_layers:
                continue
            for cp in CONTEXT:
                rest = gpus // tp // pp
                if rest % cp or (cp > 1 and asked.seq_len // cp < LEAST_CONTEXT):
                    continue
                dp = rest // cp
                if dp <= asked.global_batch * (1 + BATCH_MAY_CHANGE) and dp % machine.buildings == 0:
                    yield asked.replace(tp=tp, pp=pp, cp=cp, dp_shard=dp, micro_batch=1, global_batch=dp)


def _shardings(spec: ModelSpec, base: Layout, machine: Machine) -> Iterator[Layout]:
    """For a mesh, the choices of ZeRO stage, of shards and replicas, and of expert parallel ranks."""
    dp, domain, own = base.dp, machine.constants.domain_gpus, machine.stack.own_trainer
    shards = [dp]
    if own and base.tp > 1:  # matrices divided over both TP and FSDP ranks must divide evenly
        shards = [max(d for d in divisors(dp) if spec.dim % (d * base.cp) == 0 or d == 1)]
    inside = domain // (base.tp * base.cp)
    if base.pp == 1 and 1 < inside < shards[0] and dp % inside == 0:
        shards.append(inside)
    zeros = (3,) if own else (1, 3) if base.pp == 1 else (1, 2)
    for shard in shards:
        for zero in zeros if dp * base.cp > 1 else zeros[:1]:
            if shard == dp or zero == 3:
                layout = base.replace(dp_shard=shard, dp_replicate=dp // shard, zero=zero, etp=1 if own else base.tp)
                ranks = layout.shards * (base.tp if own else 1)
                for ep in [e for e in divisors(spec.n_experts) if ranks % e == 0][-6:] if spec.n_experts else [1]:
                    yield layout.replace(ep=ep)


def _batches(spec: ModelSpec, base: Layout, global_batch: int) -> Iterator[Layout]:
    """For a sharding, the choices of micro-batch and virtual stages, with the global batch rounded to a multiple."""
    stages = math.ceil(spec.n_layers / base.pp)
    virtual = [1] if base.pp == 1 else sorted({v for v in (1, 2, stages // 2, stages) if v and stages % v == 0})
    for micro_batch, fill in product(MICRO_BATCHES, {1, base.pp}):  # also a multiple of PP micro-batches, which fill a pipeline
        unit = base.dp * micro_batch * fill
        batch = max(1, round(global_batch / unit)) * unit
        if abs(batch / global_batch - 1) > BATCH_MAY_CHANGE:
            continue
        for v in virtual:
            schedule: Any = "interleaved" if v > 1 else "1f1b"
            layout = base.replace(micro_batch=micro_batch, global_batch=batch, virtual_stages=v, schedule=schedule)
            if v == 1 or layout.micro_batches >= base.pp:
                yield layout


def least_recompute(spec: ModelSpec, layout: Layout, machine: Machine) -> tuple[Layout, Memory]:
    """The layout with as little activation checkpointing as fits in memory (`full` where none fits), and its memory."""
    for recompute in RECOMPUTE:
        chosen = layout.replace(activation_checkpointing=recompute)
        needed = memory(spec, chosen, machine)
        if needed.fits:
            break
    return chosen, needed


@lru_cache(maxsize=256)
def fastest_pass(spec: ModelSpec, machine: Machine, seq_len: int, global_batch: int, dtype: str) -> float:
    """An upper bound of the tokens per second and GPU: the fastest division of a layer, without bubble or data parallel traffic."""
    asked, best = Layout(seq_len=seq_len, global_batch=global_batch, dtype=dtype), 0.0
    experts = divisors(spec.n_experts) if spec.n_experts else [1]
    for tp, cp, ep, micro_batch in product(TENSOR, CONTEXT, experts, MICRO_BATCHES):
        if tp > machine.constants.domain_gpus or spec.n_heads % tp or (cp > 1 and seq_len // cp < LEAST_CONTEXT):
            continue
        layout = asked.replace(tp=tp, cp=cp, ep=ep, etp=1 if machine.stack.own_trainer else tp, micro_batch=micro_batch)
        best = max(best, micro_batch * seq_len / (tp * cp * pass_s(spec, layout, machine)))
    return best


@lru_cache(maxsize=4096)
def search(spec: ModelSpec, gpus: int, machine: Machine, *, seq_len: int, global_batch: int, dtype: str = "bf16") -> Search:
    """The fastest layouts of `spec` on exactly `gpus` GPUs.

    Raises TenfoldError where no layout divides the GPUs and the batch, where none fits (with what is short), and where the
    accelerator does not compute in `dtype`.
    """
    machine.accelerator.peak_flops(dtype)  # raises where the accelerator has no rate for it
    tried, fitting, nearest_miss = 0, [], None
    for open_layout in layouts(spec, gpus, machine, Layout(seq_len=seq_len, global_batch=global_batch, dtype=dtype)):
        tried += 1
        layout, needed = least_recompute(spec, open_layout, machine)
        if needed.fits:
            fitting.append((layout, needed))
        elif nearest_miss is None or needed.short_gib < nearest_miss[1].short_gib:
            nearest_miss = (layout, needed)
    if not tried:
        raise TenfoldError(
            f"{gpus:,} GPUs cannot share a batch of {global_batch:,} sequences: no TP x PP x CP x DP of {spec.name} divides both; "
            f"{_what_divides(gpus, machine, global_batch)}."
        )
    if not fitting:
        assert nearest_miss is not None
        raise TenfoldError(_what_binds(spec, gpus, machine, *nearest_miss))
    timed = []
    for layout, needed in fitting:
        t = step_time(spec, layout, machine)
        timed.append(Candidate(layout, needed, t, layout.tokens_per_step / t.total_s))
    timed.sort(key=lambda c: -c.tokens_per_s)
    best = timed[0]
    others = [_against(best, other) for other in _different(timed)[1:10]]
    return Search(best, others, _second_wins_if(best, others), tried, len(fitting))


def _different(candidates: list[Candidate]) -> list[Candidate]:
    """The first candidate of each kind; layouts of a kind divide the model and its experts over the same ranks."""
    first: dict[tuple[Any, ...], Candidate] = {}
    for candidate in candidates:
        lay = candidate.layout
        first.setdefault((lay.tp, lay.pp, lay.cp, lay.ep, lay.dp_replicate > 1), candidate)
    return list(first.values())


def _more_than(best: Candidate, other: Candidate) -> dict[str, float]:
    """By how many seconds each part of a step of `other` is longer, for the tokens of the best layout's step."""
    scale = best.layout.tokens_per_step / other.layout.tokens_per_step
    mine, theirs = best.step_time.parts(), other.step_time.parts()
    return {name: theirs[name] * scale - mine[name] for name in mine}


def _against(best: Candidate, other: Candidate) -> Candidate:
    """The candidate with how much slower it is, the part of a step in which it loses most, and that in which it gains most."""
    more = _more_than(best, other)
    worst, least = max(more, key=more.__getitem__), min(more, key=more.__getitem__)
    reason = f"{worst.replace('_', ' ')} +{more[worst]:.3g} s"
    if more[least] < -0.001 * best.step_time.total_s:
        reason += f", {least.replace('_', ' ')} -{-more[least]:.3g} s"
    return replace(other, slower_pct=100 * (best.tokens_per_s / other.tokens_per_s - 1), loses_by=f"{reason} per step")


LEVERS = {
    "tensor_parallel": "the scale-up network", "data_parallel": "the scale-out network", "pipeline": "the scale-out network",
    "expert_parallel": "the network between experts", "context_parallel": "the network of CP", "matmul": "its matrix products",
    "optimizer": "memory bandwidth", "recompute": "recomputation", "bubble": "the filling of the pipeline",
}  # fmt: skip


def _second_wins_if(best: Candidate, others: list[Candidate]) -> str:
    if not others:
        return "No other layout fits."
    second = others[0]
    more = _more_than(best, second)
    part = max(more, key=more.__getitem__)
    seconds = more[part] + best.step_time.parts()[part]
    behind = best.step_time.total_s * second.slower_pct / 100
    if seconds <= behind or behind <= 0:
        return f"{second.layout.words()} ties within {second.slower_pct:.2f} %: measure both."
    lever, factor = LEVERS.get(part, part.replace("_", " ")), seconds / (seconds - behind)
    return f"{second.layout.words()} would win if {lever} were {factor:.2f} times as fast for it."


def _what_divides(gpus: int, machine: Machine, global_batch: int) -> str:
    domain, buildings = machine.constants.domain_gpus, machine.buildings
    if buildings > 1:
        return f"take a multiple of {domain * buildings} GPUs, so that each of {buildings} buildings holds whole replicas"
    if gpus > domain and gpus % domain:
        return f"take {gpus // domain * domain:,}, whole servers of {domain}"
    most = int(global_batch * (1 + BATCH_MAY_CHANGE))
    return f"take a number with more divisors, or a larger --global-batch (at most {most:,} data parallel ranks share it)"


def _what_binds(spec: ModelSpec, gpus: int, machine: Machine, layout: Layout, needed: Memory) -> str:
    """A sentence on which part of the memory is too large, by how much, and what to do."""
    state = needed.parameters_gib + needed.gradients_gib + needed.optimizer_gib
    if state > needed.activations_gib:
        largest = "most of it for weights, gradients and optimizer"
        fix = "more GPUs, or accelerators with more memory"
    else:
        largest = "most of it for activations"
        fix = "a shorter sequence, more context parallel ranks (more GPUs), or accelerators with more memory"
    return (
        f"{spec.name} does not fit on {gpus:,} x {machine.accelerator.name}: even {layout.words()} needs "
        f"{needed.short_gib:.0f} GiB more than the {needed.capacity_gib:.0f} GiB of a GPU, {largest}; take {fix}."
    )
