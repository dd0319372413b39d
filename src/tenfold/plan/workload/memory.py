"""Memory of the fullest GPU by part: in a pipeline the first stage has the most micro-batches in flight, the last the logits."""

import math
from typing import NamedTuple

from tenfold.plan.workload.kernels import OPERAND_BYTES
from tenfold.plan.workload.machine import Machine, Stack
from tenfold.plan.workload.step_time import gpu_weights, micro_batches
from tenfold.plan.workload.workload import GIB, Memory
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec

MASTER_BYTES = 4.0  # fp32 copy of a weight, where the weight itself is not fp32
MOMENT_BYTES = 8.0  # two fp32 moments of Adam
CHUNK_SCORE_BYTES, CHUNK_BYTES = 4.0, 2.0 * GIB  # loss in chunks: bytes per logit (bf16, with its gradient), and those of a chunk
CONTEXT_GIB = 1.5  # CUDA context, NCCL and the allocator's slack
RESERVED = 0.03  # share of the memory that the driver keeps


def activation_bytes(spec: ModelSpec, layout: Layout, expert: bool, stack: Stack) -> tuple[float, float]:
    """(bytes kept until the backward pass, bytes in use while it runs) of one layer and token, over all TP ranks.

    `none` keeps everything that a gradient needs, with fused attention (no score matrix). `selective` keeps the results of
    attention and of the matrix products, less the share `products_again`. `full` keeps the layer's input, and in some stacks the
    inputs of its experts (`kept_by_experts`).
    """
    queries, values = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    ffn = spec.ffn_dim
    dispatched = 0
    if expert:
        ffn = spec.expert_ffn_dim * (spec.n_shared_experts + spec.experts_per_token)
        dispatched = spec.experts_per_token * spec.dim
    width = OPERAND_BYTES[layout.dtype]  # inputs of products are kept in the products' dtype
    # Bytes of a feed-forward: (results of its first products, all). GPT's is 1.5 times as wide as a gated one of as many weights.
    first, inside = (4.0 * ffn, (6.0 + width) * ffn) if stack.gated else (3.0 * ffn, 1.5 * (2.0 + width) * ffn)
    results = 2.0 * (spec.dim + queries + 2 * values) + first  # of all matrix products
    products = (1 - stack.products_again) * results + width * queries + 2.0 * spec.dim + width * dispatched
    everything = 2.0 * (2 * spec.dim + queries + 2 * values) + width * (2 * spec.dim + queries + 2 * dispatched) + inside
    full = 0.0 if stack.offloads else 2.0 * spec.dim * (stack.kept_by_experts if expert else 1.0)
    return {"none": everything, "selective": products, "full": full}[layout.activation_checkpointing], everything


class Weights(NamedTuple):
    """Weights on one GPU: of one layer without routed experts, of its routed experts, and of one table (embedding or head)."""

    dense: float
    experts: float
    table: float


def layer_weights(spec: ModelSpec, layout: Layout, stack: Stack) -> Weights:
    """The weights of one layer on a GPU, before they are sharded over data parallel ranks."""
    dense, experts = (weights / spec.n_layers for weights in gpu_weights(spec, layout.tp, layout.ep * layout.etp))
    dense -= spec.parameters().embedding * (1 if spec.tied else 2) / layout.tp / spec.n_layers
    table = spec.vocab_size * spec.dim / layout.tp
    if stack.own_trainer:
        table *= layout.tp
        dense += shared_experts(spec) / spec.n_layers * (1 - 1 / layout.tp)
    return Weights(dense, experts, table)


def shared_experts(spec: ModelSpec) -> int:
    """The number of weights of all shared experts."""
    return spec.n_expert_layers * spec.n_shared_experts * 3 * spec.dim * spec.expert_ffn_dim


class _Stage(NamedTuple):
    """The fullest stage of a pipeline, or the whole model without one; values are for one GPU.

    `dense` (with `tables`) and `experts` are its weights. `whole`: all weights stay gathered and their gradients whole during the
    step, as in a pipeline of Tenfold's trainer. `tokens` are those of a micro-batch. Bytes per layer and token: `kept` until the
    backward pass, `working` while it runs, and `squares` of attention scores where attention is not fused.
    """

    layers: int
    layer: Weights
    tables: float
    dense: float
    experts: float
    whole: bool
    tokens: int
    kept: float
    working: float
    squares: float


def _stage(spec: ModelSpec, layout: Layout, stack: Stack) -> _Stage:
    layers, layer = math.ceil(spec.n_layers / layout.pp), layer_weights(spec, layout, stack)
    tables = layer.table * (1 if spec.tied or layout.pp > 1 else 2)
    tp, mode, routed = layout.tp, layout.activation_checkpointing, spec.n_expert_layers / spec.n_layers
    kept_dense, working_dense = activation_bytes(spec, layout, False, stack)
    kept_expert, working_expert = activation_bytes(spec, layout, True, stack) if routed else (0.0, 0.0)
    others = 2.0 * spec.dim * (1 - 1 / tp)  # bytes of a hidden state that belong to the other tensor parallel ranks
    residual = 0.0 if stack.sequence_parallel else 2 * others  # without it, each rank has the whole residual stream
    inputs = others * (2 - routed) if stack.own_trainer else 0.0  # gathered inputs of attention and of dense feed-forwards
    squares = 0.0 if stack.fused_attention else 5.0 * spec.n_heads / tp * layout.seq_len  # scores, probabilities, dropout masks
    also_kept = {"none": inputs + squares, "selective": others * stack.own_trainer, "full": 0.0}[mode]
    return _Stage(
        layers=layers,
        layer=layer,
        tables=tables,
        dense=layers * layer.dense + tables,
        experts=layers * layer.experts,
        whole=stack.own_trainer and layout.pp > 1,
        tokens=layout.rows_together * math.ceil(layout.seq_len / layout.cp),
        kept=((1 - routed) * kept_dense + routed * kept_expert) / tp + residual + also_kept,
        working=max(working_dense, working_expert) / tp + residual + inputs,
        squares=squares,
    )


def _state(stage: _Stage, layout: Layout, bytes_each: float, from_zero: int) -> float:
    """Bytes of a state of `bytes_each` per weight, which is sharded from ZeRO stage `from_zero` on."""
    sharded = layout.zero >= from_zero or stage.whole
    ranks, expert_ranks = (layout.shards, layout.expert_shards) if sharded else (1, 1)
    return bytes_each * (stage.dense / ranks + stage.experts / expert_ranks)


def _gathered(stage: _Stage, layout: Layout, stack: Stack) -> float:
    """Bytes of gathered weights, and of gradients before their reduction, in addition to the sharded ones."""
    layer = stage.layer.dense + stage.layer.experts
    if stage.whole:
        return 2.0 * (stage.dense + stage.experts)
    if layout.zero < 3:
        return 0.0
    if stack.own_trainer:  # both tables during the whole step, and one layer
        return 2.0 * (stage.tables + layer)
    return (2.0 + stack.gradient_bytes) * max(layer, stage.tables / 2) + 2.0 * layer


def _first(spec: ModelSpec, layout: Layout, stack: Stack, stage: _Stage) -> float:
    """Bytes of activations of the first stage, which has the most micro-batches in flight."""
    parts, virtual = micro_batches(layout, stack), layout.stages_per_rank
    ahead = layout.pp if virtual == 1 else layout.pp * (1 + (layout.pp - 1) / (layout.pp * virtual))
    found = min(parts, ahead) * stage.layers * stage.kept * stage.tokens
    if stage.whole:  # hidden states and their gradients are received into buffers for all micro-batches
        found += 2 * parts * virtual * 2.0 * spec.dim / layout.tp * stage.tokens
    return found


def _activations(spec: ModelSpec, layout: Layout, stack: Stack, stage: _Stage) -> float:
    mode, layer = layout.activation_checkpointing, stage.layer
    kept = stage.layers * stage.kept * stage.tokens
    first = _first(spec, layout, stack, stage) if layout.pp > 1 else 0.0
    again = 0.0
    if mode != "none":  # one layer is recomputed, and its gradients are held at the same time
        again = ((stage.working + stage.squares) * 2 - (stage.kept if mode == "selective" else 0.0)) * stage.tokens
    scores = stage.tokens * spec.vocab_size / layout.tp
    if not stack.own_trainer:
        return max(first, kept + stack.score_bytes * scores) + again
    # The peak of memory is at one of four moments: in the loss, with the head's gradient in fp32 and that of a chunk; in the last
    # layer's backward pass, with the head's gradient in bf16; at the end of that pass, with the layer's gradient in bf16 and fp32
    # and the next layer's weights; or while the tables' gradients are reduced in fp32.
    reduced = 0.0 if stage.whole else 8.0 * (layer.dense + layer.experts)
    if not stage.whole and max(layout.ep, layout.etp) > 1:  # divided experts are gathered one of their three matrices at a time
        reduced = 8.0 * max(layer.dense, layer.experts / 3) - 2.0 * layer.experts
    chunk = min(CHUNK_BYTES, CHUNK_SCORE_BYTES * scores)
    last = kept + max(chunk + 6.0 * layer.table, max(again, reduced) + 2.0 * layer.table)
    return max(last, first + again if layout.pp > 1 else 0.0, 4.0 * stage.tables)


def memory(spec: ModelSpec, layout: Layout, machine: Machine) -> Memory:
    """The memory of the fullest GPU. `layout.zero` is the ZeRO stage of the sharding; experts are divided over `ep` first."""
    stack = machine.stack
    stage = _stage(spec, layout, stack)
    master = MASTER_BYTES if stack.weight_bytes < MASTER_BYTES else 0.0
    copies = 0.0 if layout.dtype == "bf16" else stack.weight_copies * OPERAND_BYTES[layout.dtype]
    each = stack.gradient_bytes
    gradients = each * (stage.dense + stage.experts) if stage.whole else _state(stage, layout, each, 2)
    return Memory(
        parameters_gib=_state(stage, layout, stack.weight_bytes + copies, 3) / GIB,
        gradients_gib=gradients / GIB,
        optimizer_gib=_state(stage, layout, MOMENT_BYTES + master, 1) / GIB,
        activations_gib=_activations(spec, layout, stack, stage) / GIB,
        buffers_gib=_gathered(stage, layout, stack) / GIB + CONTEXT_GIB + stack.graph_gib,
        capacity_gib=machine.accelerator.memory_gb * 1e9 * (1 - RESERVED) / GIB,
    )
