"""Tune a model on what people say, judge it, and put it in service."""

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
Data = Annotated[Text, Meta(description="Rows as JSON lines or Parquet, a feedback database, or its SQLite file.")]
Name = Annotated[GivenName, Meta(description="The name of the new generation.")]
Generation = Annotated[Folder, Meta(description="The generation's directory.")]


class NewGeneration(Struct, frozen=True):
    """The generation that is made, and how its result is shown."""

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
    """Fine-tune a model on chats; users or prompts are held out for the gate.

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
    """Let a model learn which of two answers people preferred (direct preference optimization).

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
    """Let a model learn from answers that were rated one by one, as by thumbs (Kahneman-Tversky optimization).

    Example: tenfold learn kto generations/chat-1 --data feedback.db --name chat-2 --steps 100 --seq-len 512
    """
    _tune(model, data, (settings, options), new, "a loss of {:.4f} on the validation answers")


def _tune(model: Path, data: str, how: tuple[TuneSettings, LoRAOptions], new: NewGeneration, came: str) -> None:
    """Tune on what people said, and say what `came` of it, a text with a place for the loss."""
    from tenfold.learn.tune import tune
    from tenfold.model.path import model_path

    settings, options = how
    result = tune(model_path(model), data, new.directory, settings, options=options, quiet=new.json)
    _report(_finished(result), came.format(result.loss), new.json)


def grpo(
    model: Model,
    /,
    *,
    source: RewardSource = RewardSource(),
    settings: TuneSettings = TuneSettings(batch_size=64),
    options: GRPOOptions = GRPOOptions(),
    new: NewGeneration = NewGeneration(name="grpo"),
) -> None:
    """Let a model answer, and learn from what a function rewards (group relative policy optimization).

    A step has --batch-size answers, of at most --seq-len tokens each with its prompt. With --stored it learns from answers that
    a server kept with the log-probabilities of that moment (asked with store: true), by what people said of them or --rewards.

    Examples:

      tenfold learn grpo generations/chat-1 --rewards arithmetic.py --steps 100

      tenfold learn grpo generations/chat-1 --stored feedback.db --seq-len 512 --batch-size 16
    """
    from tenfold.learn.tune import tune_on_rewards
    from tenfold.model.path import model_path

    result = _finished(tune_on_rewards(model_path(model), source, new.directory, settings, options=options, quiet=new.json))
    came = f"a reward of {-result.loss:.4f} on the prompts that were kept"
    if source.stored:
        low, high, cut, ess = (result.scores[key] for key in ("ratio_min", "ratio_max", "cut_share", "ess_share"))
        came = f"estimated, {came} (ratios of answers {low:.3g} to {high:.3g}, {cut:.0%} cut, {ess:.0%} effective)"
    _report(result, came, new.json)


def show(
    model: Model,
    /,
    *,
    data: Data,
    kind: Annotated[Kind, Meta(description="What would be learned from it.")] = "sft",
    seq_len: Annotated[SeqLen, Meta(description="Tokens in a row; longer chats lose their end.")] = 128,
    count: Annotated[int, Meta(ge=0, description="How many answers are printed.")] = 3,
    json: Json = False,
) -> None:
    """Show what a run would learn before it runs: the text as the model reads it, what is learned of it marked, and counts.

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
    """Raises TenfoldError for a run that was stopped."""
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
    against: Annotated[Path, Meta(description="The model that it has to do better than.")],
    settings: GateSettings = GateSettings(),
    home: Annotated[Folder | None, Meta(description="Where its forecasts are kept; by default beside it.")] = None,
    json: Json = False,
) -> None:
    """Judge a generation beside the one before, and write its gate.json and model card.

    It has to agree better with people on prompts that it has not learned, and be worse in nothing beyond noise.

    Example: tenfold learn gate generations/chat-1 --against generations/g1 --evaluations sums.jsonl
    """
    from tenfold.learn.gate import gate as judge

    _verdict(judge(new, against, home or new.parent, settings), json)


class Source(Struct, frozen=True):
    """What the next generation learns, and from where."""

    feedback: Annotated[Text, Meta(description="What people said: a feedback database, its SQLite file, or a file of rows.")]
    model: Annotated[Path | None, Meta(description="The model to begin from; by default the generation in service.")] = None
    kind: Annotated[Kind, Meta(description="What is learned: chats, preferences or ratings.")] = "sft"
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
    """From what people said to a generation that is judged: data, run and gate. Called again it goes on from where it was.

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
