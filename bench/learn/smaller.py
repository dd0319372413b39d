"""Make a model smaller: a distilled student compared with training from scratch at equal compute, and 4-bit weights.

    python -m bench.learn.smaller                          # first a climb of 5e12 FLOPs; its model is the teacher
    python -m bench.learn.smaller --top 5e11 --dry         # a quick trial
    python -m bench.learn.smaller --home generations       # with an existing climb

Students are pruned to half of the parameters and taught on each of `--shares` of their teacher's training tokens. The same shape
with random weights is trained on more of the same text, by as many tokens as the compute of the teacher's forward passes buys.
"Recovered" is the share of the gap between that model and the teacher that the student closes. The student's gain over the model
from scratch is forecast before either runs, from the climb's law and from the forecast of `tenfold learn distil`. Writes
bench/results/smaller.json.
"""

import json
import math
import tempfile
import tomllib
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.harness import Headline, Row, options, tenfold, write_results
from tenfold.learn.distil import nats_of
from tenfold.learn.grid import left_as_they_are
from tenfold.learn.tune import trained
from tenfold.learn.walk import smollm2, unpacked
from tenfold.model.io.huggingface import read_model, read_spec
from tenfold.model.quantised import GROUP
from tenfold.scale.generations import newest
from tenfold.scale.law import Law
from tenfold.train.run_file import config_from_fields
from tenfold.train.text import open_source


def student(home: Path, teacher: Path, share: float) -> Row:
    """The distilled student and the same shape from scratch, in nats per token of held-out text."""
    run = tomllib.loads((teacher / "run.toml").read_text())
    text, seq_len, tokens = run["data"]["corpus"], run["data"]["seq_len"], int(share * run["tokens"])
    sizes = ("--tokens", tokens, "--seq-len", seq_len)
    taught = tenfold("learn", "distil", teacher, "--home", home, "--data", text, *sizes, "--name", f"student-{share:g}")
    spec = read_spec(home / f"student-{share:g}" / "model")
    size, larger = (one.parameters().matrix_active for one in (spec, read_spec(teacher / "model")))
    equal = int(tokens * (3 * size + larger) / (3 * size))
    shape = {name: value for name, value in asdict(spec).items() if name != "name" and value is not None}
    fields = {"tokens": equal, "model": shape, "data": {**run["data"], "max_epochs": 99.0}, "optimizer": run["optimizer"]}
    alone = trained(config_from_fields(fields, "the benchmark"), home / f"scratch-{share:g}", quiet=True)
    corpus = open_source(text, home, 0, 0.0, tokenizer_from=teacher / "model", quiet=True)
    made = {"student": f"student-{share:g}", "scratch": f"scratch-{share:g}", "teacher": teacher.name}
    loss = {name: nats_of(read_model(home / folder / "model"), corpus, seq_len) for name, folder in made.items()}
    gain = loss["scratch"] - loss["student"]
    law = Law.from_dict(json.loads((teacher / "law.json").read_text()))
    nats_per_token = law.predict(size, equal).median * alone.loss / alone.bits_per_byte
    forecast = nats_per_token - median(taught["forecast"])
    return {
        "what": "student", "share": share, "parameters": [size, larger], "tokens": tokens, "tokens_from_scratch": equal,
        "loss": loss, "recovered": gain / (loss["scratch"] - loss["teacher"]), "gain": gain, "forecast_gain": forecast,
        "forecast_off_by": abs(forecast - gain) / abs(gain),
    }  # fmt: skip


def filled(home: Path, teacher: Path) -> Path:
    """The teacher; if its rows do not fill groups of weights, a model of the next width that does, trained in the same way."""
    left, _ = left_as_they_are(read_model(teacher / "model"))
    if left == 0:
        return teacher
    run, width = tomllib.loads((teacher / "run.toml").read_text()), read_spec(teacher / "model").dim
    fields = {key: run[key] for key in ("tokens", "data", "optimizer")} | {"model": {"width": GROUP * math.ceil(width / GROUP)}}
    return trained(config_from_fields(fields, "the benchmark"), home / "filled", quiet=True).directory


def four_bits(home: Path, model: Path, text: str, *arguments: str) -> Row:
    """The change of perplexity with 4-bit weights, for further arguments of `tenfold learn quantise`."""
    name = "-".join(["int4", model.parent.name, *(argument.strip("-") for argument in arguments)])
    found = tenfold("learn", "quantise", model, "--to", "int4", "--home", home, "--data", text, "--name", name, *arguments)
    return {"what": "int4", "model": model.parent.name, "arguments": list(arguments)} | found


def headline(rows: list[Row]) -> Headline:
    for row in rows:
        if row["what"] == "student":
            off = f"forecast of its gain off by {row['forecast_off_by']:.0%}"
            what = f"a student of half the size, taught {row['share']:.0%} of its teacher's tokens: share of the gap to it"
            yield what, f"{row['recovered']:.0%}; {off}"
        else:
            change, low, high = row["perplexity_change_pct"]
            what = f"int4 of {row['model']} {' '.join(row['arguments'])}".strip()
            yield f"{what}: perplexity", f"{change:+.2f} % (95 %: {low:+.2f} to {high:+.2f})"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--home", type=Path, help="the home of a climb; a climb is run if it has none")
    parser.add_argument("--top", type=float, default=5e12, help="FLOPs of the climb, if one is run")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.15, 0.5], help="shares of the teacher's tokens")
    parser.add_argument("--rounding-steps", type=int, default=100, help="steps for each block with tuned rounding")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    given = parser.parse_args()
    home = given.home or Path(tempfile.mkdtemp())
    if newest(home) is None:
        tenfold("climb", "--top", given.top, "--home", home)
    teacher = newest(home)
    assert teacher is not None
    text = tomllib.loads((teacher / "run.toml").read_text())["data"]["corpus"]
    rows = [student(home, teacher, share) for share in given.shares]
    tuned = ("--rounding", "tuned", "--rounding-steps", str(given.rounding_steps))
    judged = filled(home, teacher) / "model"
    for how in ((), ("--qat",), tuned, ("--rotate",), ("--rotate", *tuned)):
        rows.append(four_bits(home, judged, text, *how))
    small = unpacked(smollm2(), home / "smollm2")
    # SmolLM2's GGUF weights already lie on a 4-bit grid, so rounding is tested on rotated weights, which compute the same function.
    rows += [four_bits(home, small, text, *how) for how in (("--rotate",), ("--rotate", *tuned))]
    print(*rows, sep="\n")
    if not given.dry:
        write_results("smaller", rows, headline(rows))


if __name__ == "__main__":
    main()
