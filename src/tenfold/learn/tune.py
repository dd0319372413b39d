"""A generation from another by fine-tuning on chats: its data, its run, and the record of where it came from."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from tenfold.learn.data import parts_of, sha256, write_versioned
from tenfold.model.io.huggingface import weights_hash
from tenfold.spec.errors import without_secrets
from tenfold.spec.ranges import Count, LearningRate, Positive, Seed, SeqLen
from tenfold.train.identity import identify
from tenfold.train.result import RunResult, read_result
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks


class TuneSettings(Struct, frozen=True):
    """How long and how fast a model is tuned."""

    steps: Annotated[Count, Meta(description="Steps of the optimizer.")] = 20
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row; longer chats lose their end.")] = 128
    batch_size: Annotated[Count, Meta(description="Rows in a step.")] = 4
    learning_rate: Annotated[LearningRate | None, Meta(description="Of a hidden matrix of the base width, at the peak.")] = None
    max_epochs: Annotated[Positive, Meta(description="How often a chat may be read.")] = 4.0
    held_out: Annotated[float, Meta(gt=0, lt=0.5, description="Share of users kept for the gate; as many for validation.")] = 0.2
    seed: Annotated[Seed, Meta(description="Seed of the order of the chats.")] = 0


def tune(model: Path, source: str, generation: Path, settings: TuneSettings, *, quiet: bool = False) -> RunResult:
    """Fine-tune the weights at `model` on the chats of `source`; goes on from where an earlier call was stopped.

    Writes the generation: `data/`, the run with `model/`, and when it has finished `lineage.json`. Raises TenfoldError where it was
    begun with other settings.
    """
    files = parts_of(source, generation / "data", settings.held_out)
    fields: dict[str, Any] = {
        "tokens": settings.steps * settings.batch_size * settings.seq_len,
        "seed": settings.seed,
        "init_from": str(model),
        "task": {"name": "sft", "validation": str(files["validation"])},
        "data": {"corpus": str(files["train"])},
        "optimizer": {"name": "adamw"},
        "checkpoint": {"keep_last": 1},
        "log": {"every": 1},
    }
    fields["data"] |= {key: getattr(settings, key) for key in ("seq_len", "batch_size", "max_epochs")}
    if settings.learning_rate is not None:
        fields["optimizer"]["learning_rate"] = settings.learning_rate
    config = config_from_fields(fields, "The run")
    task, result = open_task(config, generation.parent), read_result(generation)
    if result is None or "tokens" in identify(task, config, generation).changed:
        result = fit(task, config, generation, standard_hooks(config, quiet=quiet))
    if result.finished and not (generation / "lineage.json").exists():
        data = {part: sha256(path) for part, path in files.items()}
        begun = {"path": str(model.resolve()), "sha256": weights_hash(model)}
        write_versioned(generation / "lineage.json", {"init_from": begun, "source": without_secrets(source), "data": data})
    return replace(result, directory=generation)
