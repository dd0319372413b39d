"""From logits to tokens. Each sequence draws from a generator of its own, so that its tokens depend on its seed alone."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold.serve.grammar import Matcher
from tenfold.serve.request import Sampling, Sequence, TokenLogprob

_NUCLEUS = 256  # the likeliest tokens that are sorted first; the rest only where they do not hold top_p


@dataclass
class SamplerState:
    """What is remembered of a sequence: its generator, how often it wrote each token, where it stands in its grammar."""

    generator: torch.Generator
    seed: int = 0  # of 31 bits
    counts: Counter[int] = field(default_factory=Counter)
    matcher: Matcher | None = None


def start(sequence: Sequence, fallback_seed: int) -> SamplerState:
    """The state before the first token; continuation i of a request draws as a request of seed + i would."""
    seed = sequence.request.sampling.seed
    seed = fallback_seed if seed is None else seed
    seed = (seed + sequence.index) % 2**63
    return SamplerState(torch.Generator().manual_seed(seed), seed % 2**31)


def adjust(logits: Tensor, sequence: Sequence, state: SamplerState) -> Tensor:
    """Logits [vocab] after bias and penalties (OpenAI's presence and frequency; CTRL's repetition, arXiv 1909.05858)."""
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


def draw(logits: Tensor, s: Sampling, state: SamplerState) -> int:
    """One token from adjusted logits [vocab]: temperature, then top-k, top-p and min-p, then one uniform number."""
    if s.temperature < 1e-5:
        return int(logits.argmax())
    uniform = torch.rand((), generator=state.generator)
    scaled = logits / s.temperature
    if s.top_p >= 1 and s.top_k <= 0 and s.min_p <= 0:
        cumulative = scaled.softmax(-1, dtype=torch.float64).cumsum(-1)
        return min(int(torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)), len(logits) - 1)
    probabilities, order = _likeliest(scaled, s)
    mass = probabilities.cumsum(-1)
    keep = (mass - probabilities < s.top_p) & (probabilities >= s.min_p * probabilities[0])
    cumulative = (probabilities * keep).cumsum(-1)
    return int(order[min(int(torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)), int(keep.sum()) - 1)])


def _likeliest(scaled: Tensor, s: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities of the likeliest tokens, float64, falling, and the tokens: enough of them for top-k, top-p and min-p."""
    vocab = len(scaled)
    if s.top_k > 0:
        values, order = scaled.topk(min(s.top_k, vocab))
        return values.softmax(-1, dtype=torch.float64), order
    total = scaled.double().logsumexp(-1)
    for count in (_NUCLEUS, vocab):
        values, order = scaled.topk(min(count, vocab))
        probabilities = (values.double() - total).exp()
        if float(probabilities.sum()) >= s.top_p or float(probabilities[-1]) < s.min_p * float(probabilities[0]):
            break
    return probabilities, order


def logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    """Log-probabilities of `token` and of the `count` likeliest, from the model's own logits [vocab]."""
    log = logits.log_softmax(-1)
    values, order = log.topk(count)
    return TokenLogprob(token, float(log[token]), list(zip(order.tolist(), values.tolist(), strict=True)))
