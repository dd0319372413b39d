"""Answers of a model in training, drawn by the serving engine in this process from the trainer's own weights."""

from collections import defaultdict
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tenfold.model.llama import Llama
from tenfold.serve.engine.engine import Engine
from tenfold.serve.engine.scheduler import SchedulerConfig
from tenfold.serve.request import Request, Sampling, Sequence
from tenfold.serve.runners import native
from tenfold.serve.runners.runner import BLOCK, Runner, TorchRunner
from tenfold.spec.errors import TenfoldError

SEQUENCES = 64  # drawn at once


@dataclass(frozen=True)
class Drawn:
    """An answer: its tokens, with the stop token where it `ended` with one, and the sampler's log-probability of each token."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool


class RecordingEngine(Engine):
    """An engine that keeps every token it draws, also stop tokens, with its log-probability at the sampling temperature."""

    def __init__(self, runner: Runner, n_blocks: int, config: SchedulerConfig):
        super().__init__(runner, n_blocks, config)
        self.drawn: defaultdict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)

    def _draw(self, logits: Tensor, best: int, s: Sequence) -> int:
        token = super()._draw(logits, best, s)
        scaled = logits / s.request.sampling.temperature if s.request.sampling.temperature else logits
        self.drawn[s.request.id, s.index].append((token, float(scaled[token] - scaled.logsumexp(-1))))
        return token


def draw(model: Llama, prompts: Several[list[int]], sampling: Sampling, seed: int) -> list[list[Drawn]]:
    """`sampling.n` answers to each prompt (lists of tokens); a pure function of the weights and `seed`.

    Tokens are drawn from the whole distribution, because with top_p or top_k a sampler's log-probabilities are not the trainer's.
    Raises TenfoldError where an answer fails.
    """
    longest = max(map(len, prompts)) + sampling.max_tokens + 1
    sequences = min(SEQUENCES, len(prompts) * sampling.n)
    n_blocks = (sequences + 2) * -(-longest // BLOCK)
    trained = [p for p in model.parameters() if p.requires_grad]
    device = model.embedding.weight.device.type
    try:
        with torch.autocast(device, enabled=False):  # the cache has the dtype of the weights
            runner, config = _runner(model, n_blocks), SchedulerConfig(max_num_batched_tokens=256, max_num_seqs=sequences)
            engine = RecordingEngine(runner, n_blocks, config)
            for i, prompt in enumerate(prompts):
                own = replace(sampling, seed=seed + i * sampling.n, top_p=1.0, top_k=0)
                engine.add(Request(str(i), list(prompt), own))
            return _run(engine, len(prompts), sampling)
    finally:
        model.train()
        for p in trained:
            p.requires_grad_(True)


def _runner(model: Llama, n_blocks: int) -> Runner:
    """The compiled CPU step where it supports the model (it makes a copy of the weights in its own layout), else PyTorch."""
    plain = all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))
    if plain and model.embedding.weight.device.type == "cpu" and native.fits(model.spec) and native.library():
        return native.NativeRunner(model, n_blocks, "float32", torch.get_num_threads())
    return TorchRunner(model, n_blocks)


def _run(engine: RecordingEngine, prompts: int, sampling: Sampling) -> list[list[Drawn]]:
    ended: dict[tuple[str, int], bool] = {}
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise TenfoldError(f"An answer could not be drawn: {output.error}")
            ended[output.request_id, output.index] = output.finish_reason == "stop"
    return [
        [
            Drawn([token for token, _ in engine.drawn[key]], [value for _, value in engine.drawn[key]], ended[key])
            for key in ((str(i), k) for k in range(sampling.n))
        ]
        for i in range(prompts)
    ]
