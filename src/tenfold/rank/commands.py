"""Commands that report on interactions, train rankers on them, and evaluate and compare rankers."""

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from tenfold.rank.options import Content, DropoutOrNone, Loss, RankOptions, SemanticLevels, SplitKind
from tenfold.spec.commands import Folder, Home, Json, print_json
from tenfold.spec.files import write_json
from tenfold.spec.ranges import Text
from tenfold.train.commands import RunOptions
from tenfold.train.commands import run as run_training

EVALUATION, COMPARISON = "evaluation.json", "comparison.json"  # in the directory of a run
Source = Annotated[
    Text,
    Meta(description="A table of user, item and time: a file, or URL#TABLE of a database; or movielens-100k, synthetic, teacher."),
]
Kept = Annotated[
    Folder | None, Meta(description="The home in which the interactions are kept; by default the folder that the run is in.")
]
Finished = Annotated[Folder, Meta(description="The directory of a finished run of the task rank.")]


class TaskOptions(Struct, frozen=True):
    """What the model learns, and what is held out."""

    split: SplitKind = "temporal"
    loss: Loss = "softmax"
    dropout: DropoutOrNone = None
    objectives: Annotated[
        str, Meta(description="Further objectives, separated by commas: columns or tests of columns, e.g. rating>=4,value.")
    ] = ""
    content: Content = False
    semantic_ids: SemanticLevels = 0

    @property
    def table(self) -> dict[str, Any]:
        """The settings as the table `[task]` of a run."""
        given = {name: value for name, value in structs.asdict(self).items() if value is not None}
        return given | {"objectives": [text for text in self.objectives.split(",") if text]}


def train(
    interactions: Source,
    /,
    *,
    model: RankOptions = RankOptions(),
    task: TaskOptions = TaskOptions(),
    options: RunOptions = RunOptions(),
) -> None:
    """Train a ranker: a model that predicts which item a user takes next.

    Examples:

      tenfold rank train interactions.parquet

      tenfold rank train movielens-100k --split leave-one-out --objectives "rating>=4" --content
    """
    from tenfold.data.interactions.interactions import open_interactions
    from tenfold.rank.task import RankConfig

    held = RankConfig(**task.table).held
    config = model.run(interactions, len(open_interactions(interactions, options.home, held).users), task.table)
    name = interactions.partition(":")[0] if "://" not in interactions else "database"
    run_training(config, options.out or options.home / f"rank-{Path(name).stem}", options)


def report(interactions: Source, /, *, split: SplitKind = "temporal", home: Home = Path("generations"), json: Json = False) -> None:
    """Report on interactions before a model is trained on them: ties in time, repeats, bots, the long tail, leaks of the split.

    Example: tenfold rank report interactions.parquet
    """
    from json import loads as parse

    from tenfold.data.interactions.interactions import open_interactions
    from tenfold.data.interactions.report import REPORT
    from tenfold.data.interactions.splits import Split
    from tenfold.spec.terminal import Figures, console

    found = parse((open_interactions(interactions, home, Split(split)).directory / REPORT).read_text())
    if json:
        print_json(found)
        return
    table = Figures("", "")
    for name, value in found.items():
        if name != "warnings":
            table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    out = console()
    out.print(table)
    for sentence in found["warnings"]:
        out.print(sentence)


def evaluate(generation: Finished, /, *, home: Kept = None, json: Json = False) -> None:
    """Hit rate, NDCG and MRR on the test over the whole catalogue, compared with baselines, with intervals over users.

    The results are kept in evaluation.json of the generation.

    Example: tenfold rank evaluate generations/rank-movielens-100k
    """
    from tenfold.rank.compare import evaluated

    found = evaluated(generation, home or generation.parent, "test")
    write_json(generation / EVALUATION, found)
    _show(found, json)


def compare(
    generation: Finished,
    /,
    *,
    beside: Annotated[
        Folder | None, Meta(description="Another run on the same interactions and split, to compare with; unused with --cuts.")
    ] = None,
    cuts: Annotated[
        Annotated[int, Meta(ge=0, le=1000)],
        Meta(description="Train again before each of so many moments, and pool the tests after them; 0 compares the run itself."),
    ] = 0,
    home: Kept = None,
    json: Json = False,
) -> None:
    """Compare a ranker with the baselines, and with another ranker, on the same users.

    The results of the last comparison are kept in comparison.json of the generation.

    Examples:

      tenfold rank compare generations/rank-movielens-100k --beside generations/another

      tenfold rank compare generations/rank-movielens-100k --cuts 8
    """
    from tenfold.rank.compare import compared, rolled
    from tenfold.spec.errors import when_stopped

    home = home or generation.parent
    with when_stopped("the same command goes on from what had finished"):
        found = rolled(generation, home, cuts) if cuts else compared(generation, home, beside)
    write_json(generation / COMPARISON, found)
    _show(found, json)


def _title(found: dict[str, Any]) -> str:
    return f"{found['split']}: {found['users']} users, {found['queries']} queries, {found['items']} items"


def _show(found: dict[str, Any], json: bool) -> None:
    from tenfold.spec.terminal import Figures, console

    if json:
        print_json(found)
        return
    measures = list(next(iter(found["scores"].values())))
    table = Figures("", *measures, title=_title(found))
    for name, scores in found["scores"].items():
        table.add_row(name, *(f"{scores[m]:.4f}" if m in scores else "" for m in measures))
    out = console()
    out.print(table)
    for name, by_measure in found["model_above"].items():
        said = (f"{m} {d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})" for m, d in by_measure.items())
        out.print(f"Above {name} (95 %, users drawn again): {', '.join(said)}.")
