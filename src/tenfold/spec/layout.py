"""The layout of a training step over processes, which trainer, planner and dry run share, and checks of what can be built.

world = pp x dp_replicate x dp_shard x cp x tp          (neighbouring ranks are in one tensor parallel group)
"""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tenfold.spec.errors import TenfoldError
from tenfold.spec.model import ModelSpec

Schedule = Literal["1f1b", "interleaved", "zero_bubble"]
ActivationCheckpointing = Literal["none", "selective", "full"]
Size = Annotated[int, Meta(ge=1)]


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parallel dimensions, the batch, and what is sharded or recomputed. The names of the dimensions are torchtitan's.

    A `dp_shard` of 0 counts as 1 until `for_world` replaces it.
    """

    dp_replicate: Annotated[Size, Meta(description="Copies of the weights, each sharded over a group of ranks (HSDP).")] = 1
    dp_shard: Annotated[
        int, Meta(ge=0, description="Data parallel ranks that shard one copy of the weights (FSDP); 0: all that the others leave.")
    ] = 0
    cp: Annotated[Size, Meta(description="Context parallel: ranks that divide the tokens of a sequence.")] = 1
    tp: Annotated[Size, Meta(description="Tensor parallel: ranks that divide the matrices of a layer.")] = 1
    pp: Annotated[Size, Meta(description="Pipeline parallel: ranks that divide the layers.")] = 1
    ep: Annotated[Size, Meta(description="Expert parallel: neighbouring ranks that divide the experts of a layer.")] = 1
    etp: Annotated[Size, Meta(description="Ranks that divide each expert: 1, experts stay whole; tp, as in Megatron.")] = 1
    schedule: Annotated[Schedule, Meta(description="Pipeline schedule: 1f1b, interleaved or zero_bubble.")] = "1f1b"
    virtual_stages: Annotated[
        int, Meta(ge=0, description="Stages of the pipeline on each rank; 0: one for 1f1b, two for the other schedules.")
    ] = 0
    micro_batch: Annotated[
        int, Meta(ge=0, description="Sequences in one forward pass of a rank; 0: all that it has, in a pipeline 1/pp of them.")
    ] = 0
    activation_checkpointing: Annotated[
        ActivationCheckpointing,
        Meta(description="What the backward pass recomputes: none, selective (inside feed-forwards) or full (whole blocks)."),
    ] = "none"
    zero: Annotated[
        int, Meta(ge=0, le=3, description="Sharded over dp_shard x cp: 1 optimizer, 2 gradients too, 3 parameters too (FSDP).")
    ] = 3
    global_batch: Annotated[Size, Meta(description="Sequences in a step.")] = 1
    seq_len: Annotated[Size, Meta(description="Tokens in a sequence.")] = 8192
    dtype: Annotated[str, Meta(description="Data type of matrix products: bf16, fp8 or fp4.")] = "bf16"

    @property
    def dp(self) -> int:
        """Data parallel ranks: those that get different rows (sequences)."""
        return self.dp_replicate * max(1, self.dp_shard)

    @property
    def world(self) -> int:
        """The number of processes, one for each accelerator."""
        return self.pp * self.dp * self.cp * self.tp

    @property
    def shards(self) -> int:
        """Ranks over which one copy of the dense weights is sharded."""
        return max(1, self.dp_shard) * self.cp

    @property
    def replicas(self) -> int:
        """Ranks that would hold the same dense weights if nothing were sharded."""
        return self.dp * self.cp

    @property
    def expert_shards(self) -> int:
        """Ranks over which the experts that one rank holds are sharded."""
        whole = self.tp if self.etp == 1 and self.ep > 1 else 1
        return max(1, self.shards * whole // self.ep)

    @property
    def stages_per_rank(self) -> int:
        """Pipeline stages on each rank."""
        return self.virtual_stages or (1 if self.schedule == "1f1b" or self.pp == 1 else 2)

    @property
    def rows(self) -> int:
        """The largest number of rows that one data parallel rank has in a step."""
        return math.ceil(self.global_batch / self.dp)

    @property
    def rows_together(self) -> int:
        """Rows in one micro-batch of a rank."""
        return self.micro_batch or (self.rows if self.pp == 1 else max(1, self.rows // self.pp))

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches of a rank in a step."""
        return math.ceil(self.rows / self.rows_together)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.seq_len

    def words(self) -> str:
        """The layout in words: `TP 8, PP 16 x4, DP 128, micro-batch 1, recompute selective, ZeRO-3 over 64`."""
        parts = [f"TP {self.tp}", f"PP {self.pp}" + (f" x{self.stages_per_rank}" if self.stages_per_rank > 1 else "")]
        parts += [f"CP {self.cp}"] * (self.cp > 1) + [f"EP {self.ep}"] * (self.ep > 1)
        sharding = f"ZeRO-{self.zero}" + (f" over {self.shards}" if self.dp_replicate > 1 else "")
        recompute = f"recompute {self.activation_checkpointing}"
        return ", ".join([*parts, f"DP {self.dp}", f"micro-batch {self.rows_together}", recompute, sharding])

    def replace(self, **changes: Any) -> "Layout":
        """The same layout with other values."""
        return msgspec.structs.replace(self, **changes)


def for_world(layout: Layout, world: int) -> Layout:
    """`layout` with a dp_shard of 0 replaced by `world` divided by the other dimensions.

    Raises TenfoldError if the product of all dimensions is not `world`.
    """
    others = layout.pp * layout.dp_replicate * layout.cp * layout.tp
    layout = layout.replace(dp_shard=layout.dp_shard or max(1, world // others))
    if layout.world != world:
        first = f"pp {layout.pp} x " if layout.pp > 1 else ""
        raise TenfoldError(
            f"[parallel] needs {first}dp_replicate {layout.dp_replicate} x dp_shard {layout.dp_shard} x cp {layout.cp} x tp "
            f"{layout.tp} = {layout.world} processes, but there are {world}: start as many, or change one of them."
        )
    return layout


def check(layout: Layout, spec: ModelSpec) -> str:
    """A sentence that says why `spec` cannot be trained in this layout; empty if it can."""
    return next((fault for faults in (_rows, _dense, _experts, _pipeline) for fault in faults(layout, spec)), "")


def check_trainer(layout: Layout, spec: ModelSpec) -> str:
    """A sentence that says why Tenfold's own trainer cannot train `spec` in this layout; empty if it can."""
    if layout.world > 1 and layout.zero != 3:
        return "The trainer shards parameters too: set zero = 3 in [parallel]."
    if layout.etp != 1:
        return "The trainer keeps experts whole: set etp = 1 in [parallel]."
    return check(layout, spec)


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each pipeline stage. Their numbers differ by one at most; the last stage (with the head) and the first (with
    the embedding) are the first to get a layer fewer."""
    from_the_ends = sorted(range(stages), key=lambda s: min(2 * s + 1, 2 * (stages - 1 - s)))
    longer = from_the_ends[stages - layers % stages :]
    ends = list(accumulate(layers // stages + (s in longer) for s in range(stages)))
    return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]


def _rows(layout: Layout, spec: ModelSpec) -> Iterator[str]:
    batch, dp = layout.global_batch, layout.dp
    if batch < dp:
        yield f"[parallel] divides {batch} rows a step over {dp} processes: use fewer, or raise batch_size."
    if spec.n_experts and batch % dp:
        yield f"A model with experts needs a batch_size that {dp} data parallel processes divide, not {batch}."


def _dense(layout: Layout, spec: ModelSpec) -> Iterator[str]:
    for what, value, ranks in (
        ("seq_len", layout.seq_len, layout.cp * layout.tp),
        ("n_kv_heads", spec.n_kv_heads, layout.tp),
        ("ffn_dim", spec.ffn_dim, layout.tp),
        # Matrices that tensor parallel ranks cut by rows are sharded by columns, in equal parts.
        ("dim", spec.dim, layout.shards if layout.tp > 1 and layout.zero == 3 else 1),
    ):
        if value % ranks:
            yield f"[parallel] cannot divide {what} {value} by {ranks}: change the layout, or {what}."


def _experts(layout: Layout, spec: ModelSpec) -> Iterator[str]:
    if layout.etp not in (1, layout.tp):
        yield f"[parallel] has etp = {layout.etp}: it must be 1 or tp = {layout.tp}."
    if layout.ep == 1:
        return
    if not spec.n_experts:
        yield f"[parallel] has ep = {layout.ep}, but only a model with experts divides them."
    ranks, words = layout.shards, "dp_shard x cp"
    if layout.etp == 1:
        ranks, words = ranks * layout.tp, f"{words} x tp"
    each = ranks // layout.ep if layout.zero == 3 else 1
    for what, value, parts in (
        ("n_experts", spec.n_experts, layout.ep),
        (words, ranks, layout.ep),
        ("dim", spec.dim, each),
        ("expert_ffn_dim", spec.expert_ffn_dim, each),
    ):
        if parts and value % parts:
            yield f"[parallel] with ep = {layout.ep} cannot divide {what} {value} by {parts}: change one of the two."


def _pipeline(layout: Layout, spec: ModelSpec) -> Iterator[str]:
    each, stages = layout.stages_per_rank, layout.pp * layout.stages_per_rank
    if layout.pp == 1:
        return
    if (layout.schedule == "1f1b") != (each == 1):
        least = "one stage" if layout.schedule == "1f1b" else "at least two stages"
        yield f'[parallel] schedule = "{layout.schedule}" has {least} on each rank, not virtual_stages = {each}.'
    if spec.n_layers < stages:
        yield f'[parallel] cannot cut {spec.n_layers} layers into {stages} stages: lower pp, or use schedule = "1f1b".'
    if spec.vision is not None:
        yield "Images are not trained in a pipeline: set pp = 1 in [parallel]."
    rows, together = layout.global_batch // layout.dp, layout.pp * layout.rows_together
    if spec.n_experts and rows % together:  # padding rows in the last micro-batch would count in the experts' load
        yield (
            f"A pipeline of {layout.pp} sends a model with experts {together} rows at a time, which does not divide the {rows} "
            "rows of a process: change batch_size or micro_batch."
        )
