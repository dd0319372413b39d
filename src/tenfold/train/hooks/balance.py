"""Balance the load of experts without an auxiliary loss, and count it."""

from typing import Any, cast

import torch
from torch import Tensor

from tenfold.model.moe import expert_layers, router_statistics, update_expert_bias
from tenfold.train.hook import Hook
from tenfold.train.run import Run
from tenfold.train.state import StepOutput


class LoadBalancing(Hook):
    """Changes the experts' biases by `rate` after every step (0: never), and counts the tokens of each expert between logs.

    The biases decay to zero over the last share `decay` of the run, as the learning rate does, because a Llama 4 checkpoint has no
    place for them. `loads` has the tokens of each expert on this process since the last log, one tensor [experts] per layer with
    experts on this process.
    """

    def __init__(self, rate: float, decay: float):
        self._rate, self._decay = rate, decay
        self.loads: list[Tensor] = []

    def start(self, run: Run) -> None:
        self.loads = [torch.zeros_like(layer.load) for layer in expert_layers(run.model)]

    def after_step(self, run: Run, done: StepOutput) -> None:
        left, fade = run.steps - run.state.step, self._decay * run.steps
        if self._rate:
            keep = left / (left + 1) if left < fade else 1.0
            update_expert_bias(run.model, self._rate, keep=keep, group=run.dims.stage_group)
        for total, layer in zip(self.loads, expert_layers(run.model), strict=True):
            total += layer.load
            layer.load.zero_()

    def take_statistics(self, run: Run) -> dict[str, Any]:
        """How evenly the experts of all layers were used since the last call, by the tokens of all processes, as
        `router_statistics`; resets the counts. All processes must call it together."""
        found = router_statistics(_loads_of_all(run, self.loads))
        for load in self.loads:
            load.zero_()
        return found


def _loads_of_all(run: Run, own: list[Tensor]) -> list[Tensor]:
    """The load of every layer with experts, over all processes; `own` are the loads of this process's layers, in their order."""
    spec = run.spec
    if not spec.n_experts:
        return []
    # In a pipeline a process has some of the layers only, under their numbers in the whole model.
    here = [int(name) for name, _ in cast(Any, run.model).blocks.named_children() if spec.has_experts(int(name))]
    loads = torch.zeros(spec.n_layers, spec.n_experts, dtype=torch.float64)
    for layer, load in zip(here, own, strict=True):
        loads[layer] = load.cpu()
    summed = torch.tensor(run.dims.total(*loads.flatten().tolist()), dtype=torch.float64).view_as(loads)
    return [load for layer, load in enumerate(summed) if spec.has_experts(layer)]
