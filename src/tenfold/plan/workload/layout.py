"""The search for the best layout: everything that divides, what fits, then the most tokens per second."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.memory import memory
from tenfold.plan.workload.step_time import step_time
from tenfold.plan.workload.workload import Layout, Memory, Recompute, StepTime
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
BATCH_MAY_CHANGE = 0.25  # how far the global batch may be rounded so that it divides


@dataclass(frozen=True)
class Candidate:
    """A layout that fits, its memory, its time, and (but for the best) why it loses."""

    layout: Layout
    memory: Memory
    step_time: StepTime
    tokens_per_s: float
    slower_pct: float = 0.0
    loses_by: str = ""


@dataclass(frozen=True)
class Search:
    """The best layout, the next nine, and what would have to be true for the second to win."""

    best: Candidate
    others: list[Candidate]
    second_wins_if: str
    tried: int
    fitted: int


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def layouts(
    spec: ModelSpec, gpus: int, machine: Machine, *, seq_len: int, global_batch: int, dtype: str = "bf16"
) -> Iterator[Layout]:
    """All layouts worth a look, without recompute chosen (`none`)."""
    domain = machine.constants.domain_gpus
    for tp in (1, 2, 4, 8, 16, 32):
        if tp > domain or spec.n_heads % tp or gpus % tp:
            continue
        for pp in divisors(gpus // tp):
            if pp > min(spec.n_layers, 64) or math.ceil(spec.n_layers / pp) * pp > 1.15 * spec.n_layers:
                continue
            for cp in (1, 2, 4, 8, 16, 32):
                rest = gpus // tp // pp
                if rest % cp or (cp > 1 and seq_len // cp < 2048):
                    continue
                dp = rest // cp
                if dp > global_batch * (1 + BATCH_MAY_CHANGE) or dp % machine.buildings:
                    continue
                yield from _batches(spec, Layout(tp, pp, cp, 1, dp, seq_len=seq_len, dtype=dtype), domain, global_batch)


def _batches(spec: ModelSpec, base: Layout, domain: int, global_batch: int) -> Iterator[Layout]:
    ranks = base.replicas
    experts = [e for e in divisors(spec.n_experts) if ranks % e == 0][-6:] if spec.n_experts else [1]
    stages = math.ceil(spec.n_layers / base.pp)
    virtual = [1] if base.pp == 1 else [v for v in (1, 2, stages // 2, stages) if v and stages % v == 0]
    for micro_batch in (1, 2, 4, 8, 16):
        unit = base.dp * micro_batch
        batch = max(1, round(global_batch / unit)) * unit
        if abs(batch / global_batch - 1) > BATCH_MAY_CHANGE:
            continue
        for ep in experts:
            for v in sorted(set(virtual)):
                layout = replace(base, ep=ep, micro_batch=micro_batch, global_batch=batch, virtual_stages=v)
                if base.pp > 1 and v > 1 and layout.micro_batches < base.pp:
                    continue
                yield replace(layout, zero=1)
                if base.pp == 1 and ranks > 1:
                    yield replace(layout, zero=3)
                    if ranks > domain and ranks % max(1, domain // base.tp) == 0 and domain > base.tp:
                        yield replace(layout, zero=3, shard=domain // base.tp)
                elif ranks > 1:
                    yield replace(layout, zero=2)


def least_recompute(spec: ModelSpec, layout: Layout, machine: Machine) -> tuple[Layout, Memory]:
    """The layout with as little recompute as fits; with all of it where nothing does."""
    for recompute in RECOMPUTE:
        chosen = replace(layout, recompute=recompute)
        needed = memory(spec, chosen, machine)
        if needed.fits:
            break
    return chosen, needed


def search(spec: ModelSpec, gpus: int, machine: Machine, *, seq_len: int, global_batch: int, dtype: str = "bf16") -> Search:
    """The fastest layouts of `spec` on `gpus`. Raises TenfoldError that says what binds where none fits."""
    machine.accelerator.peak_flops(dtype)
    tried, fitting, nearest_miss = 0, [], None
    for open_layout in layouts(spec, gpus, machine, seq_len=seq_len, global_batch=global_batch, dtype=dtype):
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
    """The first of those that differ by no more than recompute and what is sharded of the same parallel ranks."""
    first: dict[Layout, Candidate] = {}
    for candidate in candidates:
        zero = 3 if candidate.layout.zero == 3 else 1
        first.setdefault(replace(candidate.layout, recompute="none", zero=zero), candidate)
    return list(first.values())


def _per_token(candidate: Candidate) -> dict[str, float]:
    tokens = candidate.layout.tokens_per_step
    return {part: seconds / tokens for part, seconds in candidate.step_time.parts().items()}


def _against(best: Candidate, other: Candidate) -> Candidate:
    """The candidate with how much slower it is and the part that costs it most, at equal tokens."""
    tokens = best.layout.tokens_per_step
    mine, theirs = _per_token(best), _per_token(other)
    part = max(mine, key=lambda name: theirs[name] - mine[name])
    words = part.replace("_", " ")
    slower = 100 * (best.tokens_per_s / other.tokens_per_s - 1)
    reason = f"{words} +{tokens * (theirs[part] - mine[part]):.3g} s a step"
    return replace(other, slower_pct=slower, loses_by=reason)


LEVERS = {
    "tensor_parallel": "the scale-up network", "data_parallel": "the scale-out network", "pipeline": "the scale-out network",
    "expert_parallel": "the network between experts", "context_parallel": "the network of CP", "matmul": "its matrix products",
    "optimizer": "memory bandwidth", "recompute": "recomputation (or memory, to do without)", "bubble": "the pipeline's fill",
}  # fmt: skip


def _second_wins_if(best: Candidate, others: list[Candidate]) -> str:
    if not others:
        return "No other layout fits."
    second = others[0]
    mine, theirs = _per_token(best), _per_token(second)
    part = max(mine, key=lambda name: theirs[name] - mine[name])
    behind = sum(theirs.values()) - sum(mine.values())
    lever = LEVERS.get(part, part.replace("_", " "))
    if theirs[part] <= behind or behind <= 0:
        return f"{second.layout.words()} ties within {second.slower_pct:.2f} %: measure both."
    factor = theirs[part] / (theirs[part] - behind)
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
    """Which part of memory is short, by how much, and what would fix it."""
    state = needed.parameters_gib + needed.gradients_gib + needed.optimizer_gib
    if state > needed.activations_gib:
        binds = "its state binds"
        least = math.ceil(gpus * state / max(1.0, needed.capacity_gib - needed.buffers_gib - needed.activations_gib))
        fix = f"at least {least:,} GPUs, or parts with more memory"
    else:
        binds = "its activations bind"
        fix = "a shorter sequence, more context parallel ranks (more GPUs), or parts with more memory"
    return (
        f"{spec.name} does not fit on {gpus:,} x {machine.accelerator.name}: even {layout.words()} is short by "
        f"{needed.short_gib:.0f} GiB of {needed.capacity_gib:.0f} ({binds}); take {fix}."
    )
