"""The climb: ladder, law, forecast, run, score. Every step finds what is already done and goes on from there.

generations/
  corpus-stdlib-2048/
  g1/  climb.json  ladder/*/run.jsonl  points.csv  law.json  forecast.json  run.jsonl  model/  score.json  report.html
"""

import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from tenfold.data.text.corpus import Corpus, build, require_tokens
from tenfold.data.text.remote import is_remote, open_remote
from tenfold.scale import documents
from tenfold.scale.forecast import (
    Speed,
    file_sha256,
    make_forecast,
    record_forecast,
    record_outcome,
    score,
    write_forecast,
)
from tenfold.scale.isoflop import minimum, rungs
from tenfold.scale.ladder import Rung, plan_ladder
from tenfold.scale.law import BITS_PER_BYTE, Law, fit_law
from tenfold.scale.options import ClimbSettings
from tenfold.scale.points import Point
from tenfold.scale.rungs import train_rungs, workers
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import whole_file, write_json
from tenfold.spec.shapes import shape_for_flops
from tenfold.train.config import DataConfig, RunConfig
from tenfold.train.probe import probe
from tenfold.train.result import RunResult, read_result
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import Pretraining, pretrain

EVALUATE_TOKENS = 98_304
PROBE_SECONDS = 8.0


Say = Callable[[str], None]


def climb(settings: ClimbSettings, home: Path, *, say: Say, quiet: bool = False, on: str | None = None) -> Path:
    """Climb once in `home`; returns the generation's directory. Raises TenfoldError; Ctrl-C loses nothing.

    `on` names the launcher of the ladder's runs, such as "ray"; the points are the same with each.
    """
    generation = _unfinished(home, settings) or _new(home, settings)
    return climb_in(generation, settings, home, say=say, quiet=quiet, on=on)


def again(home: Path, *, say: Say, quiet: bool = False, on: str | None = None) -> Path:
    """Take the newest finished generation as the top rung, and climb to ten times its compute."""
    last = newest(home)
    if last is None or not (last / "score.json").exists():
        raise TenfoldError(f"There is no finished generation in {home} to climb from: run `tenfold climb` first.")
    settings = read_settings(last)
    higher = replace(settings, top_flops=10 * settings.top_flops)
    generation = _new(home, higher, parent=last.name)
    points = [*read_points_file(last), _point(_need(read_result(last)))]
    _write_points(points, generation)
    return climb_in(generation, higher, home, say=say, quiet=quiet, on=on)


def climb_in(generation: Path, settings: ClimbSettings, home: Path, *, say: Say, quiet: bool, on: str | None = None) -> Path:
    """All steps of one climb in its directory."""
    corpus = open_or_build(settings, home, say=say, quiet=quiet)
    if not (generation / "points.csv").exists():
        _train_ladder(generation, settings, corpus, say=say, quiet=quiet, on=on)
    points = read_points_file(generation)
    law_file = generation / "law.json"
    if not law_file.exists():
        law = fit_law(points, asymptote=BITS_PER_BYTE, seed=settings.seed)
        best = law.optima(settings.top_flops, lambda flops: choose_params(law, points, flops))
        write_json(law_file, {**law.to_dict(), "optimum": best})
    law = Law.from_dict(json.loads(law_file.read_text()))
    if not (generation / "forecast.json").exists():
        _forecast(generation, settings, corpus, law)
    forecast = documents.read(generation / "forecast.json")
    if read_result(generation) is None:
        record_forecast(generation)
        low, high = forecast["loss_bits_per_byte"]["intervals"]["80"]
        say(
            f"Forecast, frozen: {forecast['loss_bits_per_byte']['median']:.4f} bits per byte (80 %: {low:.4f} to "
            f"{high:.4f}) for {forecast['params'] / 1e6:.2f}M parameters and {forecast['tokens'] / 1e6:.1f}M tokens."
        )
        notes = {"forecast_sha256": file_sha256(generation / "forecast.json")}
        config = _config(settings, forecast["width"], forecast["tokens"], settings.seed)
        result = pretrain(config, corpus, generation, quiet=quiet, notes=notes)
        if not result.finished:
            raise TenfoldError(f"The climb was stopped at step {result.step}: `tenfold climb` goes on from there.")
    scored = score(generation)
    record_outcome(generation, scored["scores"])
    documents.write(generation / "score.json", scored)
    return generation


def open_or_build(settings: ClimbSettings, home: Path, *, say: Say, quiet: bool) -> Corpus:
    """The climb's corpus, made once and shared by the generations in `home`."""
    name = Path(settings.corpus).name or "corpus"
    out = home / f"corpus-{name}-{settings.vocab_size}"
    if is_remote(settings.corpus):
        corpus: Corpus = open_remote(settings.corpus, home)
    else:
        if not out.exists():
            say(f"Preparing the corpus {settings.corpus!r}: cleaning, finding copies, tokenizing ...")
        corpus = build(settings.corpus, out, vocab_size=settings.vocab_size, quiet=quiet)
    splits = corpus.manifest["splits"]
    say(f"Corpus: {splits['train']['tokens'] / 1e6:.1f}M tokens of training text ({splits['train']['bytes'] / 1e6:.0f} MB).")
    return corpus


def _train_ladder(generation: Path, settings: ClimbSettings, corpus: Corpus, *, say: Say, quiet: bool, on: str | None) -> None:
    ladder = plan_ladder(settings.top_flops / 10, corpus.vocab_size, settings.seq_len, family=settings.family)
    top_tokens = max(r.tokens for r in ladder)
    require_tokens(corpus, top_tokens, DataConfig().max_epochs)
    total = sum(r.flops for r in ladder)
    at_once = workers(settings.device) if on is None else len(ladder)
    where = f", on {on}." if on else f", {at_once} side by side." if at_once > 1 else "."
    say(f"Ladder: {len(ladder)} runs at {len({r.flops for r in ladder})} budgets, {total:.2g} FLOPs in all{where}")
    directories = [generation / "ladder" / rung.name for rung in ladder]
    results = [read_result(directory) for directory in directories]
    # The longest first, so that none is left over at the end; at equal compute the narrowest is the slowest.
    missing = sorted((i for i, r in enumerate(results) if r is None), key=lambda i: (-ladder[i].flops, ladder[i].width))
    # Each run has a seed of its own: the luck of one draw must not lean on all points alike.
    seeds = [settings.seed * 1000 + i + 1 for i in range(len(ladder))]
    runs = [(_config(settings, ladder[i].width, ladder[i].tokens, seeds[i]), directories[i]) for i in missing]
    for done, (k, result) in enumerate(train_rungs(runs, corpus, at_once, on=on or "local", quiet=quiet)):
        i = missing[k]
        if not result.finished:
            raise TenfoldError("The climb was stopped in its ladder: the same command goes on from there.")
        results[i] = result
        say(_rung_line(len(ladder) - len(missing) + done + 1, len(ladder), ladder[i], result))
    _write_points([_point(_need(r)) for r in results], generation)


def _forecast(generation: Path, settings: ClimbSettings, corpus: Corpus, law: Law) -> None:
    spec, tokens, *_ = shape_for_flops(
        settings.top_flops, corpus.vocab_size, settings.seq_len, family=settings.family, law=str(generation / "law.json")
    )
    config = _config(settings, spec.dim, tokens, settings.seed)
    require_tokens(corpus, tokens, config.data.max_epochs)
    speed = Speed(*probe(Pretraining(config, corpus, generation.parent), config, PROBE_SECONDS))
    forecast = make_forecast(
        law,
        flops=settings.top_flops,
        params=spec.parameters().matrix_active,
        tokens=tokens,
        width=spec.dim,
        speed=speed,
    )
    write_forecast(forecast, generation / "forecast.json")


def choose_params(law: Law, points: list[Point], flops: float) -> float:
    """Parameters for `flops`: the law's optimum, but no further from the ladder's own best size than published laws go.

    From the best size of the top rung, N* may grow as C^0.4 to C^0.6 (Chinchilla: 0.46 to 0.50; Llama 3: 0.46).
    """
    top_flops, top = rungs(points)[-1]
    best = minimum(top)
    size = best.params if best else min(top, key=lambda p: p.loss).params
    ratio = flops / top_flops
    return float(np.clip(law.optimum(flops)[0], size * ratio**0.4, size * ratio**0.6))


def _config(settings: ClimbSettings, width: int, tokens: int, seed: int) -> RunConfig:
    return config_from_fields(
        {
            "tokens": tokens,
            "seed": seed,
            "device": settings.device,
            "model": {"width": width, "family": settings.family},
            "data": {"corpus": settings.corpus, "vocab_size": settings.vocab_size, "seq_len": settings.seq_len},
            "task": {"evaluate_tokens": EVALUATE_TOKENS},
            "optimizer": {"name": settings.optimizer},
            "checkpoint": {"keep_last": 1},
        },
        "The climb",
    )


def _rung_line(done: int, count: int, rung: Rung, result: RunResult) -> str:
    return (
        f"  {done:>2}/{count}  {rung.flops:.1e} FLOPs  {rung.params / 1e6:6.3f}M parameters  {rung.tokens / 1e6:6.2f}M tokens  "
        f"{result.bits_per_byte:.4f} bits/byte  {result.flops / result.seconds / 1e9:4.0f} GFLOP/s  {result.seconds:5.1f} s"
    )


def _point(result: RunResult) -> Point:
    return Point(result.parameters, result.tokens, result.flops, result.bits_per_byte)


def _write_points(points: list[Point], generation: Path) -> None:
    with whole_file(generation / "points.csv") as scratch, scratch.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(p) for p in points)


def read_points_file(generation: Path) -> list[Point]:
    with (generation / "points.csv").open(newline="") as stream:
        return [Point(**{k: float(v) for k, v in row.items()}) for row in csv.DictReader(stream)]


def generations(home: Path) -> list[Path]:
    """The generations in `home`, oldest first."""
    found = [p for p in home.glob("g*") if p.name[1:].isdigit() and (p / "climb.json").exists()]
    return sorted(found, key=lambda p: int(p.name[1:]))


def newest(home: Path) -> Path | None:
    return (generations(home) or [None])[-1]  # type: ignore[list-item]


def read_settings(generation: Path) -> ClimbSettings:
    facts = documents.read(generation / "climb.json")
    return ClimbSettings(**{f.name: facts[f.name] for f in fields(ClimbSettings)})


def _unfinished(home: Path, settings: ClimbSettings) -> Path | None:
    last = newest(home)
    if last is None or (last / "score.json").exists():
        return None
    if read_settings(last) != settings:
        raise TenfoldError(f"{last} was begun with other settings: give the same ones, delete it, or choose another --home.")
    return last


def _new(home: Path, settings: ClimbSettings, parent: str | None = None) -> Path:
    last = newest(home)
    generation = home / f"g{int(last.name[1:]) + 1 if last else 1}"
    documents.write(generation / "climb.json", {**asdict(settings), "parent": parent, "created": time.time()})
    return generation


def _need(result: RunResult | None) -> RunResult:
    if result is None or not math.isfinite(result.bits_per_byte):
        raise TenfoldError("The generation to climb from has no finished run.")
    return result
