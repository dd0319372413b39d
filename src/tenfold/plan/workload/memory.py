"""Bytes on the fullest GPU, by part: the first stage holds most micro-batches, the last one the scores of the vocabulary."""

import math
from dataclasses import dataclass
from functools import cached_property

from tenfold.plan.workload.machine import Machine, Stack
from tenfold.plan.workload.step_time import gpu_weights, micro_batches
from tenfold.plan.workload.workload import GIB, Memory
from tenfold.spec.layout import Layout
from tenfold.spec.model import ModelSpec

MASTER_BYTES = 4.0  # fp32 copy of a weight, where the weight is not fp32 itself
MOMENT_BYTES = 8.0  # the two of Adam
SCORE_BYTES = 12.0  # bf16 scores, their fp32 copy, and the gradients of both
CHUNK_SCORE_BYTES, CHUNK_BYTES = 4.0, 2.0 * GIB  # in chunks: bf16 scores and gradients, of as many tokens as this holds
CONTEXT_GIB = 1.5  # CUDA context, NCCL and the allocator's slack
RESERVED = 0.03  # share of memory that the driver keeps


def activation_bytes(spec: ModelSpec, layout: Layout, expert: bool, stack: Stack) -> tuple[float, float]:
    """(kept until the backward pass, working set while it runs) of one layer and token, over all TP ranks, in bytes.

    Kept: without recomputation everything that a gradient needs, with attention fused (no score matrix); `selective` keeps
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
    return {"none": everything, "selective": products, "full": full}[layout.activation_checkpointing], everything


@dataclass(frozen=True)
class Weights:
    """What a GPU holds of one layer's dense weights, of its routed experts, and of a table (embedding or head)."""

    dense: float
    experts: float
    table: float


def layer_weights(spec: ModelSpec, layout: Layout, stack: Stack) -> Weights:
    """The weights of one layer on a GPU, before data parallel ranks share them."""
    dense, experts = (weights / spec.n_layers for weights in gpu_weights(spec, layout.tp, layout.ep * layout.etp))
    dense -= spec.parameters().embedding * (1 if spec.tied else 2) / layout.tp / spec.n_layers
    table = spec.vocab_size * spec.dim / layout.tp
    if stack.own_trainer:
        table *= layout.tp
        dense += shared_experts(spec) / spec.n_layers * (1 - 1 / layout.tp)
    return Weights(dense, experts, table)


def shared_experts(spec: ModelSpec) -> int:
    """Weights of all shared experts."""
    return spec.n_expert_layers * spec.n_shared_experts * 3 * spec.dim * spec.expert_ffn_dim


@dataclass(frozen=True)
class _Stage:
    """The fullest stage of a pipeline, which is the whole model where there is none. All sizes are bytes on one GPU."""

    spec: ModelSpec
    layout: Layout
    stack: Stack

    @cached_property
    def layers(self) -> int:
        return math.ceil(self.spec.n_layers / self.layout.pp)

    @cached_property
    def layer(self) -> Weights:
        return layer_weights(self.spec, self.layout, self.stack)

    @cached_property
    def tables(self) -> float:
        """Weights of embedding and head."""
        return self.layer.table * (1 if self.spec.tied or self.layout.pp > 1 else 2)

    @cached_property
    def gathered_throughout(self) -> bool:
        """Whether all weights stay gathered, and their gradients whole, through the step: Tenfold's trainer in a pipeline."""
        return self.stack.own_trainer and self.layout.pp > 1

    @cached_property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.layout.rows_together * math.ceil(self.layout.seq_len / self.layout.cp)

    @cached_property
    def dense(self) -> float:
        return self.layers * self.layer.dense + self.tables

    @cached_property
    def experts(self) -> float:
        return self.layers * self.layer.experts

    def state(self, bytes_each: float, from_zero: int) -> float:
        """What a value of `bytes_each` for every weight takes, sharded from ZeRO stage `from_zero` on."""
        sharded = self.layout.zero >= from_zero or self.gathered_throughout
        dense_ranks, expert_ranks = (self.layout.shards, self.layout.expert_shards) if sharded else (1, 1)
        return bytes_each * (self.dense / dense_ranks + self.experts / expert_ranks)

    def gradients(self) -> float:
        if self.gathered_throughout:
            return self.stack.gradient_bytes * (self.dense + self.experts)
        return self.state(self.stack.gradient_bytes, 2)

    def gathered(self) -> float:
        """Weights (and gradients before they are reduced) that are whole beside the sharded ones."""
        layer, stack = self.layer.dense + self.layer.experts, self.stack
        if self.gathered_throughout:
            return 2.0 * (self.dense + self.experts)
        if self.layout.zero < 3:
            return 0.0
        if stack.own_trainer:  # both tables throughout, and a layer
            return 2.0 * (self.tables + layer)
        return (2.0 + stack.gradient_bytes) * max(layer, self.tables / 2) + 2.0 * layer

    @cached_property
    def others(self) -> float:
        """A token's hidden state, but for the part that is this tensor parallel rank's own."""
        return 2.0 * self.spec.dim * (1 - 1 / self.layout.tp)

    @cached_property
    def residual(self) -> float:
        """What a token's residual stream takes beyond its share: without sequence parallel it is whole on every TP rank."""
        return 0.0 if self.stack.sequence_parallel else 2 * self.others

    @cached_property
    def routed_share(self) -> float:
        return self.spec.n_expert_layers / self.spec.n_layers

    @cached_property
    def inputs(self) -> float:
        """Inputs of attention and of dense feed-forwards, kept as they were gathered over TP ranks."""
        return self.others * (2 - self.routed_share) if self.stack.own_trainer else 0.0

    @cached_property
    def squares(self) -> float:
        """Scores, probabilities and the dropout mask of a token, where attention is not fused."""
        return 0.0 if self.stack.fused_attention else 5.0 * self.spec.n_heads / self.layout.tp * self.layout.seq_len

    @cached_property
    def activations_of_token(self) -> tuple[float, float]:
        """(kept until the backward pass, working set while it runs) of a layer and token."""
        routed, tp, mode = self.routed_share, self.layout.tp, self.layout.activation_checkpointing
        kept_dense, working_dense = activation_bytes(self.spec, self.layout, False, self.stack)
        kept_expert, working_expert = activation_bytes(self.spec, self.layout, True, self.stack) if routed else (0.0, 0.0)
        kept = ((1 - routed) * kept_dense + routed * kept_expert) / tp + self.residual
        kept += {"none": self.inputs, "selective": self.others * self.stack.own_trainer, "full": 0.0}[mode]
        kept += self.squares if mode == "none" else 0.0
        return kept, max(working_dense, working_expert) / tp + self.residual + self.inputs

    def first_stage(self) -> float:
        """Activations of the first stage, which has most micro-batches in flight."""
        layout, parts = self.layout, micro_batches(self.layout, self.stack)
        virtual, in_flight = layout.stages_per_rank, float(min(parts, layout.pp))
        if virtual > 1:
            in_flight = min(parts, layout.pp * (1 + (layout.pp - 1) / (layout.pp * virtual)))
        found = in_flight * self.layers * self.activations_of_token[0] * self.tokens
        if self.gathered_throughout:  # hidden states and their gradients arrive where there is room for all micro-batches
            found += 2 * parts * virtual * 2.0 * self.spec.dim / layout.tp * self.tokens
        return found

    def again(self) -> float:
        """One layer that is worked out again, with its gradients beside it."""
        kept, working = self.activations_of_token
        mode = self.layout.activation_checkpointing
        if mode == "none":
            return 0.0
        return ((working + self.squares) * 2 - (kept if mode == "selective" else 0.0)) * self.tokens

    def activations(self) -> float:
        kept = self.layers * self.activations_of_token[0] * self.tokens
        first, again = self.first_stage() if self.layout.pp > 1 else 0.0, self.again()
        scores = self.tokens * self.spec.vocab_size / self.layout.tp
        if not self.stack.own_trainer:
            return max(first, kept + SCORE_BYTES * scores) + again
        # The fullest moment: in the loss, with the head's gradient in fp32 and what a chunk adds to it; in the last layer's
        # backward pass, with that gradient in bf16; at its end, when the layer's gradient stands in bf16 and in fp32, and the
        # next layer's weights are there; or when the tables' gradients are reduced in fp32.
        chunk = min(CHUNK_BYTES, CHUNK_SCORE_BYTES * scores)
        last = kept + max(chunk + 6.0 * self.layer.table, max(again, self._reduced()) + 2.0 * self.layer.table)
        return max(last, first + again if self.layout.pp > 1 else 0.0, 4.0 * self.tables)

    def _reduced(self) -> float:
        """A layer's gradients in bf16 and fp32 while they are reduced, with the next layer's weights."""
        dense, experts = self.layer.dense, self.layer.experts
        if self.gathered_throughout:
            return 0.0
        if self.layout.ep > 1 or self.layout.etp > 1:  # divided experts are gathered one of their three stacks at a time
            return 8.0 * max(dense, experts / 3) - 2.0 * experts
        return 8.0 * (dense + experts)


def memory(spec: ModelSpec, layout: Layout, machine: Machine) -> Memory:
    """Memory of the fullest GPU. Sharding by data parallel ranks as `layout.zero` says; experts over `ep` first."""
    stack = machine.stack
    stage = _Stage(spec, layout, stack)
    master = MASTER_BYTES if stack.weight_bytes < MASTER_BYTES else 0.0
    return Memory(
        parameters_gib=stage.state(stack.weight_bytes, 3) / GIB,
        gradients_gib=stage.gradients() / GIB,
        optimizer_gib=stage.state(MOMENT_BYTES + master, 1) / GIB,
        activations_gib=stage.activations() / GIB,
        buffers_gib=stage.gathered() / GIB + CONTEXT_GIB,
        capacity_gib=machine.accelerator.memory_gb * 1e9 * (1 - RESERVED) / GIB,
    )
