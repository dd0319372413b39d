"""Commands that make a model smaller: prune and distil, or quantise."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from tenfold.learn.commands import NewGeneration
from tenfold.learn.shrink_options import DistilSettings, QuantiseOptions
from tenfold.model.path import model_path
from tenfold.spec.commands import print_json
from tenfold.spec.errors import TenfoldError
from tenfold.spec.ranges import Text

Data = Annotated[Text, Meta(description="Text (a folder, a file, a name) or a corpus; its held-out part is for the evaluation.")]


def distil(
    teacher: Annotated[Path, Meta(description="A generation, a Hugging Face directory or a GGUF file.")],
    /,
    *,
    data: Data = "stdlib",
    settings: DistilSettings = DistilSettings(),
    new: NewGeneration = NewGeneration(name="student"),
) -> None:
    """Prune a model, forecast the loss of the smaller student, and train the student on the model's probabilities.

    Example: tenfold learn distil generations/g1 --keep 0.5 --data stdlib --tokens 1000000
    """
    from tenfold.learn.distil import distil as taught
    from tenfold.spec.forecasts import read_forecasts

    result = taught(model_path(teacher), data, new.directory, settings, quiet=new.json)
    if not result.finished:
        raise TenfoldError(f"Stopped and saved at step {result.step}: the same command goes on from there.")
    made = next(one for one in read_forecasts(new.home) if one.forecast.key == f"learn/{new.name}/student_loss").forecast
    if new.json:
        print_json({**asdict(result), "forecast": made.quantiles})
        return
    low, high = made.quantiles[1], made.quantiles[-2]
    print(f"{new.directory}: {result.loss:.4f} nats a token; forecast {made.median:.4f} (80 %: {low:.4f} to {high:.4f}).")


def quantise(
    model: Annotated[Path, Meta(description="A generation, a Hugging Face directory or a GGUF file.")],
    /,
    *,
    data: Data = "stdlib",
    options: QuantiseOptions = QuantiseOptions(),
    settings: DistilSettings = DistilSettings(keep=1.0, batch_size=8, learning_rate=1e-4),
    new: NewGeneration = NewGeneration(name="quantised"),
) -> None:
    """Round the weights of a model to 4 or 8 bits, and measure the loss of quality on held-out text.

    Examples:

      tenfold learn quantise generations/g1 --to int4 --qat && tenfold export generations/quantised --to gguf:q4_0

      tenfold learn quantise generations/g1 --to int4 --rounding tuned --rotate
    """
    from tenfold.learn.quantise import quantise as quantised

    found = quantised(model_path(model), data, new.directory, options, settings, quiet=new.json)
    if new.json:
        print_json(found)
        return
    (before, after), change, kl = found["perplexity"], found["perplexity_change_pct"], found["kl_nats"]
    print(
        f"{new.directory}: perplexity {before:.4g} -> {after:.4g}, "
        f"{change[0]:+.2f} % (95 %: {change[1]:+.2f} to {change[2]:+.2f}), "
        f"divergence {kl[0]:.3g} nats a token (95 %: {kl[1]:.3g} to {kl[2]:.3g})."
    )
    if found["left"]:
        print(f"  {found['left']} matrices are not rounded, because their rows are no multiple of 32.")
