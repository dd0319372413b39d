"""Bytes that one process of Tenfold's trainer sends in an optimizer step, by dimension of the layout; a dry run counts the same."""

import math

from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.memory import layer_weights, shared_experts
from tenfold.plan.workload.step_time import micro_batches
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec

# Collectives over tensor parallel ranks of a layer (without experts, with experts), forward and backward, by activation
# checkpointing. Recomputation leaves out the layer's last reduction, whose result it does not need. Experts need no collective.
TENSOR_PASSES = {"none": (8, 4), "selective": (9, 4), "full": (11, 5)}


def traffic(spec: ModelSpec, layout: Layout, machine: Machine) -> dict[str, float]:
    """Bytes sent by a GPU of a middle stage for each dimension of the layout, with ring collectives and evenly loaded experts.

    In a ring of n ranks each sends (n - 1) / n of the bytes that are gathered or reduced; in an all-to-all, of its own bytes.
    """

    def ring(whole: float, ranks: int) -> float:
        return whole * (ranks - 1) / ranks

    layers, expert_layers = (math.ceil(n / layout.pp) for n in (spec.n_layers, spec.n_expert_layers))
    parts, ranks, mode = micro_batches(layout, machine.stack), layout.shards, layout.activation_checkpointing
    hidden = 2.0 * layout.rows_together * math.ceil(layout.seq_len / layout.cp) * spec.dim
    keys_values = 4.0 * layout.rows_together * layout.seq_len * math.ceil(spec.n_kv_heads / layout.tp) * spec.head_dim

    weights = layer_weights(spec, layout, machine.stack)
    tables = weights.table * {1: 1 if spec.tied else 2, 2: 1}.get(layout.pp, 0)
    dense, routed = layers * weights.dense, layers * weights.experts
    each_part = layout.pp == 1  # for each micro-batch; a pipeline gathers weights and reduces gradients once per step
    gathers = parts if layout.zero == 3 and each_part else 1  # of tables and layers; layers are gathered again in the backward pass
    again_in_backward = gathers if layout.zero == 3 and each_part else 0
    reduces = parts if layout.zero >= 2 and each_part else 1
    gradient = machine.stack.gradient_bytes
    # The gradients of weights that are whole on each tensor parallel rank are summed over these ranks, each rank its shard.
    on_all = routed if layout.etp < layout.tp and layout.ep == 1 else 0.0
    summed = 2 * gradient * (tables + shared_experts(spec) / layout.pp + on_all) / ranks

    sharded = ring(dense, ranks) + ring(routed, layout.expert_shards)
    stages = layout.stages_per_rank
    hops = {1: 0, 2: 2 * stages - 1}.get(layout.pp, 2 * stages)  # hidden states forward, gradients back
    twin = gradient * weights.table / ranks if spec.tied and layout.pp == 2 else 0.0  # gradient of a tied table on both end stages
    of_dense, of_expert = TENSOR_PASSES[mode]
    passes = (layers - expert_layers) * of_dense + expert_layers * of_expert
    ways = 3 if mode == "full" else 2  # forward, backward, and recomputation
    exchanges = expert_layers * (4 if mode == "none" else 6)
    return {
        "pp": parts * hops * hidden / layout.tp + twin,
        "tp": parts * passes * ring(hidden, layout.tp) + ring(summed, layout.tp),
        "cp": parts * layers * ways * ring(keys_values, layout.cp),
        "ep": parts * exchanges * ring(hidden / layout.tp * spec.experts_per_token, layout.ep * layout.etp),
        "dp_shard": (gathers * 2.0 + reduces * gradient) * (sharded + ring(tables, ranks)) + again_in_backward * 2.0 * sharded,
        "dp_replicate": 2 * ring(gradient * ((dense + tables) / ranks + routed / layout.expert_shards), layout.dp_replicate),
    }
