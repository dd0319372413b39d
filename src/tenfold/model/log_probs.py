"""Log-probabilities of given target tokens, computed in chunks so that the logits are never all in memory.

Preference and reward losses are functions of these log-probabilities, so their gradient is known only after all of them are
computed. The backward pass therefore recomputes the logits of each chunk, unlike the one in `tenfold.model.loss`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.model.loss import chunk_rows


def document_log_probs(model: Any, tokens: Tensor, targets: Tensor, document: Tensor, documents: int) -> Tensor:
    """The summed log-probability of each document's targets: float32 [rows, documents], 0 for a number that no document has.

    tokens, targets and document are [rows, T]; document numbers lie in 0 ... `documents` - 1; targets of -100 do not count.
    """
    chosen = targets >= 0
    values = target_log_probs(model, tokens, targets, document)
    row = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    place = (row * documents + document)[chosen]
    return torch.zeros(len(tokens) * documents, device=tokens.device).index_add(0, place, values).view(len(tokens), documents)


def target_log_probs(model: Any, tokens: Tensor, targets: Tensor, document: Tensor | None, temperature: float = 1.0) -> Tensor:
    """The log-probability of each target that is not -100, row by row: float32 [targets].

    Logits are divided by `temperature`, and are computed only at these targets.
    """
    chosen = targets >= 0
    hidden = model.hidden(tokens, document)[chosen]
    return log_probs(hidden, model.head.weight, targets[chosen], temperature)


def log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probabilities float32 [n] of the targets [n], given the hidden states [n, dim] and the head `weight` [vocab, dim]."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _LogProbs.apply(hidden / temperature if temperature != 1 else hidden, weight, targets)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        found, log_z = (torch.empty(len(hidden), device=hidden.device) for _ in range(2))
        for some in _chunks(hidden, weight):
            logits = F.linear(hidden[some], weight).float()
            log_z[some] = logits.logsumexp(-1)
            found[some] = logits.gather(1, targets[some, None])[:, 0] - log_z[some]
        ctx.save_for_backward(hidden, weight, targets, log_z)
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for some in _chunks(hidden, weight):
            scale = grad_outputs[0][some, None]
            grad = F.linear(hidden[some], weight).float().sub_(log_z[some, None]).exp_().mul_(-scale)
            grad = grad.scatter_add_(1, targets[some, None], scale).to(weight.dtype)
            torch.mm(grad, weight, out=grad_hidden[some])
            if grad_weight is None:
                continue
            if grad.dtype == grad_weight.dtype:
                grad_weight.addmm_(grad.T, hidden[some])
            else:
                grad_weight += grad.T @ hidden[some]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows = chunk_rows(weight)
    return [slice(start, start + rows) for start in range(0, len(hidden), rows)]
