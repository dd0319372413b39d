"""Losses of the next item, as sums over the targets that are not -100, from hidden states [tokens, dim] and items [vocab, dim].

The loss over the full softmax is `tenfold.model.loss.cross_entropy`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EQUAL = -1e9  # the logit of a negative that equals the target


def sampled_softmax(hidden: Tensor, items: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor) -> Tensor:
    """Negative log-likelihood in nats of the target among itself and `negatives` int64 [n], which all targets share.

    The negatives are drawn with replacement, with probabilities whose logarithms are `log_q` [n]. Their logits are corrected by
    -log(n q), so that the sum over the negatives estimates that over the whole catalogue (Bengio and Senecal 2008). The target is
    always present and is not corrected (arXiv 2507.09331).
    """
    hidden, targets = _counted(hidden, targets)
    positive, negative = _logits(hidden, items, targets, negatives)
    corrected = negative - (log_q + torch.log(torch.tensor(float(len(negatives)), device=items.device)))
    return (torch.cat((positive[:, None], corrected), 1).logsumexp(1) - positive).sum()


def binary_cross_entropy(hidden: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """SASRec's loss: binary cross-entropy with label 1 for the target, and the mean of those with label 0 for the negatives."""
    hidden, targets = _counted(hidden, targets)
    positive, negative = _logits(hidden, items, targets, negatives)
    return F.softplus(-positive).sum() + F.softplus(negative).mean(1).sum()


def _counted(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    there = targets >= 0
    return hidden[there], targets[there]


def _logits(hidden: Tensor, items: Tensor, targets: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the targets [tokens] and of the negatives [tokens, n], float32."""
    positive = (hidden * F.embedding(targets, items)).sum(1)
    negative = hidden @ F.embedding(negatives, items).T
    return positive.float(), negative.float().masked_fill(negatives == targets[:, None], EQUAL)
