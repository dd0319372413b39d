"""The gate: a generation is released only where it does better than the one before on prompts that it has not learned.

The test is paired. For each held-out prompt it takes the nats of the right answer under both models; the mean difference has
to be below zero beyond noise, by Student's t and by the bootstrap. A forecast of it, made from the validation users, is written
down before it is measured.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from tenfold.data.conversations.chats import Chat, prompt_of, read_chats
from tenfold.data.conversations.packing import pack
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.data import PARTS, VERSION, sha256, write_versioned
from tenfold.model.io.huggingface import read_model, weights_hash
from tenfold.serve.options import model_path
from tenfold.spec.errors import TenfoldError
from tenfold.spec.forecasts import LEVELS, Forecast, forecast, outcome
from tenfold.spec.versions import read_document

FEWEST = 5  # prompts that a test needs
RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedTest:
    """The mean of differences, NEW less OLD, with two 95 % intervals."""

    n: int
    mean: float
    t_interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]

    @property
    def passed(self) -> bool:
        """Whether NEW is better: both intervals lie below zero."""
        return max(self.t_interval[1], self.bootstrap_interval[1]) < 0


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Raises TenfoldError where there are too few, or one is not a number."""
    d = _checked(differences, "held-out")
    mean, half = float(d.mean()), float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    drawn = np.random.default_rng(0).integers(0, len(d), (RESAMPLES, len(d)))
    low, high = np.quantile(d[drawn].mean(1), (0.025, 0.975))
    return PairedTest(len(d), mean, (mean - half, mean + half), (float(low), float(high)))


def predicted(differences: Sequence[float], n: int) -> tuple[float, ...]:
    """Quantiles of the mean of `n` further differences like these: Student's t with the noise of both means."""
    d = _checked(differences, "validation")
    scale = d.std(ddof=1) * math.sqrt(1 / len(d) + 1 / n)
    return tuple(float(d.mean() + scale * stats.t.ppf(level, len(d) - 1)) for level in LEVELS)


def _checked(differences: Sequence[float], which: str) -> np.ndarray:
    if len(differences) < FEWEST or not np.isfinite(differences).all():
        raise TenfoldError(f"The gate needs at least {FEWEST} {which} prompts with finite losses, not {list(differences)}.")
    return np.asarray(differences, float)


def answer_nats(model: Path) -> Callable[[Sequence[Chat]], np.ndarray]:
    """A function that gives the nats of each chat's answers under a model, in its own tokens: comparable whatever these are."""
    encoder, network = ChatEncoder.of(model), read_model(model)

    @torch.no_grad()
    def nats(chats: Sequence[Chat]) -> np.ndarray:
        encoded = [encoder.encode(chat) for chat in chats]
        rows = [pack([one], len(one.tokens) - 1).rows for one in encoded]
        return np.array([float(network.loss(torch.from_numpy(row.tokens), torch.from_numpy(row.targets))[0]) for row in rows])

    return nats


def gate(new: Path, against: Path, home: Path) -> dict[str, Any]:
    """Judge the generation `new`, and write its gate.json. A verdict that stands for these weights and data is kept.

    Raises TenfoldError where `new` lacks its lineage, or too few prompts are held out.
    """
    lineage = read_document(new / "lineage.json", VERSION, "tune the model with `tenfold learn sft`")
    weights, old = model_path(new), model_path(against)
    hashes = {"new": weights_hash(weights), "old": weights_hash(old)}
    for part in PARTS:
        hashes[part] = sha256(file := new / "data" / f"{part}.jsonl")
        if hashes[part] != lineage["data"][part]:
            raise TenfoldError(f"{file} is not what {new} was tuned with: tune it again.")
    key = f"learn/gate/{hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]}"
    verdict = new / "gate.json"
    if not verdict.exists() or read_gate(new)["forecast"] != key:
        names = {"new": str(new.resolve()), "old": str(against.resolve())}
        write_versioned(verdict, {**names, "hashes": hashes, **_judge(new, old, home, key, hashes)})
    judged = read_gate(new)
    outcome(home, key, judged["test"]["mean"])
    return judged


def read_gate(new: Path) -> dict[str, Any]:
    """The verdict on a generation. Raises TenfoldError where there is none."""
    return read_document(new / "gate.json", VERSION, f"judge it with `tenfold learn gate {new} --against OLD`")


def _judge(new: Path, old: Path, home: Path, key: str, hashes: dict[str, str]) -> dict[str, Any]:
    train, validation, held_out = (read_chats(new / "data" / f"{part}.jsonl") for part in PARTS)
    learned = [prompt_of(chat) for chat in train]
    unseen = [chat for chat in held_out if prompt_of(chat) not in learned]
    of_new, of_old = answer_nats(model_path(new)), answer_nats(old)
    quantiles = predicted(of_new(validation) - of_old(validation), len(unseen))
    data = {name: hashes[name] for name in ("validation", "new", "old")}
    forecast(home, Forecast(key=key, who="learn", kind="paired_difference", unit="nats/answer", quantiles=quantiles, data=data))
    test = paired_test(of_new(unseen) - of_old(unseen))
    said = "finds the right answers likelier" if test.passed else "is not better beyond noise"
    low, high = test.t_interval
    reason = f"{new.name} {said}: {test.mean:+.2f} nats an answer (95 %: {low:+.2f} to {high:+.2f}) on {test.n} held-out prompts."
    return {
        "passed": test.passed, "reason": reason, "test": asdict(test), "unit": "nats/answer", "forecast": key,
        "quantiles": quantiles, "left_out_prompts": len(held_out) - len(unseen),
    }  # fmt: skip
