"""Fine-tuning a model into a new generation: its data, its run, and its lineage."""

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

# Of a hidden matrix of the base width. Preferences and rewards need smaller steps than chats: their losses compare answers that
# the model itself could have given.
LEARNING_RATES = {"dpo": 3e-5, "kto": 3e-5, "grpo": 5e-5, "stored_grpo": 5e-5}
ADAPTERS = 10  # the learning rate of adapters as a multiple of that of all weights; usual for LoRA
TOKENS_AT_ONCE = 2048  # of prompts and answers that go through the model together


def tune(
    model: Path, source: str, generation: Path, settings: TuneSettings, *, options: LoRAOptions = LoRAOptions(),
    quiet: bool = False,
) -> RunResult:  # fmt: skip
    """Fine-tune the weights at `model` on `source`; continues where an earlier call was stopped.

    The type of `options` says what is learned: chats (LoRAOptions), preferences (DPOOptions) or ratings (KTOOptions). Writes the
    generation: `data/`, the run with `model/`, and `lineage.json` when it has finished. Raises TenfoldError where the run was begun
    with other settings, or the data cannot be used.
    """
    kind: Any = {LoRAOptions: "sft", DPOOptions: "dpo", KTOOptions: "kto"}[type(options)]
    files = parts_of(source, generation / "data", settings.held_out, kind)
    if not quiet and (people := read_people(generation / "data")).get("left_out"):
        print(f"Judgements left out: {left_out(people)}.")
    task = {"name": kind, "validation": str(files["validation"]), **_fields(options)}
    result = trained(_config(model, _run_fields(task, str(files["train"]), settings)), generation, quiet, settings.rent_usd_per_h)
    _write_lineage(result, generation, model, source, files)
    return replace(result, directory=generation)


def tune_on_rewards(
    model: Path, source: RewardSource, generation: Path, settings: TuneSettings, *, options: GRPOOptions, quiet: bool = False
) -> RunResult:
    """Tune the weights at `model` on the rewards of its own answers, or of stored answers; otherwise as `tune`.

    Where `source.stored` is given, no answers are drawn. Raises TenfoldError where `source` has neither rewards nor stored answers.
    """
    if not (source.rewards or source.stored):
        raise TenfoldError("There are no rewards to learn from: give --rewards, or --stored with judged answers.")
    if source.stored and source.data:
        raise TenfoldError("Stored answers come with their prompts: give --stored or --data, not both.")
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
        # The losses of the other tasks are not in nats per token and jump from step to step: no loss spike detector.
        "health": {} if task["name"] == "sft" else {"loss_spike": 0.0},
    }


def _config(model: Path, fields: dict[str, Any]) -> RunConfig:
    return config_from_fields({**fields, "init_from": str(model)}, "The run")


def trained(
    config: RunConfig, generation: Path, quiet: bool, rent_usd_per_h: float = 0.0, *, with_budget: bool = True
) -> RunResult:
    """Train a generation, or continue its run. A finished run is not trained again, unless `config` has more tokens.

    `with_budget` forecasts time, energy, money and memory before the run, and scores the forecast when it has finished. Raises
    TenfoldError where the run was begun with other settings.
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
