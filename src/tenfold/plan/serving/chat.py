"""The throughput of a replica of a chat model: the forward pass by the formulas of a training step, and the reads of the KV cache.

Sampling, scheduling and HTTP are taken to overlap with the model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from tenfold.plan.workload.kernels import OPERAND_BYTES, matmul_s, moved_s
from tenfold.plan.workload.layer_time import Part, layer_time
from tenfold.plan.workload.machine import Machine
from tenfold.plan.workload.step_time import layer_kinds
from tenfold.plan.workload.workload import GIB
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec
from tenfold.spec.ranges import Count, Positive

IN_USE = 0.9  # share of the memory: vLLM's default gpu_memory_utilization
LARGEST_BATCH = 2**14


@dataclass(frozen=True)
class ChatRequest:
    """The lengths of a chat request and its answer, and the latency limit."""

    prompt_tokens: Annotated[Count, Meta(description="Tokens of a chat request, with the conversation before it.")] = 1000
    answer_tokens: Annotated[Count, Meta(description="Tokens of an answer.")] = 300
    token_ms: Annotated[Positive, Meta(description="Milliseconds per output token of an answer, at most.")] = 50.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Replica:
    """One copy of the model, tensor parallel over `gpus`, with a `batch` of concurrent answers.

    `token_s` are the seconds between two tokens of an answer, including the prefill of other requests; `requests_per_s` are those
    of the replica, `memory_gib` is per GPU.
    """

    gpus: int
    batch: int
    dtype: str
    token_s: float
    requests_per_s: float
    memory_gib: float


def best_replica(spec: ModelSpec, machine: Machine, dtype: str, asked: ChatRequest) -> Replica:
    """The replica with the most requests per second and GPU that fits in memory and keeps the latency limit.

    Raises TenfoldError where there is none.
    """
    found = max(_replicas(spec, machine, dtype, asked), key=lambda r: r.requests_per_s / r.gpus, default=None)
    if found is None:
        raise TenfoldError(
            f"{spec.name} does not answer on up to {machine.constants.domain_gpus} x {machine.accelerator.name} within "
            f"{asked.token_ms:g} ms per token: allow more (--token-ms), or take a smaller model or accelerators with more memory."
        )
    return found


def _replicas(spec: ModelSpec, machine: Machine, dtype: str, asked: ChatRequest) -> Iterator[Replica]:
    weights, room = spec.parameters().total * OPERAND_BYTES[dtype], IN_USE * machine.accelerator.memory_gb * 1e9
    for gpus in (2**n for n in range(1 + int(math.log2(machine.constants.domain_gpus)))):
        if spec.n_heads % gpus:
            continue
        prompt_s = _pass_s(spec, machine, _part(spec, gpus, 1, asked.prompt_tokens, dtype), 0.0)
        cached = _cache_bytes(spec, dtype, gpus, asked.tokens)
        batch = 1
        while batch <= LARGEST_BATCH and (needed := weights / gpus + batch * cached) <= room:
            token_s = _token_s(spec, machine, dtype, gpus, batch, asked) + batch * prompt_s / asked.answer_tokens
            if token_s <= 1e-3 * asked.token_ms:
                yield Replica(gpus, batch, dtype, token_s, batch / asked.answer_tokens / token_s, needed / GIB)
            batch *= 2


def _token_s(spec: ModelSpec, machine: Machine, dtype: str, gpus: int, batch: int, asked: ChatRequest) -> float:
    """Seconds of a decoding step, which gives each of `batch` answers one token."""
    context = asked.prompt_tokens + asked.answer_tokens // 2
    return _pass_s(spec, machine, _part(spec, gpus, batch, 1, dtype), batch * _cache_bytes(spec, dtype, gpus, context))


def _part(spec: ModelSpec, gpus: int, rows: int, tokens: int, dtype: str) -> Part:
    """The division of a layer over a replica: tensor parallel, with whole experts where their number divides by the GPUs."""
    ep = gpus if spec.n_experts and spec.n_experts % gpus == 0 else 1
    return Part(tp=gpus, cp=1, ep=ep, etp=1 if ep > 1 else gpus, rows=rows, seq_len=tokens, dtype=dtype)


def _pass_s(spec: ModelSpec, machine: Machine, part: Part, cached: float) -> float:
    """Seconds of a forward pass that reads `cached` bytes of keys and values, and of the head on the last token of each row."""
    total = moved_s(cached, machine, 0) + matmul_s(part.rows, math.ceil(spec.vocab_size / part.tp), spec.dim, machine)
    for kind, count in layer_kinds(spec, part.seq_len):
        t = layer_time(spec, kind, part, machine)
        total += count * (t.forward_s + t.tensor_parallel.forward + t.expert_parallel.forward)
    return total


def _cache_bytes(spec: ModelSpec, dtype: str, gpus: int, tokens: int) -> float:
    """Bytes of the KV cache of `tokens` tokens on one GPU; in 8 bits where the weights have 8 bits or fewer."""
    near = min(tokens, spec.attention_chunk or tokens)  # tokens kept by layers that attend within chunks
    kept = sum(near if spec.is_local(layer) else tokens for layer in range(spec.n_layers))
    return 2.0 * kept * math.ceil(spec.n_kv_heads / gpus) * spec.head_dim * max(1.0, OPERAND_BYTES[dtype])
