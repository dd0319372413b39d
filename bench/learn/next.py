"""From 600 judgements of simulated users to the next generation: do people who were never asked like its answers better?

    python -m bench.learn.next                                   # SmolLM2-135M-Instruct, `tenfold learn next --kind dpo`
    python -m bench.learn.next --judgements 60 --steps 4 --dry   # a try

Users with a hidden preference (`tenfold.learn.users.Taste`) each ask one thing twice of a running server, and say which answer is
better, with noise. `tenfold learn next` makes the next generation of what they said, and judges it. Then both models answer the
prompts of the users who were held out by their likeliest tokens, and the preference, without its noise, judges each pair; a tie
is half a win. The interval is by bootstrap over prompts. `--evaluation-prompts` questions with one right answer are the named
evaluation in which the new model must not be worse. Writes bench/results/next.json.
"""

import json
import random
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bench.harness import TENFOLD, Headline, Row, options, write_results
from bench.learn.exports import FRAMES
from tenfold.learn.answers import answers
from tenfold.learn.data import read_judgements
from tenfold.learn.users import Taste, compare_two, questions
from tenfold.learn.walk import smollm2
from tenfold.model.io.huggingface import read_model, write_model
from tenfold.serve.options import EngineOptions
from tenfold.serve.start import serving

THINGS = (
    "water", "a bicycle", "the moon", "bread", "a poem", "Peru", "honey", "a violin", "rain", "the number seven", "a lighthouse",
    "salt", "bees", "paper", "a train", "snow", "coffee", "a garden", "maps", "chess", "the sea", "wool", "a bridge", "clouds",
    "tea", "glass", "a library", "whales", "sleep", "iron", "a market", "owls", "music", "a river", "sand", "apples", "time",
    "a kite", "the sun", "dancing",
)  # fmt: skip
ASKED = (*FRAMES, "Why do people like {}?", "Give me advice about {}.", "Explain {} to a child.", "What is special about {}?",
         "How would you describe {}?", "Tell me a fact about {}.", "Write a sentence about {}.", "What should I know about {}?",
         "Do you like {}?", "What goes well with {}?")  # fmt: skip
LONGEST = 48


def judge(server: str, count: int) -> None:
    """So many users ask and say what they prefer, some at once."""
    draw, taste = random.Random(0), Taste()
    prompts = draw.sample([frame.format(thing) for frame in ASKED for thing in THINGS], count)
    with ThreadPoolExecutor(8) as users:
        list(users.map(lambda i: compare_two(server, f"user-{i}", prompts[i], taste, random.Random(i)), range(count)))


def wins(new: Path, old: Path, held_out: Path) -> np.ndarray:
    """For each held-out prompt 1 where the new model's answer has more points, 0 where the old one's has, 0.5 for as many."""
    taste, prompts = Taste(), [one.prompt for one in read_judgements(held_out)]
    points = [np.array([taste.points(said.text) for said in answers(model, prompts, LONGEST)]) for model in (new, old)]
    return (1 + np.sign(points[0] - points[1])) / 2


def interval(values: np.ndarray) -> list[float]:
    draws = values[np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))].mean(1)
    return [float(x) for x in np.quantile(draws, (0.025, 0.975))]


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        low, high = row["interval"]
        what = f"{row['judgements']} judgements, `learn next` by {row['kind']}: the new model preferred on unseen prompts"
        yield what, f"{row['win_rate']:.0%} (95 %: {low:.0%} to {high:.0%}), {row['minutes']:.0f} minutes with the judging"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--judgements", type=int, default=600)
    parser.add_argument("--kind", default="dpo", choices=["dpo", "sft", "kto"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--evaluation-prompts", type=int, default=60)
    parser.add_argument("--home", type=Path, help="where judgements and generations are kept; a new folder by default")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home = given.home or Path(tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    old, new, began = home / "smollm2" / "model", home / "next", time.monotonic()
    if not old.exists():
        write_model(read_model(smollm2()), old, tokenizer_directory=smollm2())
    feedback, evaluation = home / "feedback.db", home / "questions.jsonl"
    if not feedback.exists():
        with serving({"smollm2": EngineOptions(old, kv_cache_gib=0.25)}, feedback=f"sqlite:///{feedback}") as server:
            judge(server, given.judgements)
    judged_s = time.monotonic() - began
    asked = [{"prompt": q.prompt, "ideal": q.answer} for q in questions(given.evaluation_prompts, 1)]
    evaluation.write_text("".join(f"{json.dumps(row)}\n" for row in asked))
    command = [*TENFOLD, "learn", "next", new.name, "--home", home, "--feedback", feedback, "--model", old, "--kind", given.kind,
               "--steps", given.steps, "--batch-size", given.batch_size, "--evaluations", evaluation, "--json"]  # fmt: skip
    command += ["--learning-rate", given.learning_rate] if given.learning_rate else []
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    verdict, minutes = json.loads(done.stdout), (time.monotonic() - began) / 60
    found = wins(new / "model", old, new / "data" / "held_out.jsonl")
    row = {
        "judgements": given.judgements, "kind": given.kind, "steps": given.steps, "batch_size": given.batch_size,
        "learning_rate": given.learning_rate, "minutes": round(minutes, 1), "judging_minutes": round(judged_s / 60, 1),
        "held_out": len(found), "win_rate": float(found.mean()), "interval": interval(found), "gate_passed": verdict["passed"],
        "gate": {check["name"]: check["says"] for check in verdict["checks"]},
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    if not given.dry:
        write_results("next", [row], headline([row]))


if __name__ == "__main__":
    main()
