"""The losses of DPO, KTO and GRPO as functions of log-probabilities, as TRL 1.16 defines them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.learn.options import DPOLoss, GRPOLoss, ImportanceSampling


def dpo(chosen: Tensor, rejected: Tensor, lengths: tuple[Tensor, Tensor], beta: float, kind: DPOLoss) -> Tensor:
    """The loss of each pair, from the log-ratios (policy - reference) of its answers and their lengths in tokens.

    sigmoid: arXiv 2305.18290; ipo: arXiv 2310.12036, with log-ratios per token; sigmoid_norm: sigmoid with log-ratios per token.
    """
    if kind == "sigmoid":
        return -F.logsigmoid(beta * (chosen - rejected))
    difference = chosen / lengths[0].clamp(min=1) - rejected / lengths[1].clamp(min=1)
    return (difference - 1 / (2 * beta)).square() if kind == "ipo" else -F.logsigmoid(beta * difference)


def kto(ratios: Tensor, good: Tensor, mismatched: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The loss of each answer (arXiv 2402.01306, equation 7), from its log-ratio and those of `mismatched` answers.

    `weights` are those of good answers and of the others.
    """
    # The mean of no values is NaN, and would make the gradients NaN, too.
    kl = (mismatched.mean() if mismatched.numel() else mismatched.sum()).clamp(min=0).detach()
    gained = torch.sigmoid(beta * (ratios - kl))
    return torch.where(good, weights[0] * (1 - gained), weights[1] * gained)


def advantages(rewards: Tensor, scaled: bool) -> Tensor:
    """Rewards [groups, answers] minus the mean of their group; `scaled` divides them by its standard deviation."""
    difference = rewards - rewards.mean(1, keepdim=True)
    return difference / (rewards.std(1, keepdim=True) + 1e-4) if scaled else difference


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """PPO's clipped loss of each token; `ratio` is its probability over that when it was drawn."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def is_clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Which tokens are clipped, so that `clipped` has no gradient for them."""
    return ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))


def kl_to(reference: Tensor, log_probs: Tensor, ratio: Tensor) -> Tensor:
    """An estimate of the KL divergence from the reference at each token, never below zero.

    The factor `ratio` makes its gradient that of the divergence (arXiv 2512.02556).
    """
    return ratio * (torch.exp(reference - log_probs) - (reference - log_probs) - 1)


def ratios(log_ratio: Tensor, answer: Tensor, answers: int, mode: ImportanceSampling) -> Tensor:
    """The importance ratio of each token, or of its whole answer with a `sequence_...` mode: trainer's over sampler's probability.

    log_ratio [tokens] is the trainer's log-probability minus the sampler's, answer [tokens] the number of each token's answer.
    """
    if mode.startswith("sequence"):
        log_ratio = log_ratio.new_zeros(answers).index_add(0, answer, log_ratio)[answer]
    return log_ratio.exp()


def importance(ratio: Tensor, mode: ImportanceSampling, cap: float) -> Tensor:
    """The importance weight of each token, for the difference between sampler and trainer: its ratio, which above `cap` is cut to
    `cap` (truncate) or set to zero (mask)."""
    return ratio.clamp(max=cap) if mode.endswith("truncate") else ratio.masked_fill(ratio > cap, 0.0)


def reduced(losses: Tensor, answer: Tensor, answers: int, kind: GRPOLoss) -> Tensor:
    """The sum of the losses [tokens], which a step divides by `divisor`; for grpo the sum of each answer's mean."""
    if kind != "grpo":
        return losses.sum()
    return (losses / torch.bincount(answer, minlength=answers).clamp(min=1)[answer]).sum()


def divisor(kind: GRPOLoss, tokens: int, answers: int, longest: int) -> float:
    """What the sum of a step is divided by. dapo and bnpo: its tokens; dr_grpo: the tokens that its answers could have at most;
    grpo: its answers."""
    return float({"grpo": answers, "dr_grpo": answers * longest}.get(kind, max(1, tokens)))
