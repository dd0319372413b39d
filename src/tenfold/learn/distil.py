"""Distillation into a pruned model: the teacher is pruned, and the student is trained on its probabilities.

The student's loss is forecast first, from shorter runs: students that are trained on a 64th, a 16th and a quarter of the tokens,
each with a complete learning-rate schedule. The logarithm of their gap to the teacher, in nats per token, is extrapolated as a
parabola in the logarithm of the tokens. A scaling law of student sizes as in arXiv 2502.08606 would need students of many sizes;
here the shape is given, and only the number of tokens differs.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from tenfold.data.text.batches import validation_batches
from tenfold.data.text.corpus import Corpus
from tenfold.learn.data import write_versioned
from tenfold.learn.prune import importance, pruned, smaller_shape
from tenfold.learn.shrink_options import DistilSettings
from tenfold.learn.tune import trained
from tenfold.model.io.huggingface import read_model, read_spec, weights_hash, write_model
from tenfold.model.llama import Llama
from tenfold.model.path import model_path
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_folder
from tenfold.spec.forecasts import Forecast, around, forecast, normal, outcome
from tenfold.train.config import RunConfig
from tenfold.train.optim.hyperparameters import Hyperparameters, derive
from tenfold.train.result import RunResult
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import HostRows
from tenfold.train.text import open_source

_CALIBRATION_ROWS, _VALIDATION_TOKENS = 64, 16_384
_PILOTS, _LEAST_STEPS = (64, 16, 4), 4  # divisors of the tokens for the shorter runs, and the fewest steps of such a run
_LOG_SD = 0.25  # standard deviation of the logarithm of a forecast gap, by judgement


def distil(teacher: Path, data: str, generation: Path, settings: DistilSettings, *, quiet: bool = False) -> RunResult:
    """Prune `teacher`, forecast the student's loss, and train the student; continues where an earlier call was stopped.

    Writes the generation: `pruned/`, the run with `model/`, and `distil.json`. The forecast and its outcome are in the home's
    `forecasts.jsonl`. Raises TenfoldError for a shape that cannot be pruned, or other settings than those of an earlier call.
    """
    home, student = generation.parent, generation / "pruned"
    spec = smaller_shape(read_spec(teacher), settings.keep, settings.layers)  # raises before the text is read, which may take long
    corpus = text_of(teacher, data, home, quiet=quiet)
    if student.exists():
        if replace(read_spec(student), name=spec.name) != spec:
            raise TenfoldError(f"{student} was pruned to another shape: give the same --keep and --layers, or another --name.")
    else:
        model = read_model(teacher)
        make_folder(generation)
        rows = validation_rows(corpus, settings.seq_len, _CALIBRATION_ROWS * settings.seq_len)
        write_model(pruned(model, spec, importance(model, rows)), student, tokenizer_directory=teacher)
    key = _forecast(home, (teacher, student), data, corpus, generation, settings)
    for part in _parts(settings):  # not needed once the forecast is written
        shutil.rmtree(_pilot_directory(generation, part), ignore_errors=True)
    result = teach(teacher, student, data, generation, settings, quiet=quiet)
    if result.finished:
        outcome(home, key, result.loss)
    return result


def text_of(model: Path, data: str, home: Path, *, quiet: bool = False) -> Corpus:
    """The text or corpus `data`, in the tokens of `model`."""
    return open_source(data, home, 0, 0.0, tokenizer_from=model, quiet=quiet)


def teach(
    teacher: Path, student: Path, data: str, generation: Path, settings: DistilSettings, *, grid: str = "none", quiet: bool = False
) -> RunResult:
    """Train `student` on the teacher's probabilities as the run in `generation`; with a `grid`, for weights on it (QAT)."""
    return trained(_config(teacher, student, data, settings, grid, generation.parent), generation, quiet, settings.rent_usd_per_h)


def _config(teacher: Path, student: Path, data: str, settings: DistilSettings, grid: str, home: Path) -> RunConfig:
    rule = _rule(settings)
    fields: dict[str, Any] = {
        "tokens": settings.tokens,
        "seed": settings.seed,
        "init_from": str(student),
        "task": {"name": "distil", "teacher": str(teacher), "evaluate_tokens": _VALIDATION_TOKENS},
        "data": {"corpus": data, "seq_len": settings.seq_len, "batch_size": rule.batch_size},
        "optimizer": {"name": "muon", "learning_rate": rule.learning_rate},
        "checkpoint": {"keep_last": 1},
        "log": {"every": 1},
    }
    fields["task"] |= {"top_k": settings.top_k, "grid": grid}
    if settings.teachers:
        fields["task"]["teachers"] = [str(model_path(path).absolute()) for path in settings.teachers]
    if settings.store:
        fields["task"]["store"] = str(home.absolute() / "teachers")
    return config_from_fields(fields, "The run")


def _rule(settings: DistilSettings) -> Hyperparameters:
    """Batch size and learning rate of pretraining: a pruned model has to learn most of what it knew again."""
    return derive(settings.tokens, settings.seq_len, batch_size=settings.batch_size, learning_rate=settings.learning_rate)


def validation_rows(corpus: Corpus, seq_len: int, tokens: int) -> Tensor:
    """Rows of held-out text, int64 [rows, T], with about `tokens` tokens in all."""
    batches = validation_batches(corpus, batch_size=16, seq_len=seq_len, limit_tokens=tokens)
    return torch.cat([torch.from_numpy(batch.tokens).long() for batch in batches])


@torch.no_grad()
def nats_of(model: Llama, corpus: Corpus, seq_len: int) -> float:
    """The mean loss of a held-out token in nats, on the rows that a student's run is evaluated on."""
    nats, count = 0.0, 0
    for rows in validation_batches(corpus, batch_size=16, seq_len=seq_len, limit_tokens=_VALIDATION_TOKENS):
        batch = HostRows(rows).on(torch.device("cpu"), slice(None))
        nats += float(model.loss(batch.tokens, batch.targets, batch.document)[0])
        count += rows.target_count
    return nats / max(1, count)


def gap_after(points: Sequence[tuple[float, float]], tokens: float) -> float:
    """The gap after `tokens`, extrapolated on logarithmic axes from `points` of (tokens, gap): a line of two, a parabola of three.

    It is at most the gap of the last point.
    """
    x, y = np.log(np.asarray(points)).T
    return float(np.exp(min(y[-1], np.polyval(np.polyfit(x, y, len(points) - 1), math.log(tokens)))))


def _forecast(home: Path, models: tuple[Path, Path], data: str, corpus: Corpus, generation: Path, settings: DistilSettings) -> str:
    """Forecast the student's loss, once. Returns the key of the forecast."""
    (teacher, student), key, file = models, f"learn/{generation.name}/student_loss", generation / "distil.json"
    if file.exists():
        return key
    paths = [teacher, *map(model_path, settings.teachers)]
    # The mean of several teachers' losses is above that of the mean of their probabilities.
    theirs = fmean(nats_of(read_model(path), corpus, settings.seq_len) for path in paths)
    ours = nats_of(read_model(student), corpus, settings.seq_len)
    if ours <= theirs:
        raise TenfoldError(
            f"The pruned model in {student} is no worse than its teacher on this text: lower --keep, or use it as it is."
        )
    pilots = [(settings.tokens // part, _pilot(models, data, generation, settings, part)) for part in _parts(settings)]
    quantiles = _quantiles(theirs, [(_rule(settings).batch_size * settings.seq_len, ours), *pilots], settings.tokens)
    hashes = {"teacher": weights_hash(teacher), "pruned": weights_hash(student)}
    made = forecast(home, Forecast(key=key, who="learn", kind="student_loss", unit="nats/token", quantiles=quantiles, data=hashes))
    said = {"teacher": str(teacher.resolve()), "teacher_loss": theirs, "pruned_loss": ours, "pilots": pilots}
    write_versioned(file, {**said, "forecast": made.quantiles})
    return key


def _parts(settings: DistilSettings) -> list[int]:
    """The divisors of `_PILOTS` that leave enough steps."""
    parts = {part: structs.replace(settings, tokens=settings.tokens // part) for part in _PILOTS if settings.tokens >= part}
    return [part for part, shorter in parts.items() if _rule(shorter).steps >= _LEAST_STEPS]


def _pilot_directory(generation: Path, part: int) -> Path:
    return generation.with_name(f"{generation.name}-pilot-{part}")


def _pilot(models: tuple[Path, Path], data: str, generation: Path, settings: DistilSettings, part: int) -> float:
    """The loss of a student that is trained on one `part`-th of the tokens. Continues where an earlier call was stopped.

    Raises TenfoldError where that call had other settings.
    """
    directory = _pilot_directory(generation, part)
    config = _config(*models, data, structs.replace(settings, tokens=settings.tokens // part), "none", generation.parent)
    result = trained(config, directory, quiet=True, with_budget=False)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved in {directory}: the same command goes on from there.")
    return result.loss


def _quantiles(teacher: float, losses: Sequence[tuple[float, float]], tokens: float) -> tuple[float, ...]:
    """Quantiles of the student's loss after `tokens`, from points of (tokens, loss), of which the first is the pruned model."""
    points = [(number, loss - teacher) for number, loss in losses]
    if any(gap <= 0 for _, gap in points):  # a student can become better than a teacher that knows this text badly
        (_, before), (_, last) = losses[-2:]
        return normal(last, abs(last - before) + 1e-6)
    enough = points[-len(_PILOTS) :] if len(points) > len(_PILOTS) else points[-2:]
    gap = gap_after(enough, tokens) if len(enough) > 1 else enough[0][1] / 2
    return tuple(teacher + nats for nats in around(gap, _LOG_SD if len(enough) > 2 else 2 * _LOG_SD))
