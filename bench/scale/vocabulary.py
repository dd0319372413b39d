"""The error of a ladder's forecast at ten times its compute, by the size of the vocabulary.

    python -m bench.scale.vocabulary FOLDER [FOLDER ...] --vocabularies 1024 2048 4096

For each folder of text and each vocabulary size a ladder is trained up to `--flops` and a law is fitted to it. A model of width
64 at ten times the compute is compared with the law's forecast. Do not use corpora on which climbs are judged
(`bench/scale/climbs.py`).
"""

from pathlib import Path

from bench.harness import Row, options, rows_of, write_results
from tenfold.data.text.corpus import Corpus, build
from tenfold.scale.ladder import plan_ladder
from tenfold.scale.law import BITS_PER_BYTE, fit_law
from tenfold.scale.points import Point
from tenfold.scale.rungs import train_rungs, workers
from tenfold.spec.shapes import shape_of
from tenfold.train.config import DataConfig, RunConfig

SEQ_LEN = 128
WIDTH = 64


def measure(corpus: Corpus, flops: float, home: Path) -> Row:
    """Train the ladder and the large model, and fit the law; one row."""
    wanted = [(r.width, r.tokens) for r in plan_ladder(flops, corpus.vocab_size, SEQ_LEN)]
    above = shape_of("llama3", WIDTH, corpus.vocab_size).train_flops_per_token(SEQ_LEN)
    models = [(WIDTH, round(10 * flops / above)), *wanted]
    runs = [(run(width, tokens, seed), home / f"w{width}-{tokens}") for seed, (width, tokens) in enumerate(models, 1)]
    results = dict(train_rungs(runs, corpus, workers("cpu"), quiet=True))
    large, *points = (Point(r.parameters, r.tokens, r.flops, r.bits_per_byte) for _, r in sorted(results.items()))
    return row(points, large)


def run(width: int, tokens: int, seed: int) -> RunConfig:
    """One run of a ladder."""
    return RunConfig(
        tokens=tokens, seed=seed, model={"width": width}, data=DataConfig(seq_len=SEQ_LEN), task={"evaluate_tokens": 98_304},
        device="cpu", dtype="float32", compile="off",
    )  # fmt: skip


def row(points: list[Point], large: Point) -> Row:
    """The forecast of `large` from the law of `points`, and the measurement."""
    forecast = fit_law(points, asymptote=BITS_PER_BYTE).predict(large.params, large.tokens)
    return {
        "forecast_bits_per_byte": forecast.median,
        "measured_bits_per_byte": large.loss,
        "error_pct": 100 * (forecast.median / large.loss - 1),
        "flops": large.flops,
        "tokens": large.tokens,
        "points": [[p.params, p.tokens, p.flops, p.loss] for p in points],
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[1024, 2048, 4096])
    parser.add_argument("--flops", type=float, default=5e11)
    parser.add_argument("--home", type=Path, default=Path("build/vocabulary"))
    given = parser.parse_args()
    rows = rows_of("vocabulary")
    done = {(r["corpus"], r["vocabulary"]) for r in rows}
    for folder in given.folders:
        for vocabulary in given.vocabularies:
            if (folder.name, vocabulary) in done:
                continue
            home = given.home / f"{folder.name}-{vocabulary}"
            corpus = build(str(folder), home / "corpus", vocab_size=vocabulary)
            rows.append({"corpus": folder.name, "vocabulary": vocabulary, **measure(corpus, given.flops, home)})
            print({k: v for k, v in rows[-1].items() if k != "points"}, flush=True)
            write_results("vocabulary", rows)


if __name__ == "__main__":
    main()
