"""Cost of one save per minute for a run of 135M parameters: the stall of the training loop, and slower steps during the write.

    python -m bench.train.save_stall

All figures are from the run's own `time.jsonl`, which has a line per step.
"""

import itertools
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from bench.harness import Headline, Row, options, write_results
from tenfold.data.text.corpus import build
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import pretrain

RUN = {
    "model": {"name": "135M", "dim": 640, "n_layers": 28, "n_heads": 10, "n_kv_heads": 5, "ffn_dim": 1728, "vocab_size": 4096},
    "data": {"seq_len": 128, "batch_size": 2, "max_epochs": 1e9}, "task": {"evaluate_tokens": 2048}, "optimizer": {"name": "adamw"},
    "dtype": "float32", "device": "cpu", "compile": "off", "log": {"every": 1},
}  # fmt: skip


def headline(rows: list[Row]) -> Headline:
    for r in rows:
        yield f"{r['case']}: time that saving takes from the steps", f"{r['stall_pct']:.1f} %"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between saves")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    text = folder / "text"
    text.mkdir()
    for source in sorted(Path(os.__file__).parent.glob("*.py")):
        shutil.copyfile(source, text / source.name)
    corpus = build(text, folder / "corpus", vocab_size=4096, quiet=True)
    tokens = given.steps * RUN["data"]["batch_size"] * RUN["data"]["seq_len"]
    config = config_from_fields({**RUN, "tokens": tokens, "checkpoint": {"every_s": given.every}}, "save_stall")
    result = pretrain(config, corpus, folder / "run")

    lines = [json.loads(line) for line in (folder / "run" / "time.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "stepping" in line and line["step"] <= given.steps]
    stalls, before, after = [], [], []
    for a, b in itertools.pairwise(rows):
        if b["saving"] > a["saving"] and b["step"] < given.steps:
            stalls.append(b["saving"] - a["saving"])
        if b["step"] == a["step"] + 1:
            (after if stalls else before).append(b["stepping"] - a["stepping"])
    if not stalls:
        raise SystemExit("The run ended before its first save: give more --steps.")
    before = before[2:]  # the first steps allocate memory
    saved = len(list((folder / "run" / "checkpoint").glob("step-*")))
    row = {
        "case": f"{result.parameters / 1e6:.0f}M parameters, a save every {given.every:g} s",
        "saves": len(stalls),
        "stall_s": [round(stall, 3) for stall in stalls],
        "stall_pct": 100 * statistics.mean(stalls) / given.every,
        "step_s_before_the_first_save": statistics.mean(before),
        "step_s_after": statistics.mean(after),
        "slower_steps_pct": 100 * (statistics.mean(after) / statistics.mean(before) - 1),
        "checkpoint_gib": round(sum(f.stat().st_size for f in (folder / "run" / "checkpoint").rglob("*")) / 2**30 / saved, 2),
    }
    print(json.dumps(row, indent=1))
    print(write_results("save_stall", [row], headline([row])))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
