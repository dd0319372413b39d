"""llama.cpp as a backend (`--backend llamacpp`): it computes logits, and Tenfold's engine schedules, draws and counts.

llama.cpp manages its KV cache itself, by sequence, so a block only counts tokens that a sequence may hold. There is no prefix
cache and no speculation; llama.cpp gives no hidden states here, so there are no embeddings and no scores.
"""

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.model.io.gguf import read_gguf
from tenfold.serve.backends.tenfold import EngineProcess
from tenfold.serve.engine.blocks import BlockManager
from tenfold.serve.engine.build import MAX_NUM_BATCHED_TOKENS
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.options import EngineOptions
from tenfold.serve.request import Request
from tenfold.serve.runners.runner import BLOCK, ModelInput, cache_blocks
from tenfold.spec.errors import NotInstalled, TenfoldError
from tenfold.spec.threads import available_cores

_MAX_NUM_SEQS = 256  # the limit of a llama.cpp context


class LlamaCppRunner:
    """A `Runner` of a GGUF file by llama.cpp, in the file's own formats. The cache holds `n_blocks` blocks for all sequences.

    Raises TenfoldError if llama.cpp cannot read the file, or allocate the cache.
    """

    def __init__(self, options: EngineOptions, n_blocks: int, config: SchedulerConfig):
        import llama_cpp

        self._library: Any = llama_cpp
        self.spec, _ = read_gguf(options.path)
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        model = llama_cpp.llama_model_load_from_file(str(options.path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise TenfoldError(f"llama.cpp cannot read {options.path}: leave --backend out, or use a GGUF file that it supports.")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = n_blocks * BLOCK, config.max_num_batched_tokens, config.max_num_seqs
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = options.threads or available_cores()
        self._context = llama_cpp.llama_init_from_model(model, params)
        if self._context is None:
            raise TenfoldError(f"llama.cpp has no room for a cache of {n_blocks * BLOCK} tokens: allow less with --kv-cache-gib.")
        self.weight_bytes = int(llama_cpp.llama_model_size(model))
        self._batch = llama_cpp.llama_batch_init(config.max_num_batched_tokens, 0, 1)
        self._free = list(range(params.n_seq_max))
        self._sequences: dict[int, int] = {}  # llama.cpp's sequence numbers by the first block of each sequence

    def hidden(self, rows: ModelInput) -> Tensor:
        """In place of hidden states, logits [rows, vocab], set only for the last row of each sequence."""
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

    def sleep(self) -> None:
        """Does nothing: llama.cpp keeps its cache."""

    def wake_up(self) -> None:
        pass

    def drop(self, first_block: int) -> None:
        """Remove the sequence with this first block from llama.cpp's cache."""
        if (sequence := self._sequences.pop(first_block, None)) is not None:
            self._library.llama_memory_seq_rm(self._library.llama_get_memory(self._context), sequence, -1, -1)
            self._free.append(sequence)

    def _sequence_of(self, table: Sequence[int]) -> int:
        if table[0] not in self._sequences:
            self._sequences[table[0]] = self._free.pop()
        return self._sequences[table[0]]


class _CountedBlocks(BlockManager):
    """Blocks that are never shared; the runner drops a sequence when its blocks are released."""

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

    def __init__(self, runner: LlamaCppRunner, n_blocks: int, config: SchedulerConfig):
        super().__init__(runner, n_blocks, config)
        self.blocks = self.scheduler.blocks = _CountedBlocks(n_blocks, runner)

    def _refusal(self, request: Request) -> str | None:
        if not request.generates:
            return f"The backend llamacpp cannot {request.task}: serve the model with --backend tenfold."
        return super()._refusal(request)


def make_llamacpp_engine(options: EngineOptions) -> LlamaCppEngine:
    """An engine for a GGUF file. Raises TenfoldError if llama-cpp-python is missing, or the file or the options cannot be used."""
    if options.path.suffix != ".gguf":
        raise TenfoldError(f"llama.cpp reads GGUF files, and {options.path} is not one: leave --backend out.")
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        raise NotInstalled("llama-cpp-python is not installed: `pip install llama-cpp-python`.") from None
    spec, _ = read_gguf(options.path)
    n_blocks = cache_blocks(options.kv_cache_gib, spec, torch.float16)
    config = SchedulerConfig(
        max_num_batched_tokens=options.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS["cpu"],
        max_num_seqs=min(options.max_num_seqs, _MAX_NUM_SEQS),
        max_model_len=options.max_model_len,
    )
    return LlamaCppEngine(LlamaCppRunner(options, n_blocks, config), n_blocks, config)


def llamacpp_backend(options: EngineOptions) -> EngineProcess:
    """The entry point of the backend `llamacpp`."""
    return EngineProcess(options, make_llamacpp_engine)
