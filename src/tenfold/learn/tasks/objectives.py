"""The losses of preferences and rewards as functions of log-probabilities: DPO, KTO and GRPO as TRL 1.16 defines them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.learn.options import DPOLoss, GRPOLoss, ImportanceSampling


def dpo(chosen: Tensor, rejected: Tensor, lengths: tuple[Tensor, Tensor], beta: float, kind: DPOLoss) -> Tensor:
    """The loss of each pair, from the log-ratios (policy less reference) of its answers and their lengths in tokens.

    sigmoid: arXiv 2305.18290; ipo: arXiv 2310.12036, per token; sigmoid_norm: log-ratios per token.
    """
    if kind == "sigmoid":
        return -F.logsigmoid(beta * (chosen - rejected))
    difference = chosen / lengths[0].clamp(min=1) - rejected / lengths[1].clamp(min=1)
    return (difference - 1 / (2 * beta)).square() if kind == "ipo" else -F.logsigmoid(beta * difference)


def kto(ratios: Tensor, good: Tensor, mismatched: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The loss of each answer (arXiv 2402.01306, equation 7), from its log-ratio, and those of other prompts' answers.

    `weights` are those of good and of other answers.
    """
    # The mean of no values is NaN, and would make the gradients NaN, too.
    kl = (mismatched.mean() if mismatched.numel() else mismatched.sum()).clamp(min=0).detach()
    gained = torch.sigmoid(beta * (ratios - kl))
    return torch.where(good, weights[0] * (1 - gained), weights[1] * gained)


def advantages(rewards: Tensor, scaled: bool) -> Tensor:
    """How much better each answer is than its group's mean, rewards [groups, answers]; `scaled` by the standard deviation."""
    difference = rewards - rewards.mean(1, keepdim=True)
    return difference / (rewards.std(1, keepdim=True) + 1e-4) if scaled else difference


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """PPO's loss of each token, for the ratio of its probability to that when it was drawn."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def is_clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Where `clipped` has no gradient."""
    return ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))


def kl_to(reference: Tensor, log_probs: Tensor, ratio: Tensor) -> Tensor:
    """The KL divergence from a reference at each token, never below zero; times the ratio its gradient is that of the divergence
    (arXiv 2512.02556)."""
    return ratio * (torch.exp(reference - log_probs) - (reference - log_probs) - 1)


def ratios(log_ratio: Tensor, answer: Tensor, answers: int, mode: ImportanceSampling) -> Tensor:
    """How much likelier the trainer finds each token, or its whole answer (sequence), than the sampler found it.

    log_ratio [tokens] is the trainer's log-probability less the sampler's, answer [tokens] the number of its answer.
    """
    if mode.startswith("sequence"):
        log_ratio = log_ratio.new_zeros(answers).index_add(0, answer, log_ratio)[answer]
    return log_ratio.exp()


def importance(ratio: Tensor, mode: ImportanceSampling, cap: float) -> Tensor:
    """The weight of each token for having been drawn by another program, or by other weights, than are trained: its ratio, which
    is cut to `cap` where it is above it (truncate), or made zero (mask)."""
    return ratio.clamp(max=cap) if mode.endswith("truncate") else ratio.masked_fill(ratio > cap, 0.0)


def reduced(losses: Tensor, answer: Tensor, answers: int, kind: GRPOLoss) -> Tensor:
    """The sum of losses [tokens] that a step divides by `divisor`."""
    if kind != "grpo":
        return losses.sum()
    return (losses / torch.bincount(answer, minlength=answers).clamp(min=1)[answer]).sum()


def divisor(kind: GRPOLoss, tokens: int, answers: int, longest: int) -> float:
    """dapo and bnpo: the tokens of a step; dr_grpo: those that its answers could have had; grpo: the answers, each of which
    counts by the mean of its tokens."""
    return float({"grpo": answers, "dr_grpo": answers * longest}.get(kind, max(1, tokens)))
