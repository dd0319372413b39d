"""Draws tokens from logits. Each sequence has its own generator, so its draws do not depend on what else is in the batch."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tenfold.serve.engine.grammar import Matcher
from tenfold.serve.request import Sampling, Sequence, TokenLogprob


@dataclass
class SamplerState:
    """A sequence's sampling state: its generator, how often it has generated each token, and its position in its grammar."""

    generator: torch.Generator
    seed: int = 0  # 31 bits, for draws on a device
    counts: Counter[int] = field(default_factory=Counter)
    matcher: Matcher | None = None
    drawn: float | None = None  # TokenLogprob.drawn of the last token, if the request asks for log-probabilities


def start(sequence: Sequence, fallback_seed: int) -> SamplerState:
    """The state before the first token. Continuation i of a request draws like a request with seed + i."""
    seed = sequence.request.sampling.seed
    seed = fallback_seed if seed is None else seed
    seed = (seed + sequence.index) % 2**63
    return SamplerState(torch.Generator().manual_seed(seed), seed % 2**31)


def adjust(logits: Tensor, sequence: Sequence, state: SamplerState) -> Tensor:
    """Logits [vocab] after `logit_bias`, penalties and `min_tokens`.

    The penalties are OpenAI's presence and frequency penalties and CTRL's repetition penalty (arXiv 1909.05858).
    """
    s = sequence.request.sampling
    if s.logit_bias:
        logits = logits.clone()
        tokens = torch.tensor(list(s.logit_bias))
        logits[tokens] += torch.tensor(list(s.logit_bias.values()))
    if s.repetition_penalty != 1:
        seen = torch.tensor(sorted({*sequence.request.tokens, *state.counts}))
        values = logits[seen]
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
    if (s.presence_penalty or s.frequency_penalty) and state.counts:
        logits = logits.clone()
        tokens = torch.tensor(list(state.counts))
        counts = torch.tensor([float(c) for c in state.counts.values()])
        logits[tokens] -= s.presence_penalty + s.frequency_penalty * counts
    if sequence.n_output < s.min_tokens and s.stop_tokens:
        logits = logits.clone()
        logits[torch.tensor(list(s.stop_tokens))] = -torch.inf
    return logits


def best(logits: Tensor) -> list[int]:
    """The most likely token of each row of logits [rows, vocab]. On a CPU, NumPy's argmax is vectorised and faster than torch's."""
    return (logits.argmax(-1) if logits.is_cuda else logits.numpy().argmax(-1)).tolist()


def draw(logits: Tensor, s: Sampling, state: SamplerState) -> int:
    """Draw a token from adjusted logits [vocab]: temperature, then top-k, top-p and min-p, then one uniform random number."""
    if s.temperature < 1e-5:
        return best(logits[None])[0]
    uniform = float(torch.rand((), generator=state.generator))
    scaled = logits.numpy() / np.float32(s.temperature)
    if s.top_p >= 1 and s.top_k <= 0 and s.min_p <= 0:
        return _choose(np.exp(scaled - scaled.max()), uniform)
    tokens, weights = candidates(scaled, s)
    return int(tokens[_choose(weights, uniform)])


def candidates(scaled: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that pass top-k, top-p and min-p, the most likely first, and their weights exp(logit - largest logit).

    `scaled` are the logits [vocab] divided by the temperature. Top-p counts shares of what top-k leaves.
    """
    top = scaled.max()
    if s.top_k > 0:
        tokens = largest(scaled, s.top_k)
        weights = np.exp(scaled[tokens].astype(np.float64) - top)
        total = weights.sum()
    else:
        total = np.exp(scaled - top).sum(dtype=np.float64)
        deepest = 1e-3 - np.log(s.min_p) if s.min_p > 0 else np.inf
        for depth in (8.0, 16.0, np.inf):  # sort few tokens first, and more if these do not hold top_p
            tokens = np.flatnonzero(scaled >= top - np.float32(min(depth, deepest)))
            tokens = tokens[np.argsort(-scaled[tokens])]
            weights = np.exp(scaled[tokens].astype(np.float64) - top)
            if depth >= deepest or weights.sum() >= s.top_p * total:
                break
    kept = max(1, int(((weights.cumsum() - weights < s.top_p * total) & (weights >= s.min_p)).sum()))
    return tokens[:kept], weights[:kept]


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of values [n], the largest first."""
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    count = min(count, len(values))
    found = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return found[np.argsort(-values[found])][:count]


def _choose(weights: np.ndarray, uniform: float) -> int:
    """An index drawn with probability in proportion to its weight, by `uniform` in [0, 1)."""
    cumulative = torch.from_numpy(weights).cumsum(-1, dtype=torch.float64).numpy()
    return min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(weights) - 1)


def drawn_logprob(logits: Tensor, s: Sampling, token: int) -> float | None:
    """The log-probability with which `draw` gives `token` from adjusted logits [vocab].

    It is 0 for greedy decoding, and None for a token that `draw` would never give: then another program has drawn it.
    """
    if s.temperature < 1e-5:
        return 0.0
    scaled = logits.numpy() / np.float32(s.temperature)
    if s.top_p >= 1 and s.top_k <= 0 and s.min_p <= 0:
        return float(scaled[token] - np.logaddexp.reduce(scaled.astype(np.float64)))
    tokens, weights = candidates(scaled, s)
    found = weights[tokens == token]
    return float(np.log(found[0] / weights.sum())) if len(found) else None


def logprob(logits: Tensor, token: int, count: int, drawn: float | None = None) -> TokenLogprob:
    """Log-probabilities of `token` and of the `count` most likely tokens, from the model's unadjusted logits [vocab]."""
    log = logits.log_softmax(-1).numpy()
    likeliest = largest(log, count)
    return TokenLogprob(token, float(log[token]), list(zip(likeliest.tolist(), log[likeliest].tolist(), strict=True)), drawn)
