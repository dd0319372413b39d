"""A smaller generation: a model is pruned, and what is left is taught by it. The student's loss is forecast first.

As in a climb, the forecast is made from smaller runs: students that are taught a 64th, a 16th and a quarter of the tokens, each to
its own end. The logarithm of their gap to the teacher, in nats a token, is continued as a parabola in the logarithm of the tokens.
A law of sizes as in arXiv 2502.08606 would need students of many sizes; here the shape is given, and the tokens alone differ.
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
_PILOTS, _LEAST_STEPS = (64, 16, 4), 4  # parts of the tokens that shorter students are taught, and their fewest steps
_LOG_SD = 0.25  # of a gap's forecast


def distil(teacher: Path, data: str, generation: Path, settings: DistilSettings, *, quiet: bool = False) -> RunResult:
    """Prune `teacher`, forecast what its student comes to, and teach it; goes on from where an earlier call was stopped.

    Writes the generation: `pruned/`, the run with `model/`, and `distil.json`; the forecast and its outcome stand in the home.
    """
    home, student = generation.parent, generation / "pruned"
    spec = smaller_shape(read_spec(teacher), settings.keep, settings.layers)  # refused before the text is read, which may take long
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
    for part in _parts(settings):  # the forecast stands
        shutil.rmtree(_pilot_directory(generation, part), ignore_errors=True)
    result = teach(teacher, student, data, generation, settings, quiet=quiet)
    if result.finished:
        outcome(home, key, result.loss)
    return result


def text_of(model: Path, data: str, home: Path, *, quiet: bool = False) -> Corpus:
    """Text or a corpus in the tokens of a model."""
    return open_source(data, home, 0, 0.0, tokenizer_from=model, quiet=quiet)


def teach(
    teacher: Path, student: Path, data: str, generation: Path, settings: DistilSettings, *, grid: str = "none", quiet: bool = False
) -> RunResult:
    """Train the student in `generation` on the teacher's probabilities."""
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
    """Batch and learning rate of a student: those of pretraining, for what pruning leaves has most of its learning to do again."""
    return derive(settings.tokens, settings.seq_len, batch_size=settings.batch_size, learning_rate=settings.learning_rate)


def validation_rows(corpus: Corpus, seq_len: int, tokens: int) -> Tensor:
    """Rows of held-out text, int64 [rows, T], of about so many tokens."""
    batches = validation_batches(corpus, batch_size=16, seq_len=seq_len, limit_tokens=tokens)
    return torch.cat([torch.from_numpy(batch.tokens).long() for batch in batches])


@torch.no_grad()
def nats_of(model: Llama, corpus: Corpus, seq_len: int) -> float:
    """Mean nats of each held-out token, of the same rows that the run of a student is evaluated on."""
    nats, count = 0.0, 0
    for rows in validation_batches(corpus, batch_size=16, seq_len=seq_len, limit_tokens=_VALIDATION_TOKENS):
        batch = HostRows(rows).on(torch.device("cpu"), slice(None))
        nats += float(model.loss(batch.tokens, batch.targets, batch.document)[0])
        count += rows.target_count
    return nats / max(1, count)


def gap_after(points: Sequence[tuple[float, float]], tokens: float) -> float:
    """The gap after so many tokens, from points of tokens and gap: a line through two, a parabola through three, on log axes.

    It does not rise beyond the last point.
    """
    x, y = np.log(np.asarray(points)).T
    return float(np.exp(min(y[-1], np.polyval(np.polyfit(x, y, len(points) - 1), math.log(tokens)))))


def _forecast(home: Path, models: tuple[Path, Path], data: str, corpus: Corpus, generation: Path, settings: DistilSettings) -> str:
    """Write down what the student will come to, once. Returns the key."""
    (teacher, student), key, file = models, f"learn/{generation.name}/student_loss", generation / "distil.json"
    if file.exists():
        return key
    paths = [teacher, *map(model_path, settings.teachers)]
    # The mean of several teachers' losses is above that of the mean of their probabilities.
    theirs = fmean(nats_of(read_model(path), corpus, settings.seq_len) for path in paths)
    ours = nats_of(read_model(student), corpus, settings.seq_len)
    if ours <= theirs:
        raise TenfoldError(f"The pruned model in {student} is no worse than its teacher on this text: there is nothing to teach.")
    pilots = [(settings.tokens // part, _pilot(models, data, generation, settings, part)) for part in _parts(settings)]
    quantiles = _quantiles(theirs, [(_rule(settings).batch_size * settings.seq_len, ours), *pilots], settings.tokens)
    hashes = {"teacher": weights_hash(teacher), "pruned": weights_hash(student)}
    made = forecast(home, Forecast(key=key, who="learn", kind="student_loss", unit="nats/token", quantiles=quantiles, data=hashes))
    said = {"teacher": str(teacher.resolve()), "teacher_loss": theirs, "pruned_loss": ours, "pilots": pilots}
    write_versioned(file, {**said, "forecast": made.quantiles})
    return key


def _parts(settings: DistilSettings) -> list[int]:
    """Which parts of the tokens make steps enough."""
    parts = {part: structs.replace(settings, tokens=settings.tokens // part) for part in _PILOTS if settings.tokens >= part}
    return [part for part, shorter in parts.items() if _rule(shorter).steps >= _LEAST_STEPS]


def _pilot_directory(generation: Path, part: int) -> Path:
    return generation.with_name(f"{generation.name}-pilot-{part}")


def _pilot(models: tuple[Path, Path], data: str, generation: Path, settings: DistilSettings, part: int) -> float:
    """The loss of a student that is taught a part of the tokens. Goes on from where an earlier call was stopped.

    Raises TenfoldError where that was of other settings.
    """
    directory = _pilot_directory(generation, part)
    config = _config(*models, data, structs.replace(settings, tokens=settings.tokens // part), "none", generation.parent)
    result = trained(config, directory, quiet=True, with_budget=False)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved in {directory}: the same command goes on from there.")
    return result.loss


def _quantiles(teacher: float, losses: Sequence[tuple[float, float]], tokens: float) -> tuple[float, ...]:
    """The student's loss after so many tokens, from losses by tokens, of which the first is the pruned model's."""
    points = [(number, loss - teacher) for number, loss in losses]
    if any(gap <= 0 for _, gap in points):  # better than a teacher that had not learned all that the text holds
        (_, before), (_, last) = losses[-2:]
        return normal(last, abs(last - before) + 1e-6)
    enough = points[-len(_PILOTS) :] if len(points) > len(_PILOTS) else points[-2:]
    gap = gap_after(enough, tokens) if len(enough) > 1 else enough[0][1] / 2
    return tuple(teacher + nats for nats in around(gap, _LOG_SD if len(enough) > 2 else 2 * _LOG_SD))
