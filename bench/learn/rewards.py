"""GRPO on reasoning-gym's sums (bench/learn/arithmetic.py): success on unseen prompts before and after half an hour of training.

    python -m bench.learn.rewards --minutes 30

Both models answer the same prompts greedily. The interval of the difference is paired by prompt (bootstrap).
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.harness import Headline, Row, options, write_results
from bench.learn import arithmetic
from bench.learn.arithmetic import UNSEEN, prompts, reward
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import GRPOOptions, RewardSource, TuneSettings
from tenfold.learn.sampler import draw
from tenfold.learn.tune import tune_on_rewards
from tenfold.learn.walk import smollm2, unpacked
from tenfold.model.io.huggingface import read_model
from tenfold.serve.request import Sampling
from tenfold.train.metrics import read_metrics

ASKED = 300  # unseen prompts


def successes(model: Path, longest: int) -> np.ndarray:
    """For each of `ASKED` prompts that are not in the training set: whether the model answers it correctly."""
    learned = {str(row["prompt"]) for row in prompts()}
    found = {str(row["prompt"]): row for row in prompts(UNSEEN, 10 * ASKED)}
    unseen = [row for prompt, row in found.items() if prompt not in learned][:ASKED]
    encoder, network = ChatEncoder.of(model), read_model(model)
    sampling = Sampling(temperature=0.0, max_tokens=longest, stop_tokens=encoder.vocabulary.stop_tokens)
    drawn = draw(network, [encoder.prompt(row["prompt"]) for row in unseen], sampling, 0)
    said = [[{"content": encoder.tokenizer.decode(answers[0].tokens)}] for answers in drawn]
    return np.array(reward(said, [row["ideal"] for row in unseen])) > 0


def seconds_of_a_step(directory: Path) -> float:
    times = [row["time"] for row in read_metrics(directory / "run.jsonl") if row["event"] == "step"]
    return float(np.median(np.diff(times)))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="a model in Hugging Face layout; by default SmolLM2-135M-Instruct")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--longest", type=int, default=24, help="most tokens of an answer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=96)
    parser.add_argument("--learning-rate", type=float)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = given.model or unpacked(smollm2(), Path(tempfile.mkdtemp()) / "smollm2")
    before = successes(model, given.longest)
    print(f"before: {before.mean():.1%}", flush=True)
    chosen = GRPOOptions(max_completion_length=given.longest, validation_prompts=32)
    source = RewardSource(str(arithmetic.__file__))
    with tempfile.TemporaryDirectory() as scratch:

        def train(name: str, steps: int) -> Path:
            settings = TuneSettings(steps=steps, seq_len=given.seq_len, batch_size=given.batch, learning_rate=given.learning_rate)
            tune_on_rewards(model, source, Path(scratch) / name, settings, options=chosen, quiet=True)
            return Path(scratch) / name

        steps = max(5, int(60 * given.minutes / seconds_of_a_step(train("probe", 4))))
        began = time.perf_counter()
        run = train("run", steps)
        minutes = (time.perf_counter() - began) / 60
        after = successes(run / "model", given.longest)
    gain = after.astype(float) - before
    draws = gain[np.random.default_rng(0).integers(0, len(gain), (10_000, len(gain)))].mean(1)
    low, high = (float(x) for x in np.quantile(draws, (0.025, 0.975)))
    row: Row = {
        "steps": steps, "minutes": minutes, "prompts": len(before), "before": float(before.mean()),
        "after": float(after.mean()), "gain": float(gain.mean()), "interval": [low, high],
    }  # fmt: skip
    print(row)
    write_results("rewards", [row], headline(row))


def headline(row: Row) -> Headline:
    points, (low, high) = 100 * row["gain"], (100 * x for x in row["interval"])
    yield f"GRPO on sums, {row['minutes']:.0f} minutes", f"{points:+.0f} points (95 %: {low:+.0f} to {high:+.0f})"


if __name__ == "__main__":
    main()
