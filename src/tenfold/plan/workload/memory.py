"""Bytes on the fullest GPU, by part: the first stage holds most micro-batches, the last one the scores of the vocabulary."""

import math

from tenfold.plan.workload.machine import Machine, Stack
from tenfold.plan.workload.step_time import gpu_weights
from tenfold.plan.workload.workload import GIB, Layout, Memory
from tenfold.spec.model import ModelSpec

MASTER_BYTES = 4.0  # fp32 copy of a weight, where the weight is not fp32 itself
MOMENT_BYTES = 8.0  # the two of Adam
SCORE_BYTES = 12.0  # bf16 scores, their fp32 copy, and the gradients of both
CHUNK_SCORE_BYTES, CHUNK_BYTES = 4.0, 2.0 * GIB  # in chunks: bf16 scores and gradients, of as many tokens as this holds
CONTEXT_GIB = 1.5  # CUDA context, NCCL and the allocator's slack
RESERVED = 0.03  # share of memory that the driver keeps


def activation_bytes(spec: ModelSpec, layout: Layout, expert: bool, stack: Stack) -> tuple[float, float]:
    """(kept until the backward pass, working set while it runs) of one layer and token, over all TP ranks, in bytes.

    Kept: without recompute everything that a gradient needs, with attention fused (no score matrix); `selective` keeps
    the results of matrix products (but for the share `products_again`) and attention alone; `full` keeps the layer's input,
    and, as the stack may, that of its parts.
    """
    queries, values = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    ffn = spec.ffn_dim
    dispatched = 0
    if expert:
        ffn = spec.expert_ffn_dim * (spec.n_shared_experts + spec.experts_per_token)
        dispatched = spec.experts_per_token * spec.dim
    width = 1.0 if layout.dtype == "fp8" else 2.0  # inputs of products are kept in their dtype
    results = 2.0 * (spec.dim + queries + 2 * values) + 4.0 * ffn  # of products
    products = (1 - stack.products_again) * results + width * queries + 2.0 * spec.dim + width * dispatched
    everything = (
        2.0 * (2 * spec.dim + queries + 2 * values) + width * (2 * spec.dim + queries + 2 * dispatched) + (6.0 + width) * ffn
    )
    full = 2.0 * spec.dim * (stack.kept_by_experts if expert else 1.0)
    return {"none": everything, "selective": products, "full": full}[layout.recompute], everything


def layer_weights(spec: ModelSpec, layout: Layout, stack: Stack) -> tuple[float, float, float]:
    """What a GPU holds of a layer's weights that all data parallel ranks share, of its routed experts, and of a table."""
    dense, expert = (weights / spec.n_layers for weights in gpu_weights(spec, layout.tp, layout.ep))
    expert *= layout.tp if layout.whole_experts else 1
    dense -= spec.parameters().embedding * (1 if spec.tied else 2) / layout.tp / spec.n_layers
    table = spec.vocab_size * spec.dim / layout.tp
    if stack.own_trainer:
        table *= layout.tp
        dense += shared_experts(spec) / spec.n_layers * (1 - 1 / layout.tp)
    return dense, expert, table


def shared_experts(spec: ModelSpec) -> int:
    """Weights of all shared experts."""
    return spec.n_expert_layers * spec.n_shared_experts * 3 * spec.dim * spec.expert_ffn_dim


def memory(spec: ModelSpec, layout: Layout, machine: Machine) -> Memory:
    """Memory of the fullest GPU. Sharding by data parallel ranks as `layout.zero` says; experts over `ep` first."""
    stack, layers = machine.stack, math.ceil(spec.n_layers / layout.pp)
    dense, expert, table = layer_weights(spec, layout, stack)
    tables = table * (1 if spec.tied or layout.pp > 1 else 2)
    own, routed = layers * dense + tables, layers * expert
    ranks = layout.shard or layout.replicas

    whole = stack.own_trainer and layout.pp > 1

    def held(bytes_each: float, from_zero: int) -> float:
        sharded = layout.zero >= from_zero or whole
        return bytes_each * (own / (ranks if sharded else 1) + routed / (layout.expert_ranks if sharded else 1))

    parameters = held(stack.weight_bytes, 3)
    gradients = stack.gradient_bytes * (own + routed) if whole else held(stack.gradient_bytes, 2)
    optimizer = held(MOMENT_BYTES + (MASTER_BYTES if stack.weight_bytes < MASTER_BYTES else 0.0), 1)
    gathered = 0.0
    if whole:
        gathered = 2.0 * (own + routed)
    elif layout.zero >= 3 and stack.own_trainer:  # both tables throughout, and a layer
        gathered = 2.0 * (tables + dense + expert)
    elif layout.zero >= 3:
        gathered = (2.0 + stack.gradient_bytes) * max(dense + expert, tables / 2) + 2.0 * (dense + expert)

    tokens = layout.micro_batch * math.ceil(layout.seq_len / layout.cp)
    routed_share = spec.n_expert_layers / spec.n_layers
    kept_dense, working_dense = activation_bytes(spec, layout, False, stack)
    kept_expert, working_expert = activation_bytes(spec, layout, True, stack) if routed_share else (0.0, 0.0)
    # without sequence parallel the residual stream is whole on every TP rank
    others = 2.0 * spec.dim * (1 - 1 / layout.tp)
    residual = 2 * others if not stack.sequence_parallel else 0.0
    inputs = others * (2 - routed_share) if stack.own_trainer else 0.0  # of attention and of dense feed-forwards
    kept = ((1 - routed_share) * kept_dense + routed_share * kept_expert) / layout.tp + residual
    kept += {"none": inputs, "selective": others * stack.own_trainer, "full": 0.0}[layout.recompute]
    working = max(working_dense, working_expert) / layout.tp + residual + inputs
    squares = 0.0
    if not stack.fused_attention:
        squares = 5.0 * spec.n_heads / layout.tp * layout.seq_len  # scores, probabilities and the dropout mask, per token
        kept += squares if layout.recompute == "none" else 0.0
    in_flight = float(min(layout.micro_batches, layout.pp))
    if layout.virtual_stages > 1:
        in_flight = min(layout.micro_batches, layout.pp * (1 + (layout.pp - 1) / (layout.pp * layout.virtual_stages)))
    first = in_flight * layers * kept * tokens
    if whole:  # hidden states and their gradients arrive where there is room for those of all micro-batches
        first += 2 * layout.micro_batches * layout.virtual_stages * 2.0 * spec.dim / layout.tp * tokens
    scores = SCORE_BYTES * tokens * spec.vocab_size / layout.tp
    again = 0.0
    if layout.recompute != "none":  # one layer is worked out again, with its gradients beside it
        again = ((working + squares) * 2 - (kept if layout.recompute == "selective" else 0.0)) * tokens
    if stack.own_trainer:
        # The fullest moment: in the loss, with the head's gradient in fp32 and what a chunk adds to it; in the last layer's
        # backward pass, with that gradient in bf16; at its end, when the layer's gradient stands in bf16 and in fp32, and the next
        # layer's weights are there; or when the tables' gradients are reduced in fp32.
        chunk = min(CHUNK_BYTES, CHUNK_SCORE_BYTES * tokens * spec.vocab_size / layout.tp)
        apart = layout.ep > 1 or (layout.tp > 1 and not layout.whole_experts)  # what divides experts gathers each of three stacks
        reduced = 0.0 if whole else (8.0 * max(dense, expert / 3) - 2.0 * expert if apart else 8.0 * (dense + expert))
        last = layers * kept * tokens + max(chunk + 6.0 * table, max(again, reduced) + 2.0 * table)
        activations = max(last, first + again if layout.pp > 1 else 0.0, 4.0 * tables)
    else:
        last = layers * kept * tokens + scores
        activations = (first if layout.pp > 1 and first > last else last) + again
    return Memory(
        parameters_gib=parameters / GIB,
        gradients_gib=gradients / GIB,
        optimizer_gib=optimizer / GIB,
        activations_gib=activations / GIB,
        buffers_gib=gathered / GIB + CONTEXT_GIB,
        capacity_gib=machine.accelerator.memory_gb * 1e9 * (1 - RESERVED) / GIB,
    )
