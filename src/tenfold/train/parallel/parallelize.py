"""How a run lies on several processes: the recipe that is applied to a model from outside, top to bottom.

    world = pp x dp_replicate x dp_shard x cp x tp      (neighbouring ranks share a tensor parallel group)
    dp_shard x cp x tp = rest x ep                      (of neighbours that share the experts)

Layers are divided over `pp`, rows of the batch over `dp_replicate` and `dp_shard`, positions of a row over `cp` and `tp`. So
each process holds the loss of its own rows and positions, and gradients are sums over all of them: never a mean that depends
on the layout.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from msgspec import Meta
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

from tenfold.model.llama import FeedForward, Llama
from tenfold.model.moe import expert_layers
from tenfold.spec.errors import TenfoldError
from tenfold.train.activation_checkpointing import ActivationCheckpointing
from tenfold.train.parallel.dims import ParallelDims
from tenfold.train.parallel.expert_parallel import divide_experts, matrices
from tenfold.train.parallel.pipeline import HiddenStates, Pipeline, Schedule, cut, micro_batch
from tenfold.train.task import Task


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[parallel]` of a run file; `parallel = "auto"` takes what the planner says.

    Weights and optimizer are sharded over `dp_shard` (FSDP; 0 takes what the others leave), and `dp_replicate` such copies run
    beside each other (HSDP). Of the processes that share a copy, every `ep` neighbours divide the experts of each layer.
    """

    auto: Annotated[bool, Meta(description="Take the planner's fastest layout.")] = False
    pp: Annotated[int, Meta(description="Pipeline stages' processes.")] = 1
    schedule: Annotated[Schedule, Meta(description="The order of a pipeline's passes.")] = "1f1b"
    dp_replicate: Annotated[int, Meta(description="Copies of the model (HSDP).")] = 1
    dp_shard: Annotated[int, Meta(description="Processes that share a copy (FSDP); 0 is what the others leave.")] = 0
    cp: Annotated[int, Meta(description="Processes that divide the positions of a row.")] = 1
    tp: Annotated[int, Meta(description="Processes that divide the matrices of a layer.")] = 1
    ep: Annotated[int, Meta(description="Processes that divide the experts of a layer.")] = 1
    micro_batch: Annotated[int | None, Meta(gt=0, description="Sequences that go through the model at once.")] = None
    activation_checkpointing: Annotated[
        ActivationCheckpointing, Meta(description="What the backward pass works out again: feed-forwards, or blocks.")
    ] = "none"


def sizes(layout: ParallelConfig, world: int) -> tuple[int, int, int, int, int]:
    """(pp, dp_replicate, dp_shard, cp, tp) for `world` processes. Raises TenfoldError where they do not multiply to it."""
    if min(layout.pp, layout.dp_replicate, layout.cp, layout.tp) < 1 or layout.dp_shard < 0:
        raise TenfoldError("Every size in [parallel] must be at least 1 (dp_shard may be 0: what the others leave).")
    others = layout.pp * layout.dp_replicate * layout.cp * layout.tp
    shard = layout.dp_shard or max(1, world // others)
    if others * shard != world:
        first = f"pp {layout.pp} x " if layout.pp > 1 else ""
        raise TenfoldError(
            f"[parallel] needs {first}dp_replicate {layout.dp_replicate} x dp_shard {shard} x cp {layout.cp} x tp "
            f"{layout.tp} = {others * shard} processes, but there are {world}: start as many, or change one of them."
        )
    return layout.pp, layout.dp_replicate, shard, layout.cp, layout.tp


class StepShape(NamedTuple):
    """What a step consists of: rows, their positions, the device, and the format that weights are gathered in."""

    batch_size: int
    seq_len: int
    device: torch.device
    dtype: torch.dtype = torch.float32


def parallelize(model: Llama, task: Task, layout: ParallelConfig, shape: StepShape) -> ParallelDims:
    """Lay `model` over all processes, in place, and say where this one stands. Raises TenfoldError for what does not divide.

    Every process keeps its share of the weights, and sums gradients, in float32.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    stages, replicate, shard, context, tensor = sizes(layout, world)
    if world == 1:
        return ParallelDims()
    _check(model, replicate * shard, context, tensor, shard * context, shape.seq_len, shape.batch_size)
    _check_experts(model, layout.ep, shard * context * tensor)
    _check_pipeline(model, stages, shape.batch_size // (replicate * shard), layout.micro_batch)
    line = {"pp": stages} if stages > 1 else {}
    mesh = _mesh(shape.device, **line, dp_replicate=replicate, dp_shard=shard * context, tp=tensor)
    fine = _mesh(shape.device, **line, dp_replicate=replicate, dp_shard=shard, cp=context, tp=tensor)
    own = cut(model, stages, fine.get_local_rank("pp"), layout.schedule) if stages > 1 else {}
    dims = _dims(mesh, fine, world)
    if own:
        hidden = HiddenStates(shape.dtype, dims.sequence, shape.device)
        pipeline = Pipeline(task, own, layout.schedule, mesh.get_group("pp"), hidden)
        stage_group = _mesh(shape.device, **line, stage=world // stages).get_group("stage")
        dims = replace(dims, pipeline=pipeline, stage_group=stage_group)
    _divide_positions(model, dims, mesh, fine)
    sharded_over = mesh["dp_replicate", "dp_shard"] if replicate > 1 else mesh["dp_shard"]
    parts: list[tuple[nn.Module, DeviceMesh]] = [(part, sharded_over) for part in (*model.layers, *(own.values() or [model]))]
    if layout.ep > 1:
        wide = _mesh(shape.device, **line, dp_replicate=replicate, rest=shard * context * tensor // layout.ep, ep=layout.ep)
        parts = [*_divide_experts(model, wide), *parts]
    _shard(parts, shape.dtype, keep_gathered=bool(own))
    if not own:
        _gather_around_the_loss(model)
    return dims


def _mesh(device: torch.device, **dimensions: int) -> DeviceMesh:
    return init_device_mesh(device.type, tuple(dimensions.values()), mesh_dim_names=tuple(dimensions))


def _dims(mesh: DeviceMesh, fine: DeviceMesh, world: int) -> ParallelDims:
    r, s, c, t = (fine.get_local_rank(name) for name in ("dp_replicate", "dp_shard", "cp", "tp"))
    replicate, shard, context, tensor = (fine[name].size() for name in ("dp_replicate", "dp_shard", "cp", "tp"))
    return ParallelDims(
        rank=dist.get_rank(),
        data=replicate * shard,
        data_rank=r * shard + s,
        sequence=context * tensor,
        sequence_rank=c * tensor + t,
        shard_group=mesh.get_group("dp_shard"),
        tensor_group=mesh.get_group("tp") if tensor > 1 else None,
    )


def _divide_positions(model: Llama, dims: ParallelDims, mesh: DeviceMesh, fine: DeviceMesh) -> None:
    """Leave to each process its positions of a row, from before the first layer on."""
    first = dims.pipeline is None or dims.pipeline.holds_first
    if dims.sequence > 1 and first:
        model.layers[0].register_forward_pre_hook(lambda block, args: (dims.positions(args[0]), *args[1:]))
    for block in model.layers:
        if fine["tp"].size() > 1:
            _divide_matrices(block, mesh["tp"])
        if fine["cp"].size() > 1:
            _divide_context(block.attention, fine["cp"])


def _divide_experts(model: Llama, wide: DeviceMesh) -> list[tuple[nn.Module, DeviceMesh]]:
    """Divide the experts over `ep`; returns their matrices, and what each is sharded over."""
    rest = wide["dp_replicate", "rest"] if wide["dp_replicate"].size() > 1 else wide["rest"]
    for experts in expert_layers(model):
        divide_experts(experts, wide["ep"])
    return [(stack, rest) for experts in reversed(expert_layers(model)) for stack in matrices(experts)]


def _shard(parts: list[tuple[nn.Module, DeviceMesh]], dtype: torch.dtype, keep_gathered: bool) -> None:
    """FSDP for each part. In a pipeline weights are gathered once a step, not for each of its parts: zero bubbles work on what
    was gathered."""
    half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else half
    for part, over in parts:
        across = partial(_across, over.size(-1))
        reshard = False if keep_gathered else None
        fully_shard(part, mesh=over, shard_placement_fn=across, mp_policy=policy, reshard_after_forward=reshard)
        part.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        part.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def _gather_around_the_loss(model: Any) -> None:
    """Let `model.apply_loss(loss, batch)` be `loss(model, batch)` with the weights that FSDP gathers for a forward pass."""
    model.apply_loss = lambda loss, batch: loss(model, batch)
    register_fsdp_forward_method(model, "apply_loss")


def _check(model: Llama, data: int, context: int, tensor: int, shards: int, seq_len: int, batch_size: int) -> None:
    spec = model.spec
    for what, value, ranks in (
        ("seq_len", seq_len, context * tensor),
        ("n_kv_heads", spec.n_kv_heads, tensor),
        ("ffn_dim", spec.ffn_dim, tensor),
        ("dim", spec.dim, shards if tensor > 1 else 1),
    ):
        if value % ranks:
            raise TenfoldError(f"[parallel] cannot divide {what} {value} by {ranks}: change the layout, or {what}.")
    if batch_size < data:
        raise TenfoldError(f"[parallel] divides {batch_size} rows a step over {data} processes: use fewer, or raise batch_size.")
    if expert_layers(model) and batch_size % data:
        raise TenfoldError(f"A model with experts needs a batch_size that {data} data parallel processes divide, not {batch_size}.")
    if model.mtp is not None and context * tensor > 1:
        raise TenfoldError("Tokens ahead are trained on whole rows: set mtp = 0 in [task], or cp and tp to 1.")
    if getattr(model, "balance_weight", 0.0):
        raise TenfoldError('A balance loss depends on what one process sees: say load_balancing = "aux_loss_free" on several processes.')


def _check_experts(model: Llama, expert: int, shards: int) -> None:
    if expert == 1:
        return
    spec = model.spec
    if expert < 1 or not expert_layers(model):
        raise TenfoldError(f"[parallel] has ep = {expert}: it must be at least 1, and only a model with experts divides them.")
    for what, value, ranks in (
        ("n_experts", spec.n_experts, expert),
        ("dp_shard x cp x tp", shards, expert),
        ("dim", spec.dim, shards // expert),
        ("expert_ffn_dim", spec.expert_ffn_dim, shards // expert),
    ):
        if value % ranks:
            raise TenfoldError(f"[parallel] with ep = {expert} cannot divide {what} {value} by {ranks}: change one of the two.")


def _check_pipeline(model: Llama, stages: int, rows: int, micro: int | None) -> None:
    if stages == 1:
        return
    if model.mtp is not None:
        raise TenfoldError("Tokens ahead are not trained in a pipeline: set mtp = 0 in [task], or pp = 1 in [parallel].")
    if getattr(model, "vision", None) is not None:
        raise TenfoldError("Images are not trained in a pipeline: set pp = 1 in [parallel].")
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
