"""One side of a training benchmark: builds a model from a `Job`, takes steps and measures them.

    PYTHONPATH=src python -m bench.train.sides '{"what": "limit", "device": "cpu", "size": 256}'

As a command it takes the job as JSON and prints one JSON object as its last line. It needs PyTorch, and `transformers` or `torchao`
only for sides that use them.
"""

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.gpu.limits import clocked, grouped_rates, matrix_rates
from tenfold.model.attention import fastest_attention
from tenfold.model.moe import expert_layers
from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec, published_model, with_depth
from tenfold.spec.shapes import shape_of
from tenfold.train.activation_checkpointing import ActivationCheckpointing, checkpoint_activations
from tenfold.train.compile import compile_blocks, use_document_blocks
from tenfold.train.config import OptimizerConfig
from tenfold.train.energy import EnergyMeter
from tenfold.train.initial_weights import build
from tenfold.train.memory import peak_memory_bytes, reset_peak_memory
from tenfold.train.optim.fp8 import convert, why_not
from tenfold.train.optim.hyperparameters import Hyperparameters, derive
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.precision import autocast
from tenfold.train.skipper import DeviceStepSkipper, HostStepSkipper
from tenfold.train.state import RunState
from tenfold.train.step import Step
from tenfold.train.task import Batch, LossSums, Task, TaskBase

CONSTANT = OptimizerConfig(name="adamw", warmup=0.0, decay=0.0)
LEAST_STEPS = 4
MEAN_DOCUMENT = 1000
USABLE = 0.96  # share of a GPU's memory that is left by the driver and fragmentation


@dataclass(frozen=True)
class Job:
    """What a side does.

    `what` is step, largest (the largest batch that fits) or limit (the machine's own rates). `system` is tenfold or transformers;
    `weights` is the format in which weights are stored. `seconds` is the time for steps; `size` the side of the limit's matrices.
    """

    what: str = "step"
    device: str = "cuda"
    case: str = "1b"
    system: str = "tenfold"
    weights: str = "float32"
    autocast: str = ""  # the format of products with float32 weights; bfloat16 on a GPU, float32 on a CPU if empty
    compiled: bool = True
    backend: str = "inductor"
    fp8: str = ""
    activation_checkpointing: ActivationCheckpointing = "none"
    documents: bool = False
    batch: int = 4
    micro_batch: int = 0
    most_rows: int = 64
    seq_len: int = 8192
    seconds: float = 6.0
    size: int = 8192
    began: float = 0.0

    @property
    def products(self) -> torch.dtype:
        return getattr(torch, self.autocast or ("bfloat16" if self.device == "cuda" else "float32"))


def shape(case: str) -> ModelSpec:
    """The model of a case: `tiny`, `1b`, `8b` (8 layers), `scout` (2 layers), `dense WIDTH`, `experts WIDTH`, a published name."""
    kind, _, width = case.partition(" ")
    if kind == "tiny":
        return ModelSpec("tiny", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=192, vocab_size=512)
    if kind in ("dense", "experts"):
        return shape_of("llama3" if kind == "dense" else "llama4", int(width), 2048)
    if kind == "scout":
        return replace(published_model("llama-4-scout"), n_layers=2, vocab_size=32_768, vision=None)
    if kind == "8b":
        return with_depth(published_model("llama-3.1-8b"), 8)
    return published_model("llama-3.2-1b" if kind == "1b" else kind)


def document_lengths(seq_len: int, mean: int, draw: random.Random) -> list[int]:
    """Lengths of the documents of one row, exponentially distributed; the last is cut at the end of the row."""
    lengths: list[int] = []
    while (left := seq_len - sum(lengths)) > 0:
        lengths.append(min(left, max(1, round(draw.expovariate(1 / mean)))))
    return lengths


def step_flops(spec: ModelSpec, rows: list[list[int]]) -> float:
    """Training FLOPs of rows with documents of these lengths: all matrix products, and causal attention within each document."""
    return sum(length * spec.train_flops_per_token(length) for row in rows for length in row)


Loss = Callable[[Tensor, Tensor, Tensor | None], LossSums]
Made = tuple[nn.Module, list[torch.optim.Optimizer], Loss]


def tenfold_model(job: Job, spec: ModelSpec, h: Hyperparameters) -> Made:
    """Tenfold's model, the trainer's optimizers for it, and its loss function."""
    device = torch.device(job.device)
    model = build(spec, None, device)
    model.to(getattr(torch, job.weights))
    if job.fp8:
        if reason := why_not(device, torch.bfloat16):
            raise TenfoldError(f"fp8 does nothing here: {reason}.")
        convert(model, emulate=False, recipe=job.fp8)
    checkpoint_activations(model, job.activation_checkpointing)
    if device.type == "cuda":
        use_document_blocks(model, job.seq_len)
    if job.compiled:
        compile_blocks(model, **compile_options(job))
    return model, make_optimizers(model, spec, h, "adamw"), lambda *rows: LossSums(*model.loss(*rows))


def transformers_model(job: Job, spec: ModelSpec, h: Hyperparameters) -> Made:
    """The same shape in `transformers`, PyTorch's fused AdamW, and the loss function."""
    import transformers

    from tenfold.model.io.huggingface_config import config_from_spec

    fields = config_from_spec(replace(spec, context=max(spec.context, job.seq_len))) | {"use_cache": False}
    config = transformers.AutoConfig.for_model(**fields)
    with torch.device(job.device):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.to(getattr(torch, job.weights)).train()
    forward = torch.compile(model, **compile_options(job)) if job.compiled else model
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "peak_lr": 1e-4}], lr=1e-4, fused=True)

    def loss(tokens: Tensor, targets: Tensor, document: Tensor | None) -> LossSums:
        mean = forward(input_ids=tokens, labels=targets, shift_labels=targets).loss
        return LossSums(mean * targets.numel(), torch.zeros((), device=mean.device))

    return model, [optimizer], loss


def compile_options(job: Job) -> dict[str, Any]:
    return {"dynamic": False, "backend": job.backend}


class RandomRows:
    """Rows of random tokens, in the form of `train.task.Rows`; `lengths` are the document lengths of each row."""

    def __init__(self, lengths: list[list[int]], vocab_size: int, pinned: bool):
        self.lengths = lengths
        tokens = torch.randint(0, vocab_size, (len(lengths), sum(lengths[0]) + 1))
        numbers = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
        parts = [tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), torch.stack(numbers).int()]
        self._parts = [part.pin_memory() for part in parts] if pinned else parts

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return self._parts[0].numel()

    def weight(self) -> float:
        return float(self.tokens)

    def on(self, device: torch.device, rows: slice) -> Batch:
        tokens, targets, document = (part[rows].to(device, non_blocking=True) for part in self._parts)
        return Batch(tokens, targets, document if any(len(row) > 1 for row in self.lengths) else None)


class RandomText(TaskBase):
    """A trainer task: the model's loss on random tokens."""

    def __init__(self, loss: Loss):
        self._loss = loss

    def loss(self, model: nn.Module, batch: Batch) -> LossSums:
        return self._loss(batch.tokens, batch.targets, batch.document)


class Side:
    """One system on one case, with the trainer's own step. A batch is processed in micro-batches of `micro` rows."""

    def __init__(self, job: Job):
        self.job, self.device = job, torch.device(job.device)
        torch.manual_seed(0)
        self.spec = shape(job.case)
        self.h = derive(10**9, job.seq_len, batch_size=job.batch)
        make = tenfold_model if job.system == "tenfold" else transformers_model
        self.model, self.optimizers, loss = make(job, self.spec, self.h)
        self.task, self.state = cast(Task, RandomText(loss)), RunState()
        most = 10**9  # steps that may be skipped
        on_device = self.device.type == "cuda"
        self.skipper = DeviceStepSkipper(self.state, most, self.device) if on_device else HostStepSkipper(self.state, most)
        self.load(job.batch)
        self.micro = job.micro_batch or job.batch

    def load(self, rows: int) -> None:
        """Load a batch of `rows` rows of random tokens, divided into documents if the job asks for them."""
        self.micro, draw, length = rows, random.Random(0), self.job.seq_len
        mean = min(MEAN_DOCUMENT, length // 8)
        lengths = [document_lengths(length, mean, draw) if self.job.documents else [length] for _ in range(rows)]
        self.rows = RandomRows(lengths, self.spec.vocab_size, pinned=self.device.type == "cuda")

    def step(self, read: bool = False) -> float | None:
        """One optimizer step on the batch; returns the mean loss. On a GPU the host reads it only with `read`."""
        half = self.job.weights == "float32" and self.job.products != torch.float32
        step = Step(
            self.task, self.model, self.optimizers, self.skipper, replace(self.h, batch_size=len(self.rows)), CONSTANT, self.device,
            micro_batch=self.micro, read_every=1 if read else 10**9,
        )  # fmt: skip
        with autocast(self.device, self.job.products if half else torch.float32), fastest_attention(self.device):
            done = step(self.rows, self.state.step, self.rows.weight())
        self.state.step += 1
        return done.loss

    def loss(self) -> float:
        """The mean loss of one more step, in nats per token."""
        loss = self.step(read=True)
        assert loss is not None
        return loss

    def forget_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def first_step(self) -> float:
        """The first step, with micro-batches halved until it fits in memory; its loss, in nats per token."""
        while True:
            try:
                return self.loss()
            except torch.OutOfMemoryError:
                if self.micro == 1:
                    raise
            self.micro //= 2
            self.forget_gradients()
            torch.cuda.empty_cache()

    def largest(self) -> None:
        """Load the largest batch that fits without micro-batches, estimated from the memory of one and two rows and then tried."""
        peaks = []
        for rows in (1, 2):
            self.load(rows)
            self.step()  # the first also makes the optimizer's moments
            reset_peak_memory(self.device)
            self.loss()
            peaks.append(peak_memory_bytes(self.device))
        room = torch.cuda.get_device_properties(0).total_memory * USABLE if self.device.type == "cuda" else math.inf
        rows = int(min(self.job.most_rows, 1 + (room - peaks[0]) // max(1, peaks[1] - peaks[0])))
        while rows > 1:
            try:
                self.load(rows)
                self.loss()
                return
            except torch.OutOfMemoryError:
                rows -= 1
            self.forget_gradients()
            torch.cuda.empty_cache()
        self.load(1)

    def measure(self) -> dict[str, Any]:
        if self.job.what == "largest":
            self.largest()
        first_loss = self.first_step()
        first_step_s = time.time() - self.job.began
        second = min(clocked(self.step, 1, self.device, warm=1))
        reset_peak_memory(self.device)
        rounds = max(LEAST_STEPS, int(self.job.seconds / second))
        meter = EnergyMeter()
        taken = list(clocked(self.step, rounds, self.device, warm=0))
        energy = meter.read()
        tokens = self.rows.tokens
        return {
            "step_s": taken,
            "tokens": tokens,
            "flops": step_flops(self.spec, self.rows.lengths),
            "batch": len(self.rows),
            "micro_batch": self.micro,
            "peak_gib": peak_memory_bytes(self.device) / 2**30,
            "joules_per_token": energy.joules / (rounds * tokens),
            "energy_source": energy.source,
            "first_step_s": first_step_s,
            "first_loss": first_loss,
            "last_loss": self.loss(),
            "parameters": self.spec.parameters().total,
            "busiest_expert_over_mean": self.busiest_expert(),
        }

    def busiest_expert(self) -> float | None:
        """The busiest expert's tokens over the mean, averaged over layers; None for a model without Tenfold's expert layers."""
        loads = [layer.load.float() for layer in expert_layers(self.model)]
        return statistics.mean((load.max() / load.mean()).item() for load in loads) if loads else None


def limit(job: Job) -> dict[str, Any]:
    """The machine's own rates, with the GPU's name and the versions."""
    device = torch.device(job.device)
    found = {"limit": matrix_rates(device, job.products, job.size), "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cuda":
        found["grouped"] = {name: grouped_rates(device, job.products, name == "skewed") for name in ("balanced", "skewed")}
    return found | {"gpu": torch.cuda.get_device_name() if device.type == "cuda" else ""}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    job = replace(job, began=job.began or time.time())
    torch.set_float32_matmul_precision("high" if job.device == "cuda" else "highest")
    result = limit(job) if job.what == "limit" else Side(job).measure()
    print(json.dumps({"job": asdict(job)} | result), flush=True)


if __name__ == "__main__":
    main()
