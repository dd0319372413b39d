"""Results of requests that generate no tokens: the embedding of a prompt, or the log-probabilities of its tokens."""

import torch
from torch import Tensor

from tenfold.serve.request import Output, Sequence, TokenLogprob
from tenfold.serve.runners.runner import Runner

_ROWS = 64  # rows of logits [rows, vocab] that are in memory at once


class Pooler:
    """Accumulates the results of `embed` and `score` sequences, whose hidden states come in pieces, one a step.

    An embedding is the mean of the last hidden states over the prompt, scaled to length 1.
    """

    def __init__(self, runner: Runner):
        self._runner = runner
        self._sums: dict[Sequence, Tensor] = {}
        self._scores: dict[Sequence, list[TokenLogprob]] = {}

    def add(self, s: Sequence, hidden: Tensor) -> None:
        """Add the hidden states [n, dim] of the tokens from `s.computed` on. A preempted sequence starts again at 0."""
        if s.computed == 0:
            self.forget(s)
        if s.request.task == "embed":
            self._sums[s] = self._sums.get(s, 0) + hidden.sum(0)
        else:
            following = s.tokens[s.computed + 1 : s.computed + 1 + len(hidden)]  # one fewer at the end of the prompt
            count = s.request.sampling.logprobs or 0
            self._scores.setdefault(s, []).extend(self._logprobs(hidden[: len(following)], following, count))

    def _logprobs(self, hidden: Tensor, tokens: list[int], count: int) -> list[TokenLogprob]:
        found: list[TokenLogprob] = []
        for at in range(0, len(tokens), _ROWS):
            log = self._runner.logits(hidden[at : at + _ROWS]).log_softmax(-1)
            own = tokens[at : at + _ROWS]
            values = log.gather(-1, torch.tensor(own, device=log.device)[:, None])[:, 0].tolist()
            likeliest = log.topk(min(count, log.shape[-1]))
            tops = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            found += [TokenLogprob(t, v, list(zip(*top, strict=True))) for t, v, top in zip(own, values, tops, strict=True)]
        return found

    def finish(self, s: Sequence) -> Output:
        """The output of a sequence whose prompt has been computed."""
        output = Output(s.request.id, 0, finish_reason="stop")
        if s.request.task == "embed":
            mean = self._sums[s].float() / s.n_prompt
            output.embedding = (mean / mean.norm().clamp(min=1e-12)).tolist()
        else:
            output.scores = self._scores[s]
        return output

    def forget(self, s: Sequence) -> None:
        self._sums.pop(s, None)
        self._scores.pop(s, None)
