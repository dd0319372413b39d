"""The command that evaluates a model: on files of prompts, on the safety set, and on tasks of lm-eval."""

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from tenfold.learn.options import EvaluateOptions, TaskOptions
from tenfold.spec.commands import Json, print_json


def evaluate(
    model: Annotated[Path, Meta(description="A generation, a Hugging Face directory or a GGUF file.")],
    /,
    *,
    asked: EvaluateOptions = EvaluateOptions(),
    harness: TaskOptions = TaskOptions(),
    against: Annotated[Path | None, Meta(description="Another model to compare with, on the same prompts.")] = None,
    json: Json = False,
) -> None:
    """Evaluate a model on your own prompts, by language, or on tasks of lm-eval; with --against by paired tests with another model.

    Without --data and --tasks the safety set is asked. Prompts that are in the training data, by their n-grams, are counted and
    left out.

    Examples:

      tenfold learn evaluate generations/chat-1 --data sums.jsonl --against generations/g1

      tenfold learn evaluate generations/chat-1 --data words.jsonl --checkers checks.py

      tenfold learn evaluate generations/chat-1 --tasks arc_easy,hellaswag --limit 200
    """
    from tenfold.learn.evaluate import evaluate as answer_all
    from tenfold.learn.safety import DEFAULT, read_safety, safety
    from tenfold.model.path import model_path

    found: dict[str, Any] = {"evaluations": answer_all(model, asked, against), "tasks": {}, "safety": {}}
    if harness.tasks:
        found["tasks"] = _harness(model_path(model), harness, model_path(against) if against is not None else None)
    if asked.safety is not None or not (asked.data or harness.tasks):
        found["safety"] = safety(model_path(model), read_safety(asked.safety or DEFAULT))
    if json:
        print_json(found)
    else:
        _print(found)


def _harness(model: Path, asked: TaskOptions, against: Path | None) -> dict[str, Any]:
    from tenfold.spec.errors import NotInstalled

    try:
        from tenfold.learn.harness import harness
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise NotInstalled("lm-eval is not installed: pip install 'tenfold[evaluate]'.") from None
    return harness(model, asked, against)


def _print(found: dict[str, Any]) -> None:
    for name, one in found["evaluations"].items():
        _shares(name, one)
        print(
            f"  {one['learned']} prompts are in the training data and left out."
            if one["learned"]
            else "  No prompt is in the training data."
        )
        for language, part in one["languages"].items():
            _shares(f"  {language}", part)
    for name, one in found["tasks"].items():
        said = ", ".join(f"{metric} {value:.4g}" for metric, value in one["metrics"].items())
        print(f"{name}: {said} on {one['documents']} documents.")
        for metric, beside in one.get("against", {}).items():
            _difference(metric, beside, beside.get("lost_p"))
    for name, one in found["safety"].items():
        low, high = one["interval"]
        print(f"{name}: {one['share']:.0%} (95 %: {low:.0%} to {high:.0%}) of {one['prompts']} prompts.")


def _shares(name: str, one: dict[str, Any]) -> None:
    low, high = one["right_interval"]
    nats = f", {one['nats']:.2f} nats" if one["nats"] is not None else ""
    print(f"{name}: {one['right']:.0%} right (95 %: {low:.0%} to {high:.0%}) of {one['prompts']}{nats}.")
    if (beside := one.get("against")) is not None:
        _difference("nats", beside["nats"], beside["lost_p"])


def _difference(what: str, test: dict[str, Any] | None, lost_p: float | None) -> None:
    """Print the paired difference to the other model."""
    said = []
    if test is not None:
        low, high = test["t_interval"]
        said.append(f"{what} {test['mean']:+.3g} (95 %: {low:+.3g} to {high:+.3g})")
    if lost_p is not None:
        said.append(f"p {lost_p:.2g} that so many right answers are lost by chance")
    print(f"    Compared with the other model: {'; '.join(said)}.")
