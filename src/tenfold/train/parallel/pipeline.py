"""Pipeline parallelism: adjacent layers form a stage, stages are on different processes, and micro-batches pass through them.

    stage 0: embedding, first layers  ->  stage 1: more layers  ->  ...  ->  last stage: last layers, norm, head, loss

`torch.distributed.pipelining` schedules the passes: one forward, one backward (1F1B, arXiv 2104.04473); the same with several
stages per process (interleaved, section 2.2 there); or the latter with the gradients of weights deferred to where a process would
wait otherwise (zero bubble, arXiv 2401.10241).
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import Schedule1F1B, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from tenfold.model.llama import Block, Llama
from tenfold.spec.layout import Layout, stage_layers
from tenfold.train.task import Batch, Task

SCHEDULES: dict[str, Any] = {
    "1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleInterleavedZeroBubble,
}  # fmt: skip


class Stage(nn.Module):
    """The layers `numbers` of a model; the first stage also has the embedding, the last one the norm, the head and the loss.

    A head that is tied to the embedding is a second copy of it; `Pipeline.add_tied` sums the gradients of both, so they stay equal.
    """

    def __init__(self, model: Llama, numbers: range):
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): model.layers[i] for i in numbers})
        self.is_first, self.is_last = 0 in numbers, model.spec.n_layers - 1 in numbers
        if self.is_first or (self.is_last and model.spec.tied):
            self.embedding = model.embedding
        if self.is_last:
            self.norm, self.head = model.norm, model.head
        self.spec = model.spec
        self._model = [model]  # in a list, so that it is not registered as a submodule

    def forward(
        self, x: Tensor, length: int, targets: Tensor, document: Tensor | None = None, task: Task | None = None, **inputs: Tensor
    ) -> Tensor:
        """From tokens [B, T] (first stage) or hidden states [B, T, dim] to hidden states, or on the last stage to the task's
        `LossSums` as a tensor [1, 2]. Rows have `length` tokens, of which a process may hold a part, T."""
        model = self._model[0]
        blocks: list[tuple[int, Block]] = [(int(i), block) for i, block in self.blocks.items()]  # type: ignore[misc]
        x = model.through(model.embed(x) if self.is_first else x, document, blocks, length)
        if not self.is_last:
            return x
        assert task is not None
        self._last_hidden = self.norm(x)
        sums = task.loss(self, Batch(targets, targets, document, inputs))
        return torch.stack((sums.loss[None], sums.extra[None]), 1)

    def hidden(self, *_: Any, **__: Any) -> Tensor:
        """Takes the place of `Llama.hidden` in a task's loss: the last hidden state of the batch that passed through all stages."""
        return self._last_hidden

    def extra_loss(self, hidden: Tensor, *_: Any) -> Tensor:
        """Zero: `parallelize` refuses models with additional losses in a pipeline."""
        return torch.zeros((), device=hidden.device)

    loss = Llama.loss


def cut(model: Llama, layout: Layout, rank: int) -> dict[int, Stage]:
    """Reduce `model` to the stages of process `rank` of a pipeline, in place; returns the stages by their numbers.

    The remaining weights keep their names.
    """
    count = layout.pp * layout.stages_per_rank
    numbers = stage_layers(model.spec.n_layers, count)
    stages = {s: Stage(model, numbers[s]) for s in range(rank, count, layout.pp)}
    model.blocks = nn.ModuleDict({i: block for stage in stages.values() for i, block in stage.blocks.items()})  # type: ignore[assignment]
    if not any(hasattr(stage, "embedding") for stage in stages.values()):
        model.embedding = None  # type: ignore[assignment]
    if not any(stage.is_last for stage in stages.values()):
        model.norm = model.head = None  # type: ignore[assignment]
    return stages


class _PipelineStage(PipelineStage):
    """PyTorch's stage, but with receive buffers only while they are in use, instead of for all micro-batches at once."""

    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
        return self._without_room(super()._prepare_forward_infra, *args, **kwargs)

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
        return self._without_room(super()._prepare_backward_infra, *args, **kwargs)

    def _without_room(self, prepare: Any, *args: Any, **kwargs: Any) -> Any:
        """Make `prepare` allocate its buffers, one per micro-batch, on the meta device; their shapes are already known."""
        device, self.device = self.device, torch.device("meta")
        try:
            return prepare(*args, **kwargs)
        finally:
            self.device = device

    def _get_recv_ops(self, recv_infos: Any) -> Any:
        _renew_buffers(recv_infos, self.device)
        return super()._get_recv_ops(recv_infos)

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> Any:
        received = super()._retrieve_recv_activations(fwd_chunk_id)
        _renew_buffers(self.args_recv_info[fwd_chunk_id], torch.device("meta"))
        return received

    def _retrieve_recv_grads(self, bwd_chunk_id: int) -> Any:
        received = super()._retrieve_recv_grads(bwd_chunk_id)
        _renew_buffers(self.grad_recv_info[bwd_chunk_id], torch.device("meta"))
        return received


def _renew_buffers(recv_infos: Any, device: torch.device) -> None:
    """Replace the buffers in `recv_infos` by empty ones on `device`."""
    for info in recv_infos:
        if getattr(info, "buffer", None) is not None:
            info.buffer = torch.empty_like(info.buffer, device=device, requires_grad=False)


class HiddenStates(NamedTuple):
    """The dtype and device of the hidden states that stages exchange; the dtype is the one that weights are gathered in."""

    dtype: torch.dtype
    device: torch.device


class Pipeline:
    """The forward and backward passes of the processes in a pipeline. All of them call the same methods with the same rows."""

    def __init__(self, task: Task, stages: dict[int, Stage], layout: Layout, group: Any, hidden: HiddenStates):
        spec = next(iter(stages.values())).spec
        self.tied, self._dim = spec.tied, spec.dim
        self._task, self._stages, self._schedule, self.group = task, stages, layout.schedule, group
        self.processes: int = group.size()
        self._dtype, self._device = hidden
        self._parts = layout.cp * layout.tp  # how many processes the positions of a row are divided over
        self._count = self.processes * len(stages)
        self._made: dict[tuple[int, int, int], Any] = {}
        self._weight = 1.0

    @property
    def stages(self) -> list[Stage]:
        """The stages on this process."""
        return list(self._stages.values())

    @property
    def holds_first(self) -> bool:
        """Whether this process has the first stage, with the embedding."""
        return 0 in self._stages

    @property
    def holds_last(self) -> bool:
        """Whether this process has the last stage, with the loss."""
        return self._count - 1 in self._stages

    def step(self, batch: Batch, micro: int, weight: float) -> Tensor | float:
        """The forward and backward passes of a batch, in micro-batches of `micro` rows; the number of rows must be a multiple of
        `micro` times the number of processes.

        Adds the gradients of the loss divided by `weight` to the parameters. Returns the summed loss on the last stage, else 0.
        """
        tokens = batch.tokens
        key = micro, len(tokens) // micro, tokens.shape[1]
        schedule = self._made.get(key) or self._made.setdefault(key, self._make(*key))
        self._weight = weight
        first = [tokens] if self.holds_first else []
        last = {"target": batch.targets} if self.holds_last else {}
        out = schedule.step(*first, **last, **self._inputs(batch))
        return out[:, 0].detach().sum() if self.holds_last else 0.0

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        """The summed loss of a batch, without gradients, on the last stage; elsewhere 0."""
        x = tokens = batch.tokens
        for index, stage in sorted(self._stages.items()):
            if index:
                x = self._hidden(len(tokens), tokens.shape[1], self._device)
                dist.recv(x, group=self.group, group_src=(index - 1) % self.processes)
            x = stage(x, **self._inputs(batch))
            if index + 1 < self._count:
                dist.send(x.contiguous(), group=self.group, group_dst=(index + 1) % self.processes)
        return float(x[0, 0]) if self.holds_last else 0.0

    def add_tied(self, gradient: Tensor) -> bool:
        """Add to the gradient of a tied embedding the gradient of its copy on the other stage.

        Returns whether this gradient is that of the copy, on the last stage.
        """
        other = torch.empty_like(gradient)
        peer = 0 if self.holds_last else self.processes - 1
        ways = ((dist.isend, gradient.contiguous()), (dist.irecv, other))
        for work in dist.batch_isend_irecv([dist.P2POp(way, t, group=self.group, group_peer=peer) for way, t in ways]):
            work.wait()
        gradient += other
        return self.holds_last

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """The inputs of every stage besides tokens or hidden states."""
        document = {} if batch.document is None else {"document": batch.document}
        return {"length": batch.tokens.shape[1], "targets": batch.targets, "task": self._task, **document, **batch.inputs}

    def _make(self, micro: int, parts: int, length: int) -> Any:
        tokens = torch.empty(micro, length, dtype=torch.int64, device="meta")
        hidden = self._hidden(micro, length, torch.device("meta")).requires_grad_()
        sums = torch.empty(1, 2, device="meta").requires_grad_()
        stages = [
            _PipelineStage(
                stage, index, self._count, self._device, input_args=hidden if index else tokens,
                output_args=sums if index == self._count - 1 else hidden, group=self.group,
            )
            for index, stage in self._stages.items()
        ]  # fmt: skip

        def loss(sums: Tensor, target: Tensor) -> Tensor:
            return sums.sum() / self._weight

        one = len(stages) == 1
        return SCHEDULES[self._schedule](stages[0] if one else stages, parts, loss_fn=loss, scale_grads=False)

    def _hidden(self, rows: int, length: int, device: torch.device) -> Tensor:
        return torch.empty(rows, length // self._parts, self._dim, dtype=self._dtype, device=device)
