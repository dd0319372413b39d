"""Training tokens per second compared with RecTools' SASRec and HSTU: one shape, the full softmax, alternating.

    python -m venv build/rectools && build/rectools/bin/pip install torch==2.13.0 'rectools[torch]' 'pyarrow<20'
    python -m bench.rank.speed --rectools build/rectools/bin/python --rounds 5

Both sides use OMP_NUM_THREADS threads. Tokens are rows times their length, padding included.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.harness import TENFOLD, alternate, options, ratio, ratio_interval, write_results
from bench.rank.rivals import SIDE
from tenfold.data.interactions.events import FILE
from tenfold.data.interactions.interactions import open_interactions
from tenfold.data.interactions.splits import Split

RIVALS = {"sasrec": "llama", "hstu": "hstu"}  # RecTools' model: the comparable family here


def ours(source: str, family: str, shape: list[int], home: Path, epochs: float) -> float:
    width, layers, seq_len, batch = map(str, shape)
    given = ["--width", width, "--layers", layers, "--seq-len", seq_len, "--batch-size", batch, "--epochs", str(epochs)]
    with tempfile.TemporaryDirectory() as out:
        command = ["rank", "train", source, "--home", str(home), "--out", f"{out}/run", "--split", "leave-one-out"]
        done = subprocess.run([*TENFOLD, *command, "--family", family, *given, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["tokens_per_s"]


def theirs(python: str, events: Path, kind: str, shape: list[int]) -> float:
    command = [python, str(SIDE), "speed", str(events), "--kind", kind, "--shape", *map(str, shape)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rectools", default=sys.executable)
    parser.add_argument("--source", default="movielens-100k")
    parser.add_argument("--shape", type=int, nargs=4, default=[64, 2, 50, 64], metavar=("WIDTH", "LAYERS", "SEQ_LEN", "BATCH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--home", type=Path, default=Path("generations"))
    asked = parser.parse_args()
    events = open_interactions(asked.source, asked.home, Split("leave-one-out")).directory / FILE
    rows, headline = [], []
    for rival, family in RIVALS.items():
        sides = {
            "tenfold": lambda family=family: ours(asked.source, family, asked.shape, asked.home, asked.epochs),
            "rectools": lambda rival=rival: theirs(asked.rectools, events, rival, asked.shape),
        }
        found = alternate(sides, asked.rounds, warm_up=0)
        times, (low, high) = ratio(*found.values()), ratio_interval(*found.values())
        rows.append({"rival": rival, "family": family, "ratio": times, "interval_95": [low, high], **found})
        headline.append((f"tokens/s beside RecTools' {rival}", f"{times:.2f}x (95 %: {low:.2f} to {high:.2f})"))
    write_results("rank_speed", rows, headline)


if __name__ == "__main__":
    main()
