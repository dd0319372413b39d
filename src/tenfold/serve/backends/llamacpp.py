"""llama.cpp under the same engine: it computes, and this project schedules, draws and counts (`--backend llamacpp`).

llama.cpp keeps keys and values by sequence and finds their places itself, so that a block here only counts what a sequence
may hold. No prefix is shared, nothing is guessed, and hidden states (embeddings) are not to be had.
"""

import ctypes
import os
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.model.io.gguf import read_gguf
from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.engine import TOKEN_BUDGET, Engine
from tenfold.serve.engine.request import Request
from tenfold.serve.options import EngineOptions
from tenfold.serve.runners.runner import BLOCK, ModelInput, cache_block_bytes
from tenfold.spec.errors import TenfoldError

_MOST_SEQUENCES = 256  # that a context of llama.cpp can tell apart


class LlamaCppRunner:
    """A GGUF file in llama.cpp's own formats. The cache holds `n_blocks` blocks of tokens of all sequences together."""

    def __init__(self, options: EngineOptions, n_blocks: int, token_budget: int):
        import llama_cpp

        self._library: Any = llama_cpp
        self.spec, _ = read_gguf(options.path)
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        model = llama_cpp.llama_model_load_from_file(str(options.path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise TenfoldError(f"llama.cpp cannot read {options.path}.")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = n_blocks * BLOCK, token_budget, min(options.max_running, _MOST_SEQUENCES)
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = options.threads or len(os.sched_getaffinity(0))
        self._context = llama_cpp.llama_init_from_model(model, params)
        if self._context is None:
            raise TenfoldError(f"llama.cpp has no room for a cache of {n_blocks * BLOCK} tokens: allow less with --cache-gib.")
        self.weight_bytes = int(llama_cpp.llama_model_size(model))
        self._batch = llama_cpp.llama_batch_init(token_budget, 0, 1)
        self._free = list(range(params.n_seq_max))
        self._sequences: dict[int, int] = {}  # by the first block of each

    def hidden(self, rows: ModelInput) -> Tensor:
        """Logits [rows, vocab], of the last row of each sequence alone."""
        batch, vocab, at = self._batch, self.spec.vocab_size, 0
        for table, count in zip(rows.tables, rows.counts, strict=True):
            sequence = self._sequence_of(table)
            for i in range(at, at + count):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = rows.tokens[i], rows.positions[i], 1
                batch.seq_id[i][0], batch.logits[i] = sequence, i == at + count - 1
            at += count
        batch.n_tokens = at
        if failed := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode: {failed}")
        logits, end = torch.zeros(at, vocab), 0
        for count in rows.counts:
            end += count
            row = self._library.llama_get_logits_ith(self._context, end - 1)
            there = (ctypes.c_float * vocab).from_address(ctypes.addressof(row.contents))
            logits[end - 1] = torch.frombuffer(there, dtype=torch.float32)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def drop(self, first_block: int) -> None:
        """Forget the sequence whose first block this was."""
        if (sequence := self._sequences.pop(first_block, None)) is not None:
            self._library.llama_memory_seq_rm(self._library.llama_get_memory(self._context), sequence, -1, -1)
            self._free.append(sequence)

    def _sequence_of(self, table: Sequence[int]) -> int:
        if table[0] not in self._sequences:
            self._sequences[table[0]] = self._free.pop()
        return self._sequences[table[0]]


class _Counted(BlockManager):
    """Blocks of which each belongs to one sequence; the runner is told when that is over."""

    def __init__(self, n_blocks: int, runner: LlamaCppRunner):
        super().__init__(n_blocks, BLOCK)
        self._runner = runner

    def take_known(self, hashes: list[bytes]) -> "array[int]":
        return array("i")

    def publish(self, block: int, digest: bytes) -> None:
        pass

    def release(self, blocks: "array[int]") -> None:
        if blocks:
            self._runner.drop(blocks[0])
        super().release(blocks)


class LlamaCppEngine(Engine):
    """Continuous batching over llama.cpp."""

    def __init__(self, runner: LlamaCppRunner, n_blocks: int, **settings: Any):
        super().__init__(runner, n_blocks, **settings, speculate=False)
        self.blocks = self.scheduler.blocks = _Counted(n_blocks, runner)

    def add(self, request: Request) -> None:
        if request.embed:
            return self._refuse(request, "This server's engine, llama.cpp, makes no embeddings here.")
        return super().add(request)


def make_llamacpp_engine(options: EngineOptions) -> LlamaCppEngine:
    """An engine for a GGUF file. Raises TenfoldError where llama-cpp-python is missing or the file cannot be read."""
    if options.path.suffix != ".gguf":
        raise TenfoldError(f"llama.cpp reads GGUF files, and {options.path} is none: leave --backend out.")
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        raise TenfoldError("llama-cpp-python is not installed: `pip install llama-cpp-python`.") from None
    spec, _ = read_gguf(options.path)
    n_blocks = int(options.cache_gib * 2**30 / cache_block_bytes(spec, torch.float16))
    budget = options.token_budget or TOKEN_BUDGET["cpu"]
    running = min(options.max_running, _MOST_SEQUENCES)
    runner = LlamaCppRunner(options, n_blocks, budget)
    return LlamaCppEngine(runner, n_blocks, token_budget=budget, max_running=running, context=options.context)
