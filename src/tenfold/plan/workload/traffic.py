"""Bytes that one process of Tenfold's trainer sends in an optimizer step, by what they are sent for; a dry run counts the same."""

import math

from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.memory import layer_weights, shared_experts
from tenfold.plan.workload.workload import Layout
from tenfold.spec.model import ModelSpec

# Gathers and sums of a dense and of an expert layer over tensor parallel ranks, forward and backward. Where a layer is worked
# out again, the sum that ends it is not: nothing needs it. Experts see their tokens where these are.
TENSOR_PASSES = {"none": (8, 4), "selective": (9, 4), "full": (11, 5)}


def traffic(spec: ModelSpec, layout: Layout, machine: Machine) -> dict[str, float]:
    """Bytes sent by a GPU of a middle stage for `pipeline`, `tensor`, `context`, `expert`, `shard` and `replicate` parallel, with
    ring collectives, and even loads of the experts.

    A ring of n sends (n - 1) / n of what it gathers or reduces, an exchange the same share of what everyone has.
    """

    def ring(whole: float, ranks: int) -> float:
        return whole * (ranks - 1) / ranks

    layers, expert_layers = (math.ceil(n / layout.pp) for n in (spec.n_layers, spec.n_expert_layers))
    parts, ranks = layout.micro_batches, layout.shard or layout.replicas
    hidden = 2.0 * layout.micro_batch * math.ceil(layout.seq_len / layout.cp) * spec.dim
    keys_values = 4.0 * layout.micro_batch * layout.seq_len * math.ceil(spec.n_kv_heads / layout.tp) * spec.head_dim

    layer, expert, table = layer_weights(spec, layout, machine.stack)
    tables = table * {1: 1 if spec.tied else 2, 2: 1}.get(layout.pp, 0)
    dense, routed = layers * layer, layers * expert
    each_part = layout.pp == 1  # a pipeline gathers weights and sums gradients once a step
    gathers = parts if layout.zero == 3 and each_part else 1  # of the tables; of layers again in the backward pass
    again_in_backward = gathers if layout.zero == 3 and each_part else 0
    reduces = parts if layout.zero >= 2 and each_part else 1
    gradient = machine.stack.gradient_bytes
    # What is whole on tensor parallel ranks has gradients to sum over them, each rank its share.
    on_all = routed if layout.whole_experts and layout.ep == 1 else 0.0
    summed = 2 * gradient * (tables + shared_experts(spec) / layout.pp + on_all) / ranks

    sharded = ring(dense, ranks) + ring(routed, layout.expert_ranks)
    hops = {1: 0, 2: 2 * layout.virtual_stages - 1}.get(layout.pp, 2 * layout.virtual_stages)  # there, and gradients back
    twin = gradient * table / ranks if spec.tied and layout.pp == 2 else 0.0  # of a table that lies at both ends
    of_dense, of_expert = TENSOR_PASSES[layout.recompute]
    passes = (layers - expert_layers) * of_dense + expert_layers * of_expert
    ways = 3 if layout.recompute == "full" else 2  # forward, backward, and once more
    exchanging = layout.ep * (1 if layout.whole_experts else layout.tp)
    exchanges = expert_layers * (4 if layout.recompute == "none" else 6)
    return {
        "pipeline": parts * hops * hidden / layout.tp + twin,
        "tensor": parts * passes * ring(hidden, layout.tp) + ring(summed, layout.tp),
        "context": parts * layers * ways * ring(keys_values, layout.cp),
        "expert": parts * exchanges * ring(hidden / layout.tp * spec.experts_per_token, exchanging),
        "shard": (gathers * 2.0 + reduces * gradient) * (sharded + ring(tables, ranks)) + again_in_backward * 2.0 * sharded,
        "replicate": 2 * ring(gradient * ((dense + tables) / ranks + routed / layout.expert_ranks), layout.replicas // ranks),
    }
