"""Commands that tune a model on feedback or rewards, and judge the new generation."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from tenfold.learn.options import (
    DPOOptions,
    GateSettings,
    GRPOOptions,
    Kind,
    KTOOptions,
    LoRAOptions,
    LoRARank,
    RewardSource,
    TuneSettings,
)
from tenfold.spec.commands import Folder, Home, Json, print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import SeqLen, Text

if TYPE_CHECKING:
    from tenfold.train.result import RunResult

GivenName = Annotated[str, Meta(pattern=r"^[\w][\w. -]*$", max_length=200, extra={"words": "a name of letters, digits and - . _"})]
Model = Annotated[Path, Meta(description="The model to begin from: a generation, a Hugging Face directory or a GGUF file.")]
Data = Annotated[Text, Meta(description="Rows as JSON lines or Parquet, the URL of a feedback database, or its SQLite file.")]
Name = Annotated[GivenName, Meta(description="The name of the new generation.")]
Generation = Annotated[Folder, Meta(description="The generation's directory.")]


class NewGeneration(Struct, frozen=True):
    """Where the new generation is written, and how the result is printed."""

    home: Home = Path("generations")
    name: Name = "sft"
    json: Json = False

    @property
    def directory(self) -> Path:
        return self.home / self.name


def sft(
    model: Model,
    /,
    *,
    data: Data,
    settings: TuneSettings = TuneSettings(),
    options: LoRAOptions = LoRAOptions(),
    new: NewGeneration = NewGeneration(),
) -> None:
    """Fine-tune a model on chats. Some users (or prompts, where no user is known) are held out for the gate.

    Example: tenfold learn sft generations/g1 --data feedback.db --name chat-1 --steps 200
    """
    _tune(model, data, (settings, options), new, "{:.4f} nats per token of the validation answers")


def dpo(
    model: Model,
    /,
    *,
    data: Data,
    settings: TuneSettings = TuneSettings(),
    options: DPOOptions = DPOOptions(),
    new: NewGeneration = NewGeneration(name="dpo"),
) -> None:
    """Tune a model on pairs of answers of which people preferred one (direct preference optimization).

    Example: tenfold learn dpo generations/chat-1 --data feedback.db --name chat-2 --steps 100 --seq-len 512
    """
    _tune(model, data, (settings, options), new, "a loss of {:.4f} on the validation pairs")


def kto(
    model: Model,
    /,
    *,
    data: Data,
    settings: TuneSettings = TuneSettings(),
    options: KTOOptions = KTOOptions(),
    new: NewGeneration = NewGeneration(name="kto"),
) -> None:
    """Tune a model on answers that were rated one by one, as by thumbs (Kahneman-Tversky optimization).

    Example: tenfold learn kto generations/chat-1 --data feedback.db --name chat-2 --steps 100 --seq-len 512
    """
    _tune(model, data, (settings, options), new, "a loss of {:.4f} on the validation answers")


def _tune(model: Path, data: str, how: tuple[TuneSettings, LoRAOptions], new: NewGeneration, outcome: str) -> None:
    """Tune on feedback and print the result; `outcome` describes the loss, whose value is put in its braces."""
    from tenfold.learn.tune import tune
    from tenfold.model.path import model_path

    settings, options = how
    result = tune(model_path(model), data, new.directory, settings, options=options, quiet=new.json)
    _report(_finished(result), outcome.format(result.loss), new.json)


def grpo(
    model: Model,
    /,
    *,
    source: RewardSource = RewardSource(),
    settings: TuneSettings = TuneSettings(batch_size=64),
    options: GRPOOptions = GRPOOptions(),
    new: NewGeneration = NewGeneration(name="grpo"),
) -> None:
    """Tune a model on rewards of its own answers (group relative policy optimization).

    A step has --batch-size answers; a prompt with its answer has at most --seq-len tokens. With --stored no answers are drawn: the
    run learns from answers that a server kept with their log-probabilities (requests with store: true), rewarded by people's
    judgements or by --rewards.

    Examples:

      tenfold learn grpo generations/chat-1 --rewards arithmetic.py --steps 100

      tenfold learn grpo generations/chat-1 --stored feedback.db --seq-len 512 --batch-size 16
    """
    from tenfold.learn.tune import tune_on_rewards
    from tenfold.model.path import model_path

    result = _finished(tune_on_rewards(model_path(model), source, new.directory, settings, options=options, quiet=new.json))
    outcome = f"a reward of {-result.loss:.4f} on the validation prompts"
    if source.stored:
        low, high, cut, ess = (result.scores[key] for key in ("ratio_min", "ratio_max", "cut_share", "ess_share"))
        outcome = (
            f"estimated, {outcome} (probability ratios of answers {low:.3g} to {high:.3g}, {cut:.0%} cut, {ess:.0%} effective)"
        )
    _report(result, outcome, new.json)


def show(
    model: Model,
    /,
    *,
    data: Data,
    kind: Annotated[Kind, Meta(description="How the rows are read: chats (sft), preferences (dpo) or ratings (kto).")] = "sft",
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row; longer chats lose their end.")] = 128,
    count: Annotated[int, Meta(ge=0, description="How many answers are printed.")] = 3,
    json: Json = False,
) -> None:
    """Show what a run would learn, before it runs: the text as the model reads it, its learned part marked, and counts.

    Example: tenfold learn show generations/g1 --data chats.jsonl
    """
    from tenfold.learn.show import find
    from tenfold.learn.show import show as print_answers
    from tenfold.model.path import model_path
    from tenfold.spec.terminal import console

    found = find(model_path(model), data, kind, seq_len)
    if json:
        print_json(found.counts)
    else:
        print_answers(model_path(model), found, count, console())


def _finished(result: "RunResult") -> "RunResult":
    """The result itself. Raises TenfoldError for a run that was stopped."""
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: the same command goes on from there.")
    return result


def _report(result: "RunResult", what: str, json: bool) -> None:
    if json:
        print_json(asdict(result))
    else:
        print(f"{result.directory}: {what} after {result.step} steps.")


def gate(
    new: Generation,
    /,
    *,
    against: Annotated[Path, Meta(description="The model that it is compared with and has to beat.")],
    settings: GateSettings = GateSettings(),
    home: Annotated[
        Folder | None,
        Meta(description="The folder of generations in which the forecast is kept; by default that of the generation."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare a generation with the model before it, and write its gate.json and model card.

    It passes where it agrees with people better on held-out prompts, and no other check finds it worse beyond noise.

    Example: tenfold learn gate generations/chat-1 --against generations/g1 --evaluations sums.jsonl
    """
    from tenfold.learn.gate import gate as judge

    _verdict(judge(new, against, home or new.parent, settings), json)


class Source(Struct, frozen=True):
    """The feedback that the next generation learns from, and the model that it begins with."""

    feedback: Annotated[Text, Meta(description="Feedback to learn from: a feedback database, its SQLite file, or a file of rows.")]
    model: Annotated[Path | None, Meta(description="The model to begin from; by default the generation in service.")] = None
    kind: Annotated[Kind, Meta(description="What is learned: chats (sft), preferences (dpo) or ratings (kto).")] = "sft"
    lora_rank: LoRARank = 0


def next_generation(
    name: Annotated[GivenName, Meta(description="The name of the new generation.")],
    /,
    *,
    source: Source,
    settings: TuneSettings = TuneSettings(),
    checks: GateSettings = GateSettings(),
    home: Home = Path("generations"),
    json: Json = False,
) -> None:
    """Make the next generation from feedback: its data, its tuning run and its gate. A repeated call continues where one stopped.

    Example: tenfold learn next chat-2 --feedback feedback.db --steps 200
    """
    from tenfold.learn.gate import gate as judge
    from tenfold.learn.release import released_before
    from tenfold.learn.tune import tune
    from tenfold.model.path import model_path

    old = source.model or released_before(home, name)
    if old is None:
        raise TenfoldError(f"No generation of {home} is in service: give --model.")
    options: LoRAOptions = {"sft": LoRAOptions, "dpo": DPOOptions, "kto": KTOOptions}[source.kind](lora_rank=source.lora_rank)
    _finished(tune(model_path(old), source.feedback, home / name, settings, options=options, quiet=json))
    _verdict(judge(home / name, old, home, checks), json)


def _verdict(judged: dict[str, Any], json: bool) -> None:
    if json:
        print_json(judged)
        return
    for check in judged["checks"]:
        print(f"  {'' if check['passed'] else 'NOT '}{check['name']}: {check['says']}")
    print(f"{'Passed' if judged['passed'] else 'Refused'}: {judged['reason']}")
