"""From 600 judgements of simulated users to the next generation: is it preferred on prompts of users who were held out?

    python -m bench.learn.next                                   # SmolLM2-135M-Instruct, `tenfold learn next --kind dpo`
    python -m bench.learn.next --judgements 60 --steps 4 --dry   # a quick trial

Users with a hidden preference (`tenfold.learn.users.Taste`) each send one prompt twice to a running server. They give the answer
that they prefer, with noise, a thumb up and the other a thumb down. `tenfold learn next` trains the next generation on them and
runs the gate. Then both models answer the prompts of the held-out users greedily, and the preference, without noise, judges each
pair; a tie is half a win. The interval is that of the gate. `--evaluation-prompts` questions with one right answer are the
evaluation in which the new model must not be worse. Writes bench/results/next.json.
"""

import json
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.harness import Headline, Row, options, tenfold, write_results
from bench.learn.exports import FRAMES
from bench.learn.questions import questions
from tenfold.learn.answers import answers
from tenfold.learn.data import read_judgements
from tenfold.learn.statistics import WinRate, win_rate
from tenfold.learn.users import Asked, Taste, judge_two
from tenfold.learn.walk import smollm2, unpacked
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
BRIEFLY = "Answer in one short sentence."  # answers that are cut off are not learned
LONGEST = 48


def judge(server: str, count: int) -> None:
    """Let `count` users ask the server and rate two answers each, eight users at a time."""
    draw = random.Random(0)
    prompts = draw.sample([f"{frame.format(thing)} {BRIEFLY}" for frame in ASKED for thing in THINGS], count)
    with ThreadPoolExecutor(8) as users:
        list(users.map(lambda i: judge_two(server, Asked(f"user-{i}", prompts[i])), range(count)))


def wins(new: Path, old: Path, held_out: Path) -> WinRate:
    """How often the new model's answer to a held-out prompt scores higher than the old model's."""
    taste, prompts = Taste(), [one.prompt for one in read_judgements(held_out)]
    points = [[taste.points(said.text) for said in answers(model, prompts, LONGEST)] for model in (new, old)]
    return win_rate([ours - theirs for ours, theirs in zip(*points, strict=True)])


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        low, high = row["interval"]
        what = f"{row['judgements']} judgements, `learn next` by {row['kind']}: the new model preferred on unseen prompts"
        yield what, f"{row['win_rate']:.0%} (95 %: {low:.0%} to {high:.0%}), {row['minutes']:.0f} minutes with the judging"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--judgements", type=int, default=600)
    parser.add_argument("--kind", default="dpo", choices=["dpo", "sft", "kto"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--evaluation-prompts", type=int, default=60)
    parser.add_argument("--home", type=Path, help="where judgements and generations are kept; a new folder by default")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home = given.home or Path(tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    old, new = unpacked(smollm2(), home / "smollm2"), home / "next"
    feedback, evaluation = home / "feedback.db", home / "questions.jsonl"
    if not feedback.exists():
        with serving({"smollm2": EngineOptions(old, kv_cache_gib=0.25)}, feedback=f"sqlite:///{feedback}") as server:
            judge(server, given.judgements)
    judged_s = time.monotonic() - began
    asked = [{"prompt": q.prompt, "ideal": q.answer} for q in questions(given.evaluation_prompts)]
    evaluation.write_text("".join(f"{json.dumps(row)}\n" for row in asked))
    command = ["learn", "next", new.name, "--home", home, "--feedback", feedback, "--model", old, "--kind", given.kind,
               "--steps", given.steps, "--batch-size", given.batch_size, "--evaluations", evaluation]  # fmt: skip
    command += ["--learning-rate", given.learning_rate] if given.learning_rate else []
    verdict, minutes = tenfold(*command), (time.monotonic() - began) / 60
    found = wins(new / "model", old, new / "data" / "held_out.jsonl")
    row = {
        "judgements": given.judgements, "kind": given.kind, "steps": given.steps, "batch_size": given.batch_size,
        "learning_rate": given.learning_rate, "minutes": round(minutes, 1), "judging_minutes": round(judged_s / 60, 1),
        "held_out": found.n, "win_rate": found.rate, "interval": list(found.interval), "gate_passed": verdict["passed"],
        "gate": {check["name"]: check["says"] for check in verdict["checks"]},
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    if not given.dry:
        write_results("next", [row], headline([row]))


if __name__ == "__main__":
    main()
