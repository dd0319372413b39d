"""A generation from another by fine-tuning: its data, its run, and the record of where it came from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tenfold.data.conversations.tokens import ChatEncoder
from tenfold.learn.budget import budget, settle
from tenfold.learn.data import VERSION, left_out, parts_of, read_people, write_versioned
from tenfold.learn.options import DPOOptions, GRPOOptions, KTOOptions, LoRAOptions, RewardSource, TuneSettings
from tenfold.learn.rewards import read_rewards
from tenfold.learn.stored import keep_stored
from tenfold.model.io.huggingface import weights_hash
from tenfold.spec.errors import TenfoldError, without_secrets
from tenfold.spec.files import file_sha256
from tenfold.spec.versions import read_document
from tenfold.train.config import RunConfig
from tenfold.train.identity import identify
from tenfold.train.resolve import CONTINUED_LEARNING_RATE
from tenfold.train.result import RunResult, read_result
from tenfold.train.run_file import config_from_fields
from tenfold.train.tasks.find import open_task
from tenfold.train.trainer import fit, standard_hooks

# Of a hidden matrix of the base width: preferences and rewards tell a model apart from itself, and want smaller steps than chats.
LEARNING_RATES = {"dpo": 3e-5, "kto": 3e-5, "grpo": 5e-5, "stored_grpo": 5e-5}
ADAPTERS = 10  # times as fast as all weights, as is usual
TOKENS_AT_ONCE = 2048  # of drawn answers


def tune(
    model: Path, source: str, generation: Path, settings: TuneSettings, *, options: LoRAOptions = LoRAOptions(),
    quiet: bool = False,
) -> RunResult:  # fmt: skip
    """Fine-tune the weights at `model` on the chats of `source`; goes on from where an earlier call was stopped.

    With `options` on its preferences or ratings. Writes the generation: `data/`, the run with `model/`, and when it has finished
    `lineage.json`. Raises TenfoldError where it was begun with other settings.
    """
    kind: Any = {LoRAOptions: "sft", DPOOptions: "dpo", KTOOptions: "kto"}[type(options)]
    files = parts_of(source, generation / "data", settings.held_out, kind)
    if not quiet and (people := read_people(generation / "data")).get("left_out"):
        print(f"Of what people said is left out: {left_out(people)}.")
    task = {"name": kind, "validation": str(files["validation"]), **_fields(options)}
    result = trained(_config(model, _run_fields(task, str(files["train"]), settings)), generation, quiet, settings.rent_usd_per_h)
    _write_lineage(result, generation, model, source, files)
    return replace(result, directory=generation)


def tune_on_rewards(
    model: Path, source: RewardSource, generation: Path, settings: TuneSettings, *, options: GRPOOptions, quiet: bool = False
) -> RunResult:
    """Let the weights at `model` answer, and learn from what the functions of `source` say; as `tune` otherwise.

    Where the source has stored answers, these are learned from, and none are drawn. Raises TenfoldError for a source of neither.
    """
    if not (source.rewards or source.stored):
        raise TenfoldError("Nothing says what an answer is worth: give --rewards, or --stored with judged answers.")
    if source.stored and source.data:
        raise TenfoldError("Stored answers have their prompts: give --stored or --data.")
    if source.stored:
        rewards = read_rewards(source.rewards) if source.rewards else None
        prompts = keep_stored(source.stored, ChatEncoder.of(model), generation / "data", rewards)
        task, said, corpus = {"name": "stored_grpo"}, source.stored, str(prompts)
    else:
        task, said, corpus = {"name": "grpo", "rewards": source.rewards}, source.prompts, source.prompts
    fields = _run_fields(task | _fields(options), corpus, settings)
    fields["parallel"] = {"micro_batch": max(1, TOKENS_AT_ONCE // settings.seq_len)}
    result = trained(_config(model, fields), generation, quiet, settings.rent_usd_per_h)
    files = {"rewards": Path(source.rewards), "prompts": Path(corpus)}
    _write_lineage(result, generation, model, said, {name: file for name, file in files.items() if file.is_file()})
    return replace(result, directory=generation)


def _fields(options: Struct) -> dict[str, Any]:
    return {k: v for k, v in msgspec.to_builtins(options).items() if v is not None}


def _run_fields(task: dict[str, Any], corpus: str, settings: TuneSettings) -> dict[str, Any]:
    learning_rate = settings.learning_rate or LEARNING_RATES.get(task["name"], CONTINUED_LEARNING_RATE)
    if task["lora_rank"] and settings.learning_rate is None:
        learning_rate *= ADAPTERS
    return {
        "tokens": settings.steps * settings.batch_size * settings.seq_len,
        "seed": settings.seed,
        "task": task,
        "data": {"corpus": corpus, **{key: getattr(settings, key) for key in ("seq_len", "batch_size", "max_epochs")}},
        "optimizer": {"name": "adamw", "learning_rate": learning_rate},
        "checkpoint": {"keep_last": 1},
        "log": {"every": 1},
        # The losses of other tasks are no nats of a token, and jump from step to step.
        "health": {} if task["name"] == "sft" else {"loss_spike": 0.0},
    }


def _config(model: Path, fields: dict[str, Any]) -> RunConfig:
    return config_from_fields({**fields, "init_from": str(model)}, "The run")


def trained(
    config: RunConfig, generation: Path, quiet: bool, rent_usd_per_h: float = 0.0, *, with_budget: bool = True
) -> RunResult:
    """Train a generation, or go on with it. One that has finished is not trained again, unless it was given more tokens.

    `with_budget` forecasts what it takes first, which is scored when it has finished. Raises TenfoldError where it was begun with
    other settings.
    """
    task, result = open_task(config, generation.parent, quiet=quiet), read_result(generation)
    changed = identify(task, config, generation).changed
    if result is None or "tokens" in changed:
        if with_budget:
            budget(task, config, generation, rent_usd_per_h, quiet=quiet)
        result = fit(task, config, generation, standard_hooks(config, quiet=quiet))
    if result.finished:
        settle(generation, result)
    return result


def _write_lineage(result: RunResult, generation: Path, model: Path, source: str, files: dict[str, Path]) -> None:
    if result.finished and not (generation / "lineage.json").exists():
        data = {part: file_sha256(path) for part, path in files.items()}
        begun = {"path": str(model.resolve()), "sha256": weights_hash(model)}
        people = generation / "data" / "people.json"
        found = {"people": read_document(people, VERSION, "tune the model again")} if people.exists() else {}
        lineage = {"init_from": begun, "source": without_secrets(source), "data": data, **found}
        write_versioned(generation / "lineage.json", lineage)
