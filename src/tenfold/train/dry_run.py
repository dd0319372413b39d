"""Dry run: the memory and communication of a run's processes, computed on fake tensors in a fake process group.

The trainer's own `parallelize` and the model's own passes run on tensors that have a shape but no memory. PyTorch's trackers
count what would be allocated and sent. One process of each kind is simulated.
"""

import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore

from tenfold.model import loss
from tenfold.model.build import make_model
from tenfold.spec.errors import TenfoldError
from tenfold.spec.layout import Layout, for_world
from tenfold.spec.model import ModelSpec, published_model
from tenfold.train.activation_checkpointing import checkpoint_activations
from tenfold.train.config import RunConfig
from tenfold.train.optim.hyperparameters import Hyperparameters
from tenfold.train.optim.optimizer import make_optimizers
from tenfold.train.parallel.dims import ParallelDims
from tenfold.train.parallel.gradients import add_across_copies, gradients
from tenfold.train.parallel.parallelize import parallelize
from tenfold.train.resolve import resolve_hyperparameters, resolve_model
from tenfold.train.start import layout_of
from tenfold.train.task import Batch, LossSums

GIB = 2**30
# The planner's names for the categories of PyTorch's memory tracker.
PARTS = {
    "Sharded Param": "parameters", "Sharded Grad": "gradients", "OptState": "optimizer", "Activation": "activations",
    "Temp": "activations", "Inputs": "optimizer", "Unsharded Param": "gathered", "Unsharded Grad": "gathered",
    "All Gather": "gathered", "Reduce Scatter": "gathered",
}  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """One process: its peak memory in GiB, in total and by part, and the GiB that it sends per step, by dimension of the layout."""

    rank: int
    memory_gib: float
    parts_gib: dict[str, float]
    sent_gib: dict[str, float]


@dataclass(frozen=True)
class DryRun:
    """The results of a dry run: the first rank, which has the largest shares, the last, which has the smallest, and in a pipeline
    also one of the second stage.

    The memory excludes the CUDA context and the allocator's overhead. `seconds` is how long the dry run took.
    """

    world: int
    layout: Layout
    spec: ModelSpec
    ranks: list[Rank]
    seconds: float


def dry_run(config: RunConfig, world: int) -> DryRun:
    """Run one step of one process of each kind, out of `world` processes, on fake tensors; nothing is allocated or sent.

    The vocabulary size is that of the published model, else the run file's. Matrix products are in bfloat16, and each row is one
    document. The zero-bubble schedule is simulated as the interleaved one, so the activations that it keeps for the deferred
    gradients of weights are not counted. Raises TenfoldError for a layout that does not fit.
    """
    if dist.is_initialized():
        raise TenfoldError("A dry run needs a single process: start it without torchrun.")
    began = time.perf_counter()
    vocabulary = published_model(config.model).vocab_size if isinstance(config.model, str) else config.data.vocab_size
    spec, tokens = resolve_model(config, vocabulary)
    h = resolve_hyperparameters(config, tokens)
    layout = for_world(layout_of(config), world).replace(global_batch=h.batch_size, seq_len=config.data.seq_len)
    kinds = sorted({0, world // layout.pp % world, world - 1})
    # Each rank in its own process, because PyTorch keeps global state about process groups.
    with ProcessPoolExecutor(len(kinds), multiprocessing.get_context("fork")) as pool:
        ranks = list(pool.map(partial(_rank, config.optimizer.name, spec, h, layout), kinds))
    return DryRun(world, layout, spec, ranks, time.perf_counter() - began)


def _rank(optimizer: str, spec: ModelSpec, h: Hyperparameters, layout: Layout, rank: int) -> Rank:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    torch.set_num_threads(1)
    _use_gpu_loss()
    _skip_shape_exchange()
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake:
            model = make_model(spec)
        checkpoint_activations(model, layout.activation_checkpointing)
        model.forward = partial(_next_token_loss, model)  # type: ignore[method-assign, assignment]  # the tracker hooks `forward`
        if layout.schedule == "zero_bubble":  # the tracker cannot follow backward passes for weights only; sends are the same
            layout = layout.replace(schedule="interleaved")
        # Outside of fake mode, because the mesh needs real tensors; what is derived from the fake weights is fake all the same.
        task: Any = SimpleNamespace(loss=_next_token_loss)
        dims = parallelize(model, task, layout, torch.device("cpu"), torch.bfloat16)
        with fake:
            optimizers = make_optimizers(model, spec, h, optimizer)
            return _step(model, optimizers, layout, dims, rank)
    finally:
        dist.destroy_process_group()


def _next_token_loss(model: Any, batch: Batch) -> LossSums:
    return LossSums(*model.loss(batch.tokens, batch.targets))


def _use_gpu_loss() -> None:
    """Give the loss a GPU's chunk size and memory use: like the compiled kernel, it allocates only logits and gradient."""
    loss.CHUNK_BYTES["cpu"] = 2 * loss.CHUNK_BYTES["cuda"]  # chunk_rows assumes float32 logits on a CPU, but here they are bfloat16
    loss._ChunkedCrossEntropy = loss._FusedCrossEntropy  # type: ignore[misc, assignment]
    loss.fused_gradient = lambda logits, *_: (logits.new_zeros(()), logits.new_zeros(()), torch.empty_like(logits))


def _skip_shape_exchange() -> None:
    """Make pipeline stages skip their exchange about known shapes, because there are no other processes to answer."""
    PipelineStage._warmup_forward_vote = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    PipelineStage._warmup_backward_result = lambda *_, **__: SimpleNamespace(item=lambda: 1)  # type: ignore[method-assign, assignment]


def _step(model: Any, optimizers: list, layout: Layout, dims: ParallelDims, rank: int) -> Rank:
    # A dimension over all processes uses the default process group, which has no name; cp and dp_shard then look the same.
    sizes = {name: getattr(layout, name) for name in ("pp", "dp_replicate", "tp")}
    alone = next((name for name, size in sizes.items() if size == dist.get_world_size()), "dp_shard")
    tracker = Tracker(model if dims.pipeline is None else nn.ModuleList(dims.pipeline.stages), alone)
    for p in model.parameters():  # one optimizer step first, so that the optimizers have their state
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tracker.track_inputs(tuple(value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()))
    with tracker, _ignore_shape_propagation(tracker), torch.autocast("cpu", torch.bfloat16):
        passes = _passes if dims.pipeline is None else _passes_of_pipeline
        passes(tracker, layout, dims)
        gradients(model, dims)
        for optimizer in optimizers:
            optimizer.step()
    held = next(iter(tracker.get_tracker_snapshot("peak").values()))
    total = held.pop("Total")
    named: dict[str, float] = defaultdict(float)
    for kind, size in held.items():
        named[PARTS.get(getattr(kind, "value", str(kind)), "activations")] += size / GIB
    return Rank(rank, total / GIB, dict(named), {name: size / GIB for name, size in tracker.bytes.items()})


@contextmanager
def _ignore_shape_propagation(tracker: "Tracker") -> Iterator[None]:
    """Pause the tracker while DTensor makes whole fake tensors to find the shape of a result: they are not part of the run."""
    name = "_propagate_tensor_meta_non_cached"
    original = getattr(ShardingPropagator, name)

    def untracked(*inputs: Any) -> Any:
        tracker.looks, before = False, tracker.looks
        try:
            return original(*inputs)
        finally:
            tracker.looks = before

    setattr(ShardingPropagator, name, untracked)
    try:
        yield
    finally:
        setattr(ShardingPropagator, name, original)


def _passes(tracker: "Tracker", layout: Layout, dims: ParallelDims) -> None:
    parts = layout.micro_batches
    tokens = torch.zeros(layout.rows_together, layout.seq_len, dtype=torch.int64)
    sent_in_part: dict[str, float] = {}
    # Three micro-batches suffice: the first has no gradients to add to, the last sums over dp_replicate, all others are alike.
    for part in range(min(parts, 3)):
        before = dict(tracker.bytes)
        add_across_copies(tracker.root, part == min(parts, 3) - 1)
        sums = tracker.root(dims.own_positions(Batch(tokens, tokens)))
        (sums.loss + sums.extra).backward()
        if part == 1:
            sent_in_part = {name: tracker.bytes[name] - before.get(name, 0.0) for name in tracker.bytes}
    for name, more in sent_in_part.items():
        tracker.bytes[name] += max(0, parts - 3) * more


def _passes_of_pipeline(tracker: "Tracker", layout: Layout, dims: ParallelDims) -> None:
    """Run the batch in rounds of one micro-batch per process of the pipeline. Two rounds fill it; all later ones are alike, so the
    bytes sent are extrapolated from the difference between three rounds and two."""
    assert dims.pipeline is not None
    together = layout.rows_together * layout.pp
    rounds = math.ceil(layout.rows / together)
    sent: list[dict[str, float]] = []
    for taken in (2, 3) if rounds > 3 else (rounds,):
        tracker.bytes.clear()
        tokens = torch.zeros(taken * together, layout.seq_len, dtype=torch.int64)
        for p in tracker.root.parameters():
            p.grad = None
        dims.pipeline.step(dims.own_positions(Batch(tokens, tokens)), layout.rows_together, 1.0)
        sent.append(dict(tracker.bytes))
    for name, last in sent[-1].items():
        tracker.bytes[name] += max(0, rounds - 3) * (last - sent[0].get(name, 0.0))


class Tracker(FSDPMemTracker):
    """PyTorch's memory tracker, extended to count the `bytes` that ring collectives send, by dimension of the layout.

    `everyone` is the dimension to count for the group of all processes.
    """

    def __init__(self, root: Any, everyone: str) -> None:
        super().__init__(next(module for module in root.modules() if isinstance(module, FSDPModule)), None)  # type: ignore[arg-type]
        self.root = self._root_mod = root  # set here, because FSDPMemTracker only accepts a sharded module as its root
        self.looks = True
        self.everyone = everyone
        self.bytes: dict[str, float] = defaultdict(float)

    def _fsdp_state_pre_forward(self, fsdp_mod: Any, orig_fsdp_state_pre_fw: Any) -> Any:
        run = super()._fsdp_state_pre_forward(fsdp_mod, orig_fsdp_state_pre_fw)

        def inner(*args: Any, **kwargs: Any) -> Any:
            self._mod_tracker.parents.add("step")  # a module without a parent would be taken for the start of another step
            return run(*args, **kwargs)

        return inner

    def _update_peak_stats(self, peak_state: Any) -> None:
        # Only the peak of the whole run: PyTorch also keeps one per module, which takes minutes for a deep model.
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device] = now["Total"]
                self._peak_mem_snap[device] = dict(now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.looks:
            return func(*args, **(kwargs or {}))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func in collective_ops and result is not NotImplemented and "wait" not in str(func) and "barrier" not in str(func):
            group = CollectiveOp.get_process_group(func, args)
            whole = CollectiveOp.get_comm_tensor_size(func, result, args, kwargs)
            if func is torch.ops.c10d.allreduce_.default:  # PyTorch would count the whole storage of a gradient that is a view
                whole = sum(t.nbytes for t in args[0])
            name = self.everyone if group.group_desc == "default_pg" else group.group_desc.removeprefix("mesh_")
            name = "dp_shard" if name == "rest" else name  # "rest" is the mesh dimension that experts are sharded over
            self.bytes[name] += whole * _share_sent(str(func).replace("_", ""), group.size())
        return result


def _share_sent(collective: str, ranks: int) -> float:
    """The share of a collective's data that each process sends in a ring algorithm; 1 for a plain send, 0 for a receive."""
    if "send" in collective or "recv" in collective:
        return float("send" in collective)
    return (2 if "allreduce" in collective else 1) * (ranks - 1) / ranks
