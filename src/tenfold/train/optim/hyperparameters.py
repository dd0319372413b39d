"""Derive batch size, learning rates and weight decay for a run of any size, with the reason for each value.

- Width: maximal-update parametrisation for Adam (Yang et al., arXiv 2203.03466, table 8), without multipliers in the model, so that
  checkpoints are plain Llama.
- Depth: the learning rate of matrices that write to the residual stream is proportional to 1 / layers (CompleteP, arXiv
  2505.01618).
- Horizon: the learning rate is proportional to tokens^-HORIZON_EXPONENT (Bjorck et al., arXiv 2409.19913, find that it falls with
  the number of tokens); the exponent is 0, so it does not depend on tokens here.
- Batch: batch tokens are proportional to tokens^0.383 (nanochat), and the learning rate to the square root of the batch.
- Weight decay: matrices shrink by 1 / steps per step, so that the time scale of the decay is a fixed share of the run (Wang and
  Aitchison, arXiv 2405.13698).

The values at the base size were measured by `bench/train/transfer.py`; its results are in `bench/results/transfer.json`.
"""

import math
from dataclasses import dataclass

from tenfold.model.family import Role, family_of
from tenfold.spec.model import ModelSpec

BASE_WIDTH = 128
BASE_LAYERS = 3
BASE_TOKENS = 1e6
BASE_BATCH_TOKENS = 512.0
BASE_LEARNING_RATE = 0.0204  # of AdamW
BASE_MUON_LEARNING_RATE = 0.0109
BATCH_EXPONENT = 0.383
HORIZON_EXPONENT = 0.0
DECAY_TIME_SCALE = 1.0  # of weight decay, as a share of the run
BASE_BETA2 = 0.99


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of a run.

    `batch_size` is in sequences. `learning_rate` is AdamW's peak for a hidden matrix of width `BASE_WIDTH`, `muon_learning_rate`
    Muon's peak. `weight_decay` is the share by which matrices shrink per step at the peak. `reasons` has the reason for every
    value that was derived, by its name.
    """

    batch_size: int
    steps: int
    learning_rate: float
    muon_learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    reasons: dict[str, str]


def derive(
    tokens: int,
    seq_len: int,
    *,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    beta2: float | None = None,
) -> Hyperparameters:
    """Hyperparameters for training on `tokens` tokens. Arguments that are given are kept; the others are derived."""
    reasons = {}
    if batch_size is None:
        batch_tokens = BASE_BATCH_TOKENS * (tokens / BASE_TOKENS) ** BATCH_EXPONENT
        batch_size = max(1, round(batch_tokens / seq_len))
        reasons["batch_size"] = f"{BASE_BATCH_TOKENS:.0f} tokens x (tokens / 1M)^{BATCH_EXPONENT}"
    steps = max(1, round(tokens / (batch_size * seq_len)))
    if learning_rate is None:
        batch = math.sqrt(batch_size * seq_len / BASE_BATCH_TOKENS)
        horizon = (BASE_TOKENS / tokens) ** HORIZON_EXPONENT
        learning_rate = BASE_LEARNING_RATE * batch * horizon
        reasons["learning_rate"] = f"{BASE_LEARNING_RATE:g} x sqrt(batch) {batch:.2f} x horizon {horizon:.2f}"
    if weight_decay is None:
        weight_decay = 1.0 / (DECAY_TIME_SCALE * steps)
        reasons["weight_decay"] = f"1 / ({DECAY_TIME_SCALE:g} x {steps} steps)"
    if beta2 is None:
        beta2 = min(0.999, max(0.9, BASE_BETA2 ** (batch_size * seq_len / BASE_BATCH_TOKENS)))
        reasons["beta2"] = "a constant half-life in tokens, within 0.9 and 0.999"
    muon = learning_rate * BASE_MUON_LEARNING_RATE / BASE_LEARNING_RATE
    return Hyperparameters(batch_size, steps, learning_rate, muon, weight_decay, 0.9, beta2, reasons)


def learning_rate_scale(name: str, shape: tuple[int, ...], spec: ModelSpec) -> float:
    """The factor of a parameter's learning rate relative to `Hyperparameters.learning_rate`, for AdamW.

    It is 1 for vectors and embeddings, and BASE_WIDTH / fan-in for matrices. For matrices that write to the residual stream, the
    width of the stream takes the place of the fan-in, and the factor is multiplied by BASE_LAYERS / layers. For adapters, the width
    takes the place of the fan-in.
    """
    if ".lora_" in name:
        return BASE_WIDTH / spec.dim
    role = family_of(spec).role(name)
    if not role.is_matrix:
        return 1.0
    scale = BASE_WIDTH / shape[-1]
    if role in (Role.RESIDUAL, Role.ENCODER_RESIDUAL):
        scale *= shape[-1] / shape[-2]
        scale *= BASE_LAYERS / spec.n_layers
    return scale
