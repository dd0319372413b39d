"""GRPO on a task of reasoning-gym that has one right answer: success on unseen prompts before and after half an hour.

    python -m bench.learn.rewards --model generations/smollm2-135m/model --task basic_arithmetic --minutes 30

Both models answer the same prompts by their likeliest tokens; the interval of the difference is paired by prompt (bootstrap).
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import reasoning_gym
import torch

from bench.harness import Headline, Row, options, write_results
from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.options import GRPOOptions, RewardSource, TuneSettings
from tenfold.learn.rewards import GYM
from tenfold.learn.sampler import draw
from tenfold.learn.tune import tune_on_rewards
from tenfold.model.io.huggingface import read_model
from tenfold.serve.request import Sampling
from tenfold.train.metrics import read_metrics

ASKED = 300  # unseen prompts
RIGHT = 0.99  # some tasks pay a little for a wrong answer


def successes(model: Path, task: str, longest: int) -> np.ndarray:
    """Whether each unseen prompt is answered rightly."""
    dataset, encoder, network = reasoning_gym.create_dataset(task, size=ASKED, seed=99), ChatEncoder.of(model), read_model(model)
    entries = list(dataset)
    prompts = [encoder.prompt([{"role": "user", "content": entry["question"]}]) for entry in entries]
    sampling = Sampling(temperature=0.0, max_tokens=longest, stop_tokens=encoder.vocabulary.stop_tokens)
    drawn = draw(network, prompts, sampling, 0)
    texts = [encoder.tokenizer.decode(answers[0].tokens) for answers in drawn]
    return np.array([dataset.score_answer(text.strip(), entry) >= RIGHT for text, entry in zip(texts, entries, strict=True)])


def seconds_of_a_step(directory: Path) -> float:
    times = [row["time"] for row in read_metrics(directory / "run.jsonl") if row["event"] == "step"]
    return float(np.median(np.diff(times)))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="in Hugging Face layout")
    parser.add_argument("--task", default="basic_arithmetic")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--longest", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=96)
    parser.add_argument("--learning-rate", type=float)
    given = parser.parse_args()
    torch.manual_seed(0)
    before = successes(given.model, given.task, given.longest)
    print(f"before: {before.mean():.1%}", flush=True)
    chosen = GRPOOptions(max_completion_length=given.longest, validation_prompts=32)
    source = RewardSource(f"{GYM}{given.task}")
    with tempfile.TemporaryDirectory() as scratch:

        def train(name: str, steps: int) -> Path:
            settings = TuneSettings(steps=steps, seq_len=given.seq_len, batch_size=given.batch, learning_rate=given.learning_rate)
            tune_on_rewards(given.model, source, Path(scratch) / name, settings, options=chosen, quiet=True)
            return Path(scratch) / name

        steps = max(5, int(60 * given.minutes / seconds_of_a_step(train("probe", 4))))
        began = time.perf_counter()
        run = train("run", steps)
        minutes = (time.perf_counter() - began) / 60
        after = successes(run / "model", given.task, given.longest)
    gain = after.astype(float) - before
    draws = gain[np.random.default_rng(0).integers(0, len(gain), (10_000, len(gain)))].mean(1)
    low, high = (float(x) for x in np.quantile(draws, (0.025, 0.975)))
    row: Row = {
        "task": given.task, "steps": steps, "minutes": minutes, "prompts": ASKED, "before": float(before.mean()),
        "after": float(after.mean()), "gain": float(gain.mean()), "interval": [low, high],
    }  # fmt: skip
    print(row)
    write_results("rewards", [row], headline(row))


def headline(row: Row) -> Headline:
    points, (low, high) = 100 * row["gain"], (100 * x for x in row["interval"])
    yield f"GRPO on {row['task']}, {row['minutes']:.0f} minutes", f"{points:+.0f} points (95 %: {low:+.0f} to {high:+.0f})"


if __name__ == "__main__":
    main()
