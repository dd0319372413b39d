"""The climb: ladder, law, forecast, run, score. Each step whose files exist is skipped, so that a stopped climb can be resumed.

generations/
  corpus-stdlib-2048/
  g1/  climb.json  ladder/*/run.jsonl  points.csv  law.json  forecast.json  run.jsonl  model/  score.json  report.html
"""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tenfold.data.text.batches import row_count
from tenfold.data.text.corpus import SPLITS, Corpus, require_tokens
from tenfold.data.text.remote import is_remote
from tenfold.data.text.sources import is_corpus, where
from tenfold.scale import documents
from tenfold.scale.curves import write_trajectory
from tenfold.scale.forecast import (
    OTHER_LOSS,
    TEXT_LOSS,
    Speed,
    learn_from_outcomes,
    loss_name,
    make_forecast,
    record_forecast,
    record_outcome,
    score,
    write_forecast,
)
from tenfold.scale.generations import (
    begin,
    generations,
    is_begun,
    is_finished,
    newest,
    parent_of,
    read_points_file,
    read_settings,
    require_same_text,
    unfinished,
    write_points,
)
from tenfold.scale.isoflop import minimum, rungs
from tenfold.scale.ladder import Rung, plan_ladder
from tenfold.scale.law import BITS_PER_BYTE, Law, fit_law
from tenfold.scale.options import ClimbSettings
from tenfold.scale.points import Point
from tenfold.scale.rungs import Opened, Source, task_on, train_on_source, train_rungs, workers
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import file_sha256, make_folder, one_at_a_time, write_json
from tenfold.spec.shapes import shape_for_flops
from tenfold.train.config import DataConfig, RunConfig
from tenfold.train.device import resolve_device
from tenfold.train.probe import probe
from tenfold.train.result import RunResult, read_result
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.text import open_source

EVALUATE_TOKENS = 98_304  # of validation text, at the end of each run
PROBE_SECONDS = 8.0  # of training, to measure the speed
SMALLEST = 32  # width of the model in the configuration that only opens the data
MAX_EPOCHS = 2.0  # over data of other tasks than pretraining


Say = Callable[[str], None]


def climb(settings: ClimbSettings, home: Path, *, say: Say, quiet: bool = False, on: str | None = None) -> Path:
    """Climb once in `home`, or resume the climb that was stopped there; returns the generation's directory.

    `on` names the launcher of the ladder's runs, such as "ray"; the points do not depend on it. Raises TenfoldError where the
    settings, the data or the home do not allow the climb, and where a run was stopped.
    """
    with _alone(home):
        settings = _resolved(settings, home)
        generation = unfinished(home, settings)
        corpus = _checked_corpus(settings, home, say=say, quiet=quiet)
        if generation is None:
            generation = begin(home, settings, corpus)
        require_same_text(generation, corpus)
        return _climb_in(generation, settings, corpus, say=say, quiet=quiet, on=on)


def again(home: Path, *, say: Say, quiet: bool = False, on: str | None = None) -> Path:
    """Climb to ten times the compute of the newest finished generation, with that one added to its points as the top rung.

    Resumes such a climb that was stopped. Raises TenfoldError where no generation in `home` is finished.
    """
    with _alone(home):
        last = newest(home)
        if last is not None and is_begun(last) and not is_finished(last) and parent_of(last):
            settings = read_settings(last)
            corpus = _checked_corpus(settings, home, say=say, quiet=quiet)
            require_same_text(last, corpus)
            return _climb_in(last, settings, corpus, say=say, quiet=quiet, on=on)
        last = next((g for g in reversed(generations(home)) if is_begun(g)), None)
        if last is None or not is_finished(last):
            raise TenfoldError(f"There is no finished generation in {home} to climb from: run `tenfold climb` first.")
        settings = read_settings(last)
        higher = replace(settings, top_flops=10 * settings.top_flops)
        points = [*read_points_file(last), _point(read_result(last), last)]
        corpus = _checked_corpus(higher, home, say=say, quiet=quiet)
        generation = begin(home, higher, corpus, parent=last.name)
        write_points(points, generation)
        return _climb_in(generation, higher, corpus, say=say, quiet=quiet, on=on)


def _alone(home: Path) -> AbstractContextManager[None]:
    make_folder(home)
    return one_at_a_time(home / ".climb.lock", f"climbing in {home}")


def _resolved(settings: ClimbSettings, home: Path) -> ClimbSettings:
    """The settings with an absolute path of the corpus, and the vocabulary size of a corpus that is built already."""
    source, vocab_size = settings.corpus, settings.vocab_size
    if not settings.is_text:
        return settings
    if is_remote(source) or is_corpus(source):
        vocab_size = open_source(source, home, vocab_size, DataConfig().cache_gib).vocab_size
        if settings.vocab_size not in (vocab_size, ClimbSettings.vocab_size):
            raise TenfoldError(
                f"The corpus {source} has a vocabulary of {vocab_size} tokens, not {settings.vocab_size}: leave --vocab-size out, "
                "or give the text instead of the built corpus."
            )
    return replace(settings, corpus=source if is_remote(source) else where(source), vocab_size=vocab_size)


def _checked_corpus(settings: ClimbSettings, home: Path, *, say: Say, quiet: bool) -> Source:
    """The climb's data; a text's corpus is built first. Raises TenfoldError where the ladder cannot be trained on them."""
    resolve_device(settings.device)
    if not settings.is_text:
        config = _config(settings, SMALLEST, 64 * settings.seq_len, settings.seed)
        task = open_task(config, home, quiet=quiet)
        opened = Opened(home, task.vocab_size, json.dumps(task.fingerprint(), sort_keys=True), task.epoch_tokens)
        _require_unseen(opened, max(rung.tokens for rung in _ladder(settings, opened.vocab_size)))
        return opened
    ladder = _ladder(settings, settings.vocab_size)
    say(f"Preparing the corpus {settings.corpus!r}: new text is cleaned, deduplicated and tokenized ...")
    corpus = open_source(settings.corpus, home, settings.vocab_size, DataConfig().cache_gib, quiet=quiet)
    splits = corpus.manifest["splits"]
    say(f"Corpus: {splits['train']['tokens'] / 1e6:.1f}M tokens of training text ({splits['train']['bytes'] / 1e6:.0f} MB).")
    require_tokens(corpus, max(rung.tokens for rung in ladder), DataConfig().max_epochs)
    for split in SPLITS:
        row_count(corpus, split, settings.seq_len)
    return corpus


def _ladder(settings: ClimbSettings, vocab_size: int) -> list[Rung]:
    return plan_ladder(settings.top_flops / 10, vocab_size, settings.seq_len, family=settings.family)


def _require_unseen(data: Opened, tokens: int) -> None:
    """Raises TenfoldError where a run would read its data more than `MAX_EPOCHS` times: its loss would follow another curve than
    that of the other runs."""
    if data.epoch_tokens and tokens > MAX_EPOCHS * data.epoch_tokens:
        raise TenfoldError(
            f"A run of the climb reads {tokens / 1e6:.2f}M tokens, more than {MAX_EPOCHS:g} epochs of the data "
            f"({data.epoch_tokens / 1e6:.2f}M tokens each): lower --top or give more data."
        )


def _asymptote(settings: ClimbSettings) -> tuple[float, float] | None:
    """The prior of the lowest loss: that of text in bits per byte; none (None) for other tasks."""
    return BITS_PER_BYTE if settings.is_text else None


def _climb_in(generation: Path, settings: ClimbSettings, corpus: Source, *, say: Say, quiet: bool, on: str | None = None) -> Path:
    """All steps of one climb in its directory."""
    if not (generation / "points.csv").exists():
        _train_ladder(generation, settings, corpus, say=say, quiet=quiet, on=on)
    points = read_points_file(generation)
    law_file = generation / "law.json"
    if not law_file.exists():
        law = fit_law(points, asymptote=_asymptote(settings), seed=settings.seed)
        best = law.optima(settings.top_flops, lambda flops: choose_params(law, points, flops))
        write_json(law_file, {**law.to_dict(), "optimum": best})
    law = Law.from_dict(json.loads(law_file.read_text()))
    if not (generation / "forecast.json").exists():
        _forecast(generation, settings, corpus, law)
    forecast = documents.read(generation / "forecast.json")
    if read_result(generation) is None:
        record_forecast(generation)
        loss = forecast[loss_name(forecast)]
        low, high = loss["intervals"]["80"]
        say(
            f"Forecast, frozen: {loss['median']:.4f} {_unit(settings)} (80 %: {low:.4f} to "
            f"{high:.4f}) for {forecast['params'] / 1e6:.2f}M parameters and {forecast['tokens'] / 1e6:.1f}M tokens."
        )
        notes = {"forecast_sha256": file_sha256(generation / "forecast.json")}
        config = _config(settings, forecast["width"], forecast["tokens"], settings.seed)
        result = train_on_source(config, corpus, generation, quiet=quiet, notes=notes)
        if not result.finished:
            raise TenfoldError(f"The climb was stopped at step {result.step} of its last run: the same command resumes it.")
    scored = score(generation)
    record_outcome(generation, scored["scores"])
    documents.write(generation / "score.json", scored)
    return generation


def _train_ladder(generation: Path, settings: ClimbSettings, corpus: Source, *, say: Say, quiet: bool, on: str | None) -> None:
    ladder = _ladder(settings, corpus.vocab_size)
    total = sum(r.flops for r in ladder)
    at_once = workers(settings.device) if on is None else len(ladder)
    where = f", on {on}." if on else f", {at_once} side by side." if at_once > 1 else "."
    say(f"Ladder: {len(ladder)} runs at {len({r.flops for r in ladder})} budgets, {total:.2g} FLOPs in all{where}")
    directories = [generation / "ladder" / rung.name for rung in ladder]
    results = [read_result(directory) for directory in directories]
    # The longest runs first, so that no long one starts last; at equal compute the narrowest is the slowest.
    missing = sorted((i for i, r in enumerate(results) if r is None), key=lambda i: (-ladder[i].flops, ladder[i].width))
    # Each run has its own seed, so that the noise of the points is independent.
    seeds = [settings.seed * 1000 + i + 1 for i in range(len(ladder))]
    runs = [(_config(settings, ladder[i].width, ladder[i].tokens, seeds[i]), directories[i]) for i in missing]
    for done, (k, result) in enumerate(train_rungs(runs, corpus, at_once, on=on or "local", quiet=quiet)):
        i = missing[k]
        if not result.finished:
            raise TenfoldError("The climb was stopped in its ladder: the same command resumes it.")
        results[i] = result
        say(_rung_line(len(ladder) - len(missing) + done + 1, len(ladder), ladder[i], result, _unit(settings)))
    write_points([_point(r, directory) for r, directory in zip(results, directories, strict=True)], generation)


def _forecast(generation: Path, settings: ClimbSettings, corpus: Source, law: Law) -> None:
    spec, tokens, *_ = shape_for_flops(
        settings.top_flops, corpus.vocab_size, settings.seq_len, family=settings.family, law=str(generation / "law.json")
    )
    config = _config(settings, spec.dim, tokens, settings.seed)
    if isinstance(corpus, Corpus):
        require_tokens(corpus, tokens, config.data.max_epochs)
    else:
        _require_unseen(corpus, tokens)
    speed = Speed(*probe(task_on(config, corpus, generation.parent), config, PROBE_SECONDS))
    forecast = make_forecast(
        law,
        flops=settings.top_flops,
        params=spec.parameters().matrix_active,
        tokens=tokens,
        width=spec.dim,
        speed=speed,
    )
    if not settings.is_text:
        forecast[OTHER_LOSS] = forecast.pop(TEXT_LOSS)
    learn_from_outcomes(forecast, generation)
    write_trajectory(generation, law, forecast["params"], tokens)
    write_forecast(forecast, generation / "forecast.json")


def choose_params(law: Law, points: list[Point], flops: float) -> float:
    """Parameters for `flops`: the law's optimum, limited to the growth from the ladder's own best size that published laws have.

    From the best size of the top rung on, N* grows as C^0.4 or more and C^0.6 or less (Chinchilla: 0.46 to 0.50; Llama 3: 0.46).
    """
    top_flops, top = rungs(points)[-1]
    best = minimum(top)
    size = best.params if best else min(top, key=lambda p: p.loss).params
    ratio = flops / top_flops
    return float(np.clip(law.optimum(flops)[0], size * ratio**0.4, size * ratio**0.6))


def _config(settings: ClimbSettings, width: int, tokens: int, seed: int) -> RunConfig:
    text = {"vocab_size": settings.vocab_size} if settings.is_text else {}
    task = {"evaluate_tokens": EVALUATE_TOKENS} if settings.is_text else {"name": settings.task}
    context = {} if settings.is_text else {"context": settings.seq_len + 1}
    return config_from_fields(
        {
            "tokens": tokens,
            "seed": seed,
            "device": settings.device,
            "model": {"width": width, "family": settings.family, **context},
            "data": {"corpus": settings.corpus, "seq_len": settings.seq_len, **text},
            "task": task,
            "optimizer": {"name": settings.optimizer},
            "checkpoint": {"keep_last": 1},
        },
        "The climb",
    )


def _unit(settings: ClimbSettings) -> str:
    return "bits/byte" if settings.is_text else "nats"


def _rung_line(done: int, count: int, rung: Rung, result: RunResult, unit: str) -> str:
    return (
        f"  {done:>2}/{count}  {rung.flops:.1e} FLOPs  {rung.params / 1e6:6.3f}M parameters  {rung.tokens / 1e6:6.2f}M tokens  "
        f"{_loss(result):.4f} {unit}  {result.flops / result.seconds / 1e9:4.0f} GFLOP/s  {result.seconds:5.1f} s"
    )


def _point(result: RunResult | None, directory: Path) -> Point:
    """The point of a finished run. Raises TenfoldError for a run that has no result, or whose loss is no number."""
    if result is None:
        raise TenfoldError(f"{directory / 'run.jsonl'} has no finished run: restore that file, or climb in another --home.")
    if not math.isfinite(_loss(result)):
        raise TenfoldError(
            f"The run in {directory} ended with a loss of {_loss(result)}: climb in another --home, with another --seed or "
            "--optimizer."
        )
    return Point(result.parameters, result.tokens, result.flops, _loss(result))


def _loss(result: RunResult) -> float:
    """In bits per byte for a text, in nats otherwise."""
    return result.loss if math.isnan(result.bits_per_byte) else result.bits_per_byte
