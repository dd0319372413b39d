"""A smaller generation: a model is pruned, and what is left is taught by it. The student's loss is forecast first.

The forecast is a law of the gap to the teacher in nats a token, which pruning opens and teaching closes:

    gap(tokens) = gap(0) (1 + tokens / (N / 8)) ** -0.4

with N the student's matrix parameters. It says nothing of the teacher's own gap to the text, as arXiv 2502.08606 does: a student of
a pruned teacher begins near it. The interval is wide, and its hits are counted in `forecasts.jsonl`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data.text.batches import validation_batches
from tenfold.data.text.corpus import Corpus
from tenfold.learn.data import write_versioned
from tenfold.learn.prune import importance, pruned, smaller_shape
from tenfold.learn.shrink_options import DistilSettings
from tenfold.learn.tune import trained
from tenfold.model.io.huggingface import read_model, read_spec, weights_hash, write_model
from tenfold.model.llama import Llama
from tenfold.spec.errors import TenfoldError
from tenfold.spec.files import make_folder
from tenfold.spec.forecasts import Forecast, around, forecast, outcome
from tenfold.train.config import RunConfig
from tenfold.train.result import RunResult
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.pretrain import EVALUATION_ROWS, HostRows
from tenfold.train.text import open_source

_CALIBRATION_ROWS, _VALIDATION_TOKENS = 64, 16_384
_EXPONENT, _TOKENS_PER_PARAMETER, _LOG_SD = 0.4, 1 / 8, 0.5


def distil(teacher: Path, data: str, generation: Path, settings: DistilSettings, *, quiet: bool = False) -> RunResult:
    """Prune `teacher`, forecast what its student comes to, and teach it; goes on from where an earlier call was stopped.

    Writes the generation: `pruned/`, the run with `model/`, and `distil.json`; the forecast and its outcome stand in the home.
    """
    home, student = generation.parent, generation / "pruned"
    corpus = text_of(teacher, data, home, quiet=quiet)
    spec = smaller_shape(read_spec(teacher), settings.keep, settings.layers)
    if student.exists():
        if replace(read_spec(student), name=spec.name) != spec:
            raise TenfoldError(f"{student} was pruned to another shape: give the same --keep and --layers, or another --name.")
    else:
        model = read_model(teacher)
        make_folder(generation)
        rows = validation_rows(corpus, settings.seq_len, _CALIBRATION_ROWS * settings.seq_len)
        write_model(pruned(model, spec, importance(model, rows)), student, tokenizer_directory=teacher)
    key = _forecast(home, teacher, student, corpus, generation.name, settings)
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
    return trained(_config(teacher, student, data, settings, grid), generation, quiet)


def _config(teacher: Path, student: Path, data: str, settings: DistilSettings, grid: str) -> RunConfig:
    fields: dict[str, Any] = {
        "tokens": settings.tokens,
        "seed": settings.seed,
        "init_from": str(student),
        "task": {"name": "distil", "teacher": str(teacher), "evaluate_tokens": _VALIDATION_TOKENS},
        "data": {"corpus": data, "seq_len": settings.seq_len, "batch_size": settings.batch_size},
        "optimizer": {"name": "adamw", "learning_rate": settings.learning_rate},
        "checkpoint": {"keep_last": 1},
        "log": {"every": 1},
    }
    fields["task"] |= {"top_k": settings.top_k, "grid": grid}
    return config_from_fields(fields, "The run")


def validation_rows(corpus: Corpus, seq_len: int, tokens: int) -> Tensor:
    """Rows of held-out text, int64 [rows, T], of about so many tokens."""
    batches = validation_batches(corpus, batch_size=16, seq_len=seq_len, limit_tokens=tokens)
    return torch.cat([torch.from_numpy(batch.tokens).long() for batch in batches])


@torch.no_grad()
def nats_of(model: Llama, corpus: Corpus, seq_len: int) -> float:
    """Mean nats of each held-out token, of the same rows that the run of a student is evaluated on."""
    nats, count = 0.0, 0
    for rows in validation_batches(corpus, batch_size=EVALUATION_ROWS, seq_len=seq_len, limit_tokens=_VALIDATION_TOKENS):
        batch = HostRows(rows).on(torch.device("cpu"), slice(None))
        nats += float(model.loss(batch.tokens, batch.targets, batch.document)[0])
        count += rows.target_count
    return nats / max(1, count)


def gap_after(begin: float, params: float, tokens: float) -> float:
    """The law: nats a token between student and teacher after so many tokens of teaching."""
    return begin * (1 + tokens / (_TOKENS_PER_PARAMETER * params)) ** -_EXPONENT


def _forecast(home: Path, teacher: Path, student: Path, corpus: Corpus, name: str, settings: DistilSettings) -> str:
    """Write down what the student will come to, once. Returns the key."""
    key, file = f"learn/{name}/student_loss", student.parent / "distil.json"
    if file.exists():
        return key
    theirs, ours = (nats_of(read_model(path), corpus, settings.seq_len) for path in (teacher, student))
    if ours <= theirs:
        raise TenfoldError(f"The pruned model in {student} is no worse than its teacher on this text: there is nothing to teach.")
    gap = gap_after(ours - theirs, read_spec(student).parameters().matrix_active, settings.tokens)
    quantiles = tuple(theirs + nats for nats in around(gap, _LOG_SD))
    data = {"teacher": weights_hash(teacher), "pruned": weights_hash(student)}
    made = forecast(home, Forecast(key=key, who="learn", kind="student_loss", unit="nats/token", quantiles=quantiles, data=data))
    write_versioned(
        file, {"teacher": str(teacher.resolve()), "teacher_loss": theirs, "pruned_loss": ours, "forecast": made.quantiles}
    )
    return key
