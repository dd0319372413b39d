"""Makes the engine for `EngineOptions`: chooses the runner and the engine by the model and the device."""

import torch
from msgspec.structs import replace

from tenfold.model.io.huggingface import read_model
from tenfold.model.io.peft import read_adapter
from tenfold.model.llama import Llama
from tenfold.model.quantised import quantise_layers
from tenfold.serve.engine.async_scheduling import AsyncSchedulingEngine
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.engine.speculate import DraftSpeculator, Speculator
from tenfold.serve.options import EngineOptions
from tenfold.serve.runners import cuda, native
from tenfold.serve.runners.adapters import Adapters
from tenfold.serve.runners.runner import Runner, TorchRunner, cache_blocks
from tenfold.spec.errors import TenfoldError
from tenfold.spec.threads import available_cores
from tenfold.train.device import resolve_device

# By device. A step of so many tokens takes some tens of milliseconds.
MAX_NUM_BATCHED_TOKENS = {"cpu": 128, "cuda": 2048}
PROMPT_TOKENS = 256  # in a step without replies, on a CPU with a matrix unit (AMX)


def scheduler_config(options: EngineOptions, runner: Runner) -> SchedulerConfig:
    """The scheduler's limits from `options`; a `max_num_batched_tokens` of 0 becomes the device's default."""
    given = options.max_num_batched_tokens
    on_tiles = isinstance(runner, native.NativeRunner) and runner.tiles
    return SchedulerConfig(
        max_num_batched_tokens=given or MAX_NUM_BATCHED_TOKENS.get(resolve_device(options.device).split(":")[0], 128),
        max_num_prompt_tokens=PROMPT_TOKENS if on_tiles and not given else 0,
        max_num_seqs=options.max_num_seqs,
        max_model_len=options.max_model_len,
    )


def make_runner(options: EngineOptions) -> tuple[Runner, int]:
    """A runner of the model of `options`, and the number of blocks in its cache.

    On a GPU it is `CudaRunner` (Triton kernels), on a CPU `NativeRunner` (compiled C++), if the model's shape fits and they are
    available. Otherwise, and for models with adapters, it is `TorchRunner`. Raises TenfoldError if the model cannot be read, or
    cannot run with these options.
    """
    threads = options.threads or available_cores()
    torch.set_num_threads(threads)
    device = resolve_device(options.device)
    on_gpu = device.startswith("cuda")
    if on_gpu and options.quantization not in ("exact", "bfloat16", "float32"):
        raise TenfoldError(f"Weights in {options.quantization} are for CPUs: leave --quantization out on a GPU.")
    dtype = torch.bfloat16 if device != "cpu" and options.quantization != "float32" else torch.float32
    model = _read(options, dtype).to(device)
    n_blocks = cache_blocks(options.kv_cache_gib, model.spec, dtype)
    if _has_adapters(options):
        return TorchRunner(model, n_blocks, Adapters(model, options.adapters())), n_blocks
    if on_gpu and not options.enforce_eager and cuda.fits(model.spec):
        return cuda.CudaRunner(model, n_blocks, options.max_num_seqs, options.max_model_len), n_blocks
    if device == "cpu" and not options.enforce_eager and native.fits(model.spec) and native.library():
        runner = native.NativeRunner(model, n_blocks, options.quantization, threads)
        torch.set_num_threads(1)  # or PyTorch's threads would compete with the runner's for the cores
        return runner, n_blocks
    return TorchRunner(model, n_blocks), n_blocks


def _read(options: EngineOptions, dtype: torch.dtype) -> Llama:
    """The model with the adapter of all requests, if there is one, on floating-point, int8 or int4 weights."""
    model = read_model(options.path, dtype)
    if _has_adapters(options) and options.quantization in ("int8", "int4"):
        quantise_layers(model, options.quantization)
    if options.adapter is not None:
        read_adapter(model, options.adapter)
    return model


def _has_adapters(options: EngineOptions) -> bool:
    return options.adapter is not None or bool(options.lora_modules)


def make_engine(options: EngineOptions) -> Engine:
    """The engine for `options`; it schedules asynchronously if the runner draws tokens. Raises TenfoldError like `make_runner`."""
    runner, n_blocks = make_runner(options)
    config = scheduler_config(options, runner)
    if isinstance(runner, cuda.CudaRunner):
        if options.draft_model is not None:
            raise TenfoldError("Draft models are for CPUs: leave --draft-model out on a GPU.")
        return AsyncSchedulingEngine(runner, n_blocks, config)
    return Engine(runner, n_blocks, config, _speculator(options, runner.spec.vocab_size))


def _speculator(options: EngineOptions, vocab_size: int) -> Speculator | None:
    if not options.speculate:
        return None
    if options.draft_model is None:
        return Speculator()
    draft, n_blocks = make_runner(replace(options.of(options.draft_model), kv_cache_gib=options.kv_cache_gib / 4))
    if draft.spec.vocab_size != vocab_size:
        raise TenfoldError(f"The draft model has {draft.spec.vocab_size} tokens and the model {vocab_size}: they must share them.")
    return DraftSpeculator(draft, n_blocks)
