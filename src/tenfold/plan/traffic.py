"""Bytes that one GPU sends in an optimiser step, by what they are sent for: the volumes behind `step_time`'s seconds."""

import math

from tenfold.plan.machine import Machine
from tenfold.plan.step_time import gpu_weights
from tenfold.plan.workload import Layout
from tenfold.spec.model import ModelSpec


def traffic(spec: ModelSpec, layout: Layout, machine: Machine) -> dict[str, float]:
    """Bytes sent by a GPU of a middle stage for `tensor`, `context`, `expert`, `shard` and `replicate` parallel, with ring
    collectives, and even loads of the experts. Pipelines are not in it.

    A ring of n sends (n - 1) / n of what it gathers or reduces, an exchange the same share of what everyone has.
    """

    def ring(whole: float, ranks: int) -> float:
        return whole * (ranks - 1) / ranks

    layers = math.ceil(spec.n_layers / layout.pp)
    tokens = layout.micro_batch * math.ceil(layout.seq_len / layout.cp)
    passes = layout.micro_batches * layers
    ways = 3 if layout.recompute == "full" else 2  # forward, backward, and once more
    keys_values = 4.0 * layout.micro_batch * layout.seq_len * math.ceil(spec.n_kv_heads / layout.tp) * spec.head_dim
    exchanges = 4 * layout.micro_batches * math.ceil(spec.n_expert_layers / layout.pp)  # two ways, two passes
    dense, routed = (weights / layout.pp for weights in gpu_weights(spec, layout.tp, layout.ep))
    ranks = layout.shard or layout.replicas
    gathers = 2 * layout.micro_batches if layout.zero == 3 else 1
    reduces = layout.micro_batches if layout.zero >= 2 else 1
    gradient = machine.stack.gradient_bytes
    shared = ring(dense, ranks) + ring(routed, max(1, ranks // layout.ep))
    return {
        "tensor": passes * ways * 2 * 2 * ring(2.0 * tokens * spec.dim, layout.tp),
        "context": passes * (1 + ways) * ring(keys_values, layout.cp),
        "expert": exchanges * ring(2.0 * tokens * spec.experts_per_token * spec.dim, layout.ep),
        "shard": (gathers * 2.0 + reduces * gradient) * shared,
        "replicate": 2 * ring(gradient * (dense + routed * layout.ep) / ranks, layout.replicas // ranks),
    }
