"""How a run lies on several processes: the recipe that is applied to a model from outside, top to bottom.

    world = pipeline x replicate x shard x context x tensor      (neighbouring ranks share a tensor group)
    shard x context x tensor = rest x expert                     (of neighbours that share the experts)

Layers are divided over `pipeline`, rows of the batch over `replicate` and `shard`, positions of a row over `context` and
`tensor`. So each process holds the loss of its own rows and positions, and gradients are sums over all of them: never a mean that
depends on the layout.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

from tenfold.model.llama import FeedForward, Llama
from tenfold.model.moe import expert_layers
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import LayoutConfig
from tenfold.train.parallel.expert_parallel import divide_experts, matrices
from tenfold.train.parallel.pipeline import Pipeline, cut, micro_batch


class ProcessLost(TenfoldError):
    """Another process of the run is gone or cannot be reached: started anew, the run goes on from its last checkpoint."""


@dataclass(frozen=True)
class ParallelDims:
    """Where this process stands: which part of the rows and of the positions is its own. The default is one process alone.

    `stage_group` are the processes that have the same layers; None is all.
    """

    rank: int = 0
    data: int = 1
    data_rank: int = 0
    sequence: int = 1
    sequence_rank: int = 0
    shard_group: Any = None
    tensor_group: Any = None
    stage_group: Any = None
    pipeline: Pipeline | None = None

    @property
    def alone(self) -> bool:
        return self.data * self.sequence == 1 and self.pipeline is None

    def rows(self, batch_size: int) -> tuple[int, int, int]:
        """First row, the row after the last, and the most rows that any process has: shares differ by one at most."""
        first, end = (batch_size * r // self.data for r in (self.data_rank, self.data_rank + 1))
        return first, end, -(-batch_size // self.data)

    def positions(self, rows: Tensor) -> Tensor:
        """The part of rows [B, T, ...] that is this process's own."""
        return rows.chunk(self.sequence, 1)[self.sequence_rank].contiguous()

    def total(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.alone:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag as all processes then have it: up where it is up in any."""
        return [value > 0 for value in self.total(*map(float, flags))]


def start_processes(patience_s: float = 900.0) -> None:
    """Join the other processes where `torchrun` started this one. Raises ProcessLost where they cannot be reached."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=patience_s)))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # A node's agent keeps one store over all starts, with the addresses of processes that are gone.
            store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ProcessLost(
            f"The other processes cannot be reached at {where} ({str(error).splitlines()[0][:200]}): see that all were started, "
            "and that this address can be reached from here."
        ) from None
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def sizes(layout: LayoutConfig, world: int) -> tuple[int, int, int, int, int]:
    """(pipeline, replicate, shard, context, tensor) for `world` processes. Raises TenfoldError where they do not multiply to it."""
    if min(layout.pipeline, layout.replicate, layout.context, layout.tensor) < 1 or layout.shard < 0:
        raise TenfoldError("Every size in [layout] must be at least 1 (shard may be 0: what the others leave).")
    others = layout.pipeline * layout.replicate * layout.context * layout.tensor
    shard = layout.shard or max(1, world // others)
    if others * shard != world:
        first = f"pipeline {layout.pipeline} x " if layout.pipeline > 1 else ""
        raise TenfoldError(
            f"[layout] needs {first}replicate {layout.replicate} x shard {shard} x context {layout.context} x tensor "
            f"{layout.tensor} = {others * shard} processes, but there are {world}: start as many, or change one of them."
        )
    return layout.pipeline, layout.replicate, shard, layout.context, layout.tensor


def parallelize(
    model: Llama, layout: LayoutConfig, device: torch.device, seq_len: int, batch_size: int, dtype: torch.dtype = torch.float32,
    micro: int | None = None,
) -> ParallelDims:
    """Spread `model` over all processes, in place, and say where this one stands. Raises TenfoldError for what does not divide.

    Weights are gathered in `dtype`, that of the products; every process keeps its share, and sums gradients, in float32.
    `micro` is how many rows of a process are asked to go together.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    stages, replicate, shard, context, tensor = sizes(layout, world)
    if world == 1:
        return ParallelDims()
    _check(model, replicate * shard, context, tensor, shard * context, seq_len, batch_size)
    _check_experts(model, layout.expert, shard * context * tensor)
    _check_pipeline(model, stages, batch_size // (replicate * shard), micro)
    line = {"pipeline": stages} if stages > 1 else {}
    mesh = _mesh(device, **line, replicate=replicate, shard=shard * context, tensor=tensor)
    fine = _mesh(device, **line, replicate=replicate, shard=shard, context=context, tensor=tensor)
    r, s, c, t = (fine.get_local_rank(name) for name in ("replicate", "shard", "context", "tensor"))
    sharded_over = mesh["replicate", "shard"] if replicate > 1 else mesh["shard"]
    own = cut(model, stages, fine.get_local_rank("pipeline"), layout.schedule) if stages > 1 else {}
    place = ParallelDims(
        rank=dist.get_rank(),
        data=replicate * shard,
        data_rank=r * shard + s,
        sequence=context * tensor,
        sequence_rank=c * tensor + t,
        shard_group=mesh.get_group("shard"),
        tensor_group=mesh.get_group("tensor") if tensor > 1 else None,
        stage_group=_mesh(device, **line, stage=world // stages).get_group("stage") if own else None,
    )
    if own:
        line_group = mesh.get_group("pipeline")
        place = replace(place, pipeline=Pipeline(model, own, layout.schedule, line_group, device, place.sequence, dtype))
    if place.sequence > 1 and (not own or 0 in own):
        model.layers[0].register_forward_pre_hook(lambda block, args: (place.positions(args[0]), *args[1:]))
    if tensor > 1:
        for block in model.layers:
            _divide_matrices(block, mesh["tensor"])
    if context > 1:
        for block in model.layers:
            _divide_context(block.attention, fine["context"])
    half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else half
    parts: list[tuple[nn.Module, DeviceMesh]] = [(part, sharded_over) for part in (*model.layers, *(own.values() or [model]))]
    if layout.expert > 1:
        wide = _mesh(device, **line, replicate=replicate, rest=shard * context * tensor // layout.expert, expert=layout.expert)
        for experts in expert_layers(model):
            divide_experts(experts, wide["expert"])
            rest = wide["replicate", "rest"] if replicate > 1 else wide["rest"]
            parts = [*((stack, rest) for stack in matrices(experts)), *parts]
    for part, over in parts:
        # In a pipeline weights are gathered once a step, not for each of its parts: zero bubbles work on what was gathered.
        across = partial(_across, over.size(-1))
        fully_shard(part, mesh=over, shard_placement_fn=across, mp_policy=policy, reshard_after_forward=False if own else None)
        part.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        part.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
    if not own:
        register_fsdp_forward_method(model, "loss")
    return place


def _mesh(device: torch.device, **dimensions: int) -> DeviceMesh:
    return init_device_mesh(device.type, tuple(dimensions.values()), mesh_dim_names=tuple(dimensions))


def _check(model: Llama, data: int, context: int, tensor: int, shards: int, seq_len: int, batch_size: int) -> None:
    spec = model.spec
    for what, value, ranks in (
        ("seq_len", seq_len, context * tensor),
        ("n_kv_heads", spec.n_kv_heads, tensor),
        ("ffn_dim", spec.ffn_dim, tensor),
        ("dim", spec.dim, shards if tensor > 1 else 1),
    ):
        if value % ranks:
            raise TenfoldError(f"[layout] cannot divide {what} {value} by {ranks}: change the layout, or {what}.")
    if batch_size < data:
        raise TenfoldError(f"[layout] divides {batch_size} rows a step over {data} processes: use fewer, or raise batch_size.")
    if expert_layers(model) and batch_size % data:
        raise TenfoldError(f"A model with experts needs a batch_size that {data} data parallel processes divide, not {batch_size}.")
    if model.ahead is not None and context * tensor > 1:
        raise TenfoldError("Tokens ahead are trained on whole rows: set ahead = 0, or context and tensor to 1.")
    if getattr(model, "balance_weight", 0.0):
        raise TenfoldError('A balance loss depends on what one process sees: say balance = "bias" on several processes.')


def _check_experts(model: Llama, expert: int, shards: int) -> None:
    if expert == 1:
        return
    spec = model.spec
    if expert < 1 or not expert_layers(model):
        raise TenfoldError(f"[layout] has expert = {expert}: it must be at least 1, and only a model with experts divides them.")
    for what, value, ranks in (
        ("n_experts", spec.n_experts, expert),
        ("shard x context x tensor", shards, expert),
        ("dim", spec.dim, shards // expert),
        ("expert_ffn_dim", spec.expert_ffn_dim, shards // expert),
    ):
        if value % ranks:
            raise TenfoldError(f"[layout] with expert = {expert} cannot divide {what} {value} by {ranks}: change one of the two.")


def _check_pipeline(model: Llama, stages: int, rows: int, micro: int | None) -> None:
    if stages == 1:
        return
    if model.ahead is not None:
        raise TenfoldError("Tokens ahead are not trained in a pipeline: set ahead = 0, or pipeline = 1 in [layout].")
    if getattr(model, "vision", None) is not None:
        raise TenfoldError("Images are not trained in a pipeline: set pipeline = 1 in [layout].")
    together = stages * micro_batch(rows, stages, micro)
    if expert_layers(model) and rows % together:  # rows that fill the last part up would count as the experts' load
        raise TenfoldError(
            f"A pipeline of {stages} sends a model with experts {together} rows at a time, which does not divide the {rows} rows "
            "of a process: change batch_size or micro_batch."
        )


def _divide_matrices(block: nn.Module, mesh: DeviceMesh) -> None:
    """Tensor and sequence parallel: between the matrices of a layer every process holds its part of the positions."""
    gather = PrepareModuleInput(input_layouts=(Shard(1), None, None, None), desired_input_layouts=(Replicate(), None, None, None))
    plan: dict[str, Any] = {
        "attention": gather,
        "attention.wqkv": ColwiseParallel(),
        "attention.wo": RowwiseParallel(output_layouts=Shard(1)),
    }
    if isinstance(block.ffn, FeedForward):  # experts see their tokens where these are
        plan["ffn"] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        plan |= {"ffn.w1": ColwiseParallel(), "ffn.w3": ColwiseParallel(), "ffn.w2": RowwiseParallel(output_layouts=Shard(1))}
    parallelize_module(block, mesh, plan)


def _divide_context(attention: Any, mesh: DeviceMesh) -> None:
    """Context parallel as in Llama 3 (arXiv 2407.21783, section 3.3.2): own queries, everyone's keys and values."""
    ranks, rank = mesh.size(), mesh.get_local_rank()

    def own(module: nn.Module, args: tuple) -> tuple:
        x, rope, mask, temperature = (*args, None)[:4]
        rope = None if rope is None else rope.chunk(ranks)[rank]
        T = x.shape[1] * ranks
        whole = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()[None, None] if mask is None else mask
        return x, rope, whole.chunk(ranks, 2)[rank], temperature

    def everyones(part: Tensor) -> Tensor:
        gathered = DTensor.from_local(part, mesh, [Shard(2)], run_check=False).redistribute(placements=[Replicate()])
        return gathered.to_local(grad_placements=[Partial()])  # each process has the gradient of its own queries

    mix: Callable[..., Tensor] = attention.mix

    def mix_all(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return mix(q, everyones(k), everyones(v), mask)

    attention.register_forward_pre_hook(own)
    attention.mix = mix_all


def _across(ranks: int, p: nn.Parameter) -> Shard:
    """The dimension by which FSDP shards a weight: the first, where it is not cut already by tensor or expert parallel.

    A stack of fewer matrices than `ranks` is sharded by the matrices' rows or columns, for it would be filled up to `ranks`.
    """
    if isinstance(p, DTensor) and p.placements[-1] == Shard(0):
        return Shard(1)
    if p.ndim == 3 and p.shape[0] % ranks:
        return Shard(next((d for d in (1, 2) if p.shape[d] % ranks == 0), 0))
    return Shard(0)


def local(t: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return t.to_local() if isinstance(t, DTensor) else t


def add_across_copies(model: Llama, now: bool) -> None:
    """Whether the next backward pass also sums gradients over `replicate`: once a step is enough, after its last part."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(now, recurse=False)


def gradients(model: nn.Module, place: ParallelDims) -> list[tuple[Tensor, bool, bool]]:
    """What this process holds of every gradient; whether a tensor group divides it; whether another has the same, and counts it.

    Sums what tensor parallel left to sum, and the two gradients of an embedding and a head that are tied but lie apart.
    """
    found = []
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        gradient = local(p.grad)
        divided = isinstance(p, DTensor) and not {"tensor", "expert"}.isdisjoint(p.device_mesh.mesh_dim_names or ())
        if place.tensor_group is not None and not divided:
            dist.all_reduce(gradient, group=place.tensor_group)
        line = place.pipeline
        copy = line is not None and line.tied and name == "embedding.weight" and line.add_tied(gradient)
        found.append((gradient, divided, copy))
    return found


def clip_gradient(model: nn.Module, limit: float, place: ParallelDims) -> float:
    """Sum what tensor parallel left to sum, scale all gradients to a norm of at most `limit`; returns the norm before."""
    if place.alone:
        return float(nn.utils.clip_grad_norm_(model.parameters(), limit))
    squares = torch.zeros(2, dtype=torch.float64)
    held = gradients(model, place)
    for gradient, divided, copy in held:
        squares[int(divided)] += 0.0 if copy else gradient.double().square().sum().cpu()
    dist.all_reduce(squares, group=place.shard_group)
    if place.tensor_group is not None:
        dist.all_reduce(squares[1:], group=place.tensor_group)
    if place.pipeline is not None:
        dist.all_reduce(squares, group=place.pipeline.group)
    norm = float(squares.sum().sqrt())
    for gradient, *_ in held:
        gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm


def padded(rows: Tensor, count: int, value: int) -> Tensor:
    """Rows [B, ...] with rows of `value` behind them, `count` in all: every process runs the same number."""
    return F.pad(rows, (0, 0, 0, count - len(rows)), value=value)
