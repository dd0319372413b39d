"""Results of requests that generate nothing: the embedding of a prompt, or the scores of its tokens."""

import torch
from torch import Tensor

from tenfold.serve.request import Output, Sequence
from tenfold.serve.runners.runner import Runner

_ROWS = 64  # whose logits over the vocabulary are in memory at once


class Pooler:
    """Gathers what each `embed` or `score` sequence needs of its hidden states, which come in pieces."""

    def __init__(self, runner: Runner):
        self._runner = runner
        self._sums: dict[Sequence, Tensor] = {}
        self._scores: dict[Sequence, list[tuple[float, tuple[int, float]]]] = {}

    def add(self, s: Sequence, hidden: Tensor) -> None:
        """Take hidden states [n, dim] of the tokens from `s.computed` on. A preempted sequence begins again at 0."""
        if s.computed == 0:
            self.forget(s)
        if s.request.task == "embed":
            self._sums[s] = self._sums.get(s, 0) + hidden.sum(0)
        else:
            following = s.tokens[s.computed + 1 : s.computed + 1 + len(hidden)]  # one fewer at the end of the prompt
            self._scores.setdefault(s, []).extend(self._logprobs(hidden[: len(following)], following))

    def _logprobs(self, hidden: Tensor, tokens: list[int]) -> list[tuple[float, tuple[int, float]]]:
        """The log-probability of each token, and the likeliest token in its place with its own."""
        found: list[tuple[float, tuple[int, float]]] = []
        for at in range(0, len(tokens), _ROWS):
            log = self._runner.logits(hidden[at : at + _ROWS]).log_softmax(-1)
            of = log.gather(-1, torch.tensor(tokens[at : at + _ROWS], device=log.device)[:, None])[:, 0]
            most, place = log.max(-1)
            found += zip(of.tolist(), zip(place.tolist(), most.tolist(), strict=True), strict=True)
        return found

    def finish(self, s: Sequence) -> Output:
        """The result of a sequence whose tokens are all computed."""
        output = Output(s.request.id, 0, finish_reason="stop")
        if s.request.task == "embed":
            mean = self._sums[s].float() / s.n_prompt
            output.embedding = (mean / mean.norm().clamp(min=1e-12)).tolist()
        else:
            output.scores = [score for score, _ in self._scores[s]]
            output.likeliest = [likeliest for _, likeliest in self._scores[s]]
        return output

    def forget(self, s: Sequence) -> None:
        self._sums.pop(s, None)
        self._scores.pop(s, None)
