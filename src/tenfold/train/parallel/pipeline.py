"""Pipeline parallel: neighbouring layers form a stage, stages lie on different processes, and parts of the batch go through them.

    stage 0: embedding, first layers  ->  stage 1: more layers  ->  ...  ->  last stage: last layers, norm, head, loss

`torch.distributed.pipelining` orders the passes: one forward, one backward (1F1B, arXiv 2104.04473); the same with two stages on
each process, interleaved (section 2.2 there); or those with the gradients of weights put off to where a process would wait
(zero bubble, arXiv 2401.10241).
"""

from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from tenfold.model.llama import Block, Llama
from tenfold.model.loss import cross_entropy
from tenfold.spec.errors import TenfoldError
from tenfold.train.config import Schedule

SCHEDULES: dict[str, Any] = {
    "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B, "zero-bubble": ScheduleInterleavedZeroBubble,
}  # fmt: skip


class Stage(nn.Module):
    """Layers `numbers` of a model, its embedding before the first of all, its norm, head and loss behind the last.

    A head that is tied to the embedding is a second copy of it, which `Pipeline.add_tied` keeps the same.
    """

    def __init__(self, model: Llama, numbers: range):
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): model.layers[i] for i in numbers})
        self.is_first, self.is_last = 0 in numbers, model.spec.n_layers - 1 in numbers
        if self.is_first or (self.is_last and model.spec.tied):
            self.embedding = model.embedding
        if self.is_last:
            self.norm, self.head = model.norm, model.head
        self._model = [model]  # in a list, so that it is no part of this module

    def forward(
        self, x: Tensor, length: int, targets: Tensor, document: Tensor | None = None, z_loss: float = 0.0
    ) -> Tensor:
        """Tokens [B, T] or hidden states [B, T, dim] to hidden states, or to the sums [1, 2] of `Llama.loss`; T may be a part of
        the row's `length`."""
        model = self._model[0]
        blocks: list[tuple[int, Block]] = [(int(i), block) for i, block in self.blocks.items()]  # type: ignore[misc]
        x = model.through(model.embed(x) if self.is_first else x, document, blocks, length)
        if not self.is_last:
            return x
        nats, extra = cross_entropy(model.norm(x).flatten(0, 1), model.head.weight, targets.flatten(), z_loss)
        return torch.stack((nats[None], extra[None]), 1)


def stages_each(schedule: Schedule) -> int:
    """How many stages lie on each process."""
    return 1 if schedule == "1f1b" else 2


def divided(layers: int, stages: int) -> list[range]:
    """The layers of each stage. They differ by one at most; the ends, which hold a table too, are the first to have fewer."""
    from_the_ends = sorted(range(stages), key=lambda s: min(2 * s + 1, 2 * (stages - 1 - s)))
    longer = from_the_ends[stages - layers % stages :]
    ends = list(accumulate(layers // stages + (s in longer) for s in range(stages)))
    return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]


def cut(model: Llama, processes: int, rank: int, schedule: Schedule) -> dict[int, Stage]:
    """Leave to process `rank` of a pipeline its stages of `model`, in place; returns them by their places in the pipeline.

    Weights keep their names. Raises TenfoldError where there are fewer layers than stages.
    """
    count = processes * stages_each(schedule)
    layers = model.spec.n_layers
    if layers < count:
        raise TenfoldError(f"[layout] cannot cut {layers} layers into {count} stages: lower pipeline, or use schedule = \"1f1b\".")
    numbers = divided(layers, count)
    stages = {s: Stage(model, numbers[s]) for s in range(rank, count, processes)}
    model.blocks = nn.ModuleDict({i: block for stage in stages.values() for i, block in stage.blocks.items()})  # type: ignore[assignment]
    if not any(hasattr(stage, "embedding") for stage in stages.values()):
        model.embedding = None  # type: ignore[assignment]
    if not any(stage.is_last for stage in stages.values()):
        model.norm = model.head = None  # type: ignore[assignment]
    return stages


def micro_batch(rows: int, processes: int, asked: int | None) -> int:
    """How many of a process's `rows` go through a pipeline together: as `asked`, or so that each process has a part."""
    return asked or max(1, rows // processes)


class Pipeline:
    """What the processes that share a batch do with it together; each calls the same methods with the same rows."""

    def __init__(
        self, model: Llama, stages: dict[int, Stage], schedule: Schedule, group: Any, device: torch.device, parts: int,
        dtype: torch.dtype,
    ):  # fmt: skip
        self.tied = model.spec.tied
        self._dim, self._stages, self._schedule, self.group, self._device = model.spec.dim, stages, schedule, group, device
        self.processes: int = group.size()
        self._dtype = dtype  # of hidden states: that in which weights are gathered
        self._count = self.processes * len(stages)
        self._parts = parts  # of each row's positions: what a process holds of hidden states
        self._made: dict[tuple[int, int, int], Any] = {}
        self._targets = 1

    @property
    def stages(self) -> list[Stage]:
        """The stages on this process."""
        return list(self._stages.values())

    @property
    def holds_last(self) -> bool:
        """Whether this process has the last stage, and so the loss."""
        return self._count - 1 in self._stages

    def step(
        self, tokens: Tensor, targets: Tensor, document: Tensor | None, z_loss: float, micro: int, targets_total: int
    ) -> Tensor | float:
        """The passes of rows tokens [B, T], of which every `micro` go together; B is a multiple of `micro` times the processes.

        Leaves gradients of the loss divided by `targets_total`; returns the sum of nats on the last stage, elsewhere 0.
        """
        key = micro, len(tokens) // micro, tokens.shape[1]
        schedule = self._made.get(key) or self._made.setdefault(key, self._make(*key))
        self._targets = targets_total
        inputs = {"length": tokens.shape[1], "targets": targets, "z_loss": z_loss}
        inputs |= {} if document is None else {"document": document}
        out = schedule.step(*([tokens] if 0 in self._stages else []), **({"target": targets} if self.holds_last else {}), **inputs)
        return out[:, 0].detach().sum() if self.holds_last else 0.0

    @torch.no_grad()
    def loss(self, tokens: Tensor, targets: Tensor, document: Tensor | None) -> float:
        """The sum of nats over rows tokens [B, T] on the last stage, else 0."""
        x = tokens
        for index, stage in sorted(self._stages.items()):
            if index:
                x = self._hidden(len(tokens), tokens.shape[1], self._device)
                dist.recv(x, group=self.group, group_src=(index - 1) % self.processes)
            x = stage(x, tokens.shape[1], targets, document)
            if index + 1 < self._count:
                dist.send(x.contiguous(), group=self.group, group_dst=(index + 1) % self.processes)
        return float(x[0, 0]) if self.holds_last else 0.0

    def add_tied(self, gradient: Tensor) -> bool:
        """Add to the gradient of a tied embedding that of its copy at the other end; says whether this one is the copy."""
        other = torch.empty_like(gradient)
        peer = 0 if self.holds_last else self.processes - 1
        ways = ((dist.isend, gradient.contiguous()), (dist.irecv, other))
        for work in dist.batch_isend_irecv([dist.P2POp(way, t, group=self.group, group_peer=peer) for way, t in ways]):
            work.wait()
        gradient += other
        return self.holds_last

    def _make(self, micro: int, parts: int, length: int) -> Any:
        tokens = torch.empty(micro, length, dtype=torch.int64, device="meta")
        hidden = self._hidden(micro, length, torch.device("meta")).requires_grad_()
        sums = torch.empty(1, 2, device="meta").requires_grad_()
        stages = [
            PipelineStage(
                stage, index, self._count, self._device, input_args=hidden if index else tokens,
                output_args=sums if index == self._count - 1 else hidden, group=self.group,
            )
            for index, stage in self._stages.items()
        ]  # fmt: skip

        def loss(sums: Tensor, target: Tensor) -> Tensor:
            return sums.sum() / self._targets

        one = self._schedule == "1f1b"
        return SCHEDULES[self._schedule](stages[0] if one else stages, parts, loss_fn=loss, scale_grads=False)

    def _hidden(self, rows: int, length: int, device: torch.device) -> Tensor:
        return torch.empty(rows, length // self._parts, self._dim, dtype=self._dtype, device=device)
